"""Reads a model into the cache for a command, and shows how far it is."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.models.survey import LocalCatalog
from deployments.ingestion.process import ingest_in_process
from serve.catalog_model import CatalogModel, checked_model, known_model
from serve.config.catalog import CatalogEntry


class OnProgress(Protocol):
    def __call__(self, what: str, share: float) -> None: ...


def read_in(catalog: LocalCatalog, entry: CatalogEntry) -> CatalogModel:
    """The model, which is read into the cache if it is not there. Raises ConfigError and ModelLoadError."""
    if (model := known_model(catalog.config, entry, catalog.cache)) is not None:
        return model
    dtype = catalog.config.model.dtype
    with _shown(Console(stderr=True)) as on_progress:
        folder = asyncio.run(ingest_in_process(entry.to_ingest(), catalog.cache, dtype, on_progress))
    return checked_model(catalog.config, entry, folder)


@contextmanager
def _shown(console: Console) -> Iterator[OnProgress]:
    """A bar on a terminal; elsewhere a line for each thing that is read."""
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=1.0)
        yield lambda what, share: progress.update(bar, description=what, completed=share)


class _Lines:
    def __init__(self) -> None:
        self._last = ""

    def __call__(self, what: str, share: float) -> None:
        if what != self._last:
            print(f"{share:4.0%} {what}", file=sys.stderr)
        self._last = what
