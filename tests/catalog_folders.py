"""Folders of a catalog in tests, and reading in that is replaced by a copy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.ingestion.model_entry import ModelToIngest
from serve import catalog as catalog_module
from serve import catalog_model
from serve.catalog import Catalog
from serve.config.app import AppConfig
from tests import tiny_models

OnProgress = Callable[[str, float], None]


@dataclass
class Ingestion:
    """Reads in by copying a tiny model. held: sources that are not finished until they are taken from here

    started, ended: sources in order; most: how many there were at once; kept: of each call of `shrink`
    """

    model: Path
    held: set[str] = field(default_factory=set)
    refused: dict[str, Exception] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    most: int = 0
    kept: list[set[str]] = field(default_factory=list)

    def known(self, model: ModelToIngest, cache: Path) -> Path | None:
        folder = cache / Path(model.source).name
        return folder if folder.is_dir() else None

    async def ingest(self, model: ModelToIngest, cache: Path, dtype: str, on_progress: OnProgress) -> Path:
        name = Path(model.source).name
        self.started.append(name)
        self.dtypes.add(dtype)
        self.most = max(self.most, len(self.started) - len(self.ended))
        try:
            on_progress("unet", 0.25)
            while name in self.held:  # noqa: ASYNC110  (a process has no event either)
                await asyncio.sleep(0.01)
            if name in self.refused:
                raise self.refused[name]
            return tiny_models.copy(self.model, cache / name)
        finally:
            self.ended.append(name)

    def shrink(self, limit_bytes: int, keep: list[Path]) -> None:
        assert limit_bytes == 200 * 2**30
        self.kept.append({path.name for path in keep})


def replace_ingestion(monkeypatch: pytest.MonkeyPatch, model: Path) -> Ingestion:
    """Replaces reading in, and what the cache deletes."""
    ingestion = Ingestion(model)

    class Cache:
        def __init__(self, folder: Path) -> None:
            self.shrink = ingestion.shrink

        def num_bytes(self) -> int:
            return 0

    monkeypatch.setattr(catalog_model, "known", ingestion.known)
    monkeypatch.setattr(catalog_module, "ingest_in_process", ingestion.ingest)
    monkeypatch.setattr(catalog_module, "Cache", Cache)
    monkeypatch.setattr(catalog_module, "_LOOK_INTERVAL_S", 0.02)
    return ingestion


def folder_beside_files(parent: Path) -> Path:
    """A catalog's folder, beside which there are single files."""
    for name in ("a", "b", "c"):
        (parent / f"{name}.safetensors").touch()
    folder = parent / "models.d"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, source: str | None = None, **keys: object) -> Path:
    file = folder / f"{name}.yaml"
    part = folder / ".part"
    part.write_text(yaml.safe_dump({"source": source or f"../{name}.safetensors"} | keys))
    return part.rename(file)


def config(folder: Path, **args: Any) -> AppConfig:
    catalog = {"folder": str(folder), "cache_folder": str(folder.parent / "cache")}
    return AppConfig.model_validate({"catalog": catalog, **args})


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110  (the folder is looked at again and again)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(catalog: Catalog) -> AsyncIterator[None]:
    task = asyncio.create_task(catalog.watch())
    try:
        assert await catalog.ready(20)
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def run(catalog: Catalog, story: Callable[[], Awaitable[None]]) -> None:
    async def told() -> None:
        async with watching(catalog):
            await story()

    asyncio.run(told())


def states(catalog: Catalog) -> dict[str, str]:
    return {status.id: str(status.state) for status in catalog.statuses}


def problem(catalog: Catalog, id: str) -> str | None:
    return next(status.problem for status in catalog.statuses if status.id == id)
