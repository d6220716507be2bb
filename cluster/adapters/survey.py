"""The adapters of a configuration as they are on this machine's disks."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.models.survey import LocalCatalog
from deployments.engine.model_source import load_model_info
from serve.adapter_survey import Architecture, Surveyed, architectures, survey
from serve.adapters import Adapters
from serve.catalog_model import family_of
from serve.config.schema import ConfigError
from serve.errors import MidstepError
from serve.http.adapter_sources import AdapterSources
from serve.wanted import FetchedAdapter, WantedAdapter

_FIELD = "SOURCE"  # in errors
_HOW_TO_BEGIN = """adapters.folder: the configuration has none; add one under the application's args:

adapters:
  folder: adapters"""


@dataclass(frozen=True)
class LocalAdapters:
    """known: the architectures of the configured model and of the catalog's models that are read in"""

    adapters: Adapters
    known: Sequence[Architecture]

    @classmethod
    def of(cls, file: Path) -> "LocalAdapters":
        """The adapters of the only application in a configuration file. Raises ConfigError and
        ModelLoadError."""
        catalog = LocalCatalog.of(file)
        config, source = catalog.config, catalog.config.model.source()
        configured = config.model.id, family_of(source, load_model_info(source)), source
        others = [(one.entry.id, one.family, one.ref.source) for one in catalog.ready()]
        adapters = Adapters.of(config)
        return cls(adapters, architectures([configured, *others], adapters))

    @property
    def folder(self) -> Path:
        """Raises ConfigError, with the key to add, if the configuration names none."""
        if self.adapters.config.folder is None:
            raise ConfigError(_HOW_TO_BEGIN)
        return Path(self.adapters.config.folder)

    def all(self) -> Iterator[tuple[str, Path, Surveyed]]:
        """Each adapter of the folder: its id, its file, and what it is. Raises ConfigError."""
        if self.folder.is_dir():  # else `add` makes it
            for adapter_id, path in self.adapters.listing.files.items():
                yield adapter_id, path, self.surveyed(path)

    def surveyed(self, path: Path) -> Surveyed:
        return survey(path, self.adapters, self.known)

    def fetched(self, place: str) -> FetchedAdapter:
        """A file from elsewhere. place: a URL or a hub id. Raises ConfigError."""
        if not self.adapters.config.allow_remote:
            raise ConfigError(
                f"there is no file {place!r}, and adapters are not fetched from elsewhere "
                "(adapters.allow_remote)"
            )

        async def fetch() -> FetchedAdapter:
            sources = AdapterSources(self.adapters)
            async with sources.running():
                elsewhere = await sources.place(WantedAdapter(place, 1.0, _FIELD))
                if elsewhere is None:
                    raise ConfigError(f"there is no file {place!r}; one of the hub can be named by its URL")
                return await sources.fetch(elsewhere, _FIELD)

        try:
            return asyncio.run(fetch())
        except MidstepError as error:
            raise ConfigError(error.detail) from error
