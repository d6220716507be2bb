"""What is in the catalog's folder, and what would come of it on a server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.engine.model_source import ModelLoadError
from serve.catalog_model import CatalogModel, known_model
from serve.checks import only_application
from serve.config.app import AppConfig
from serve.config.catalog import CatalogEntry
from serve.config.catalog_files import entry_files, name_clashes, read_entry
from serve.config.schema import ConfigError

_HOW_TO_BEGIN = """catalog.folder: the configuration has no catalog; add one under the application's args:

catalog:
  folder: models.d"""


@dataclass(frozen=True)
class Listed:
    """A file of the catalog's folder. model: None if it is not read in yet, or refused for a problem"""

    file: Path
    entry: CatalogEntry | None
    model: CatalogModel | None
    problem: str | None

    @property
    def id(self) -> str:
        return self.entry.id if self.entry else self.file.stem

    @property
    def state(self) -> str:
        if self.problem is not None:
            return "refused"
        return "to be read" if self.model is None else "ready"


@dataclass(frozen=True)
class LocalCatalog:
    """The catalog of a configuration as it is on this machine's disks.

    configured_folder: None if there is none
    """

    config: AppConfig
    cache: Path
    configured_folder: Path | None

    @classmethod
    def of(cls, file: Path) -> "LocalCatalog":
        """The catalog of the only application in a configuration file. Raises ConfigError."""
        config = only_application(file)
        paths = config.catalog.resolved(config.jobs.data_folder)
        folder = None if paths.folder is None else Path(paths.folder)
        return cls(config, Path(str(paths.cache_folder)), folder)

    @property
    def folder(self) -> Path:
        """Raises ConfigError, with the key to add, if the configuration has no catalog."""
        if self.configured_folder is None:
            raise ConfigError(_HOW_TO_BEGIN)
        return self.configured_folder

    def entries(self) -> dict[Path, CatalogEntry | ConfigError]:
        """All files with what they say, or what is wrong with them. Raises ConfigError."""
        try:
            files = entry_files(self.folder)
        except FileNotFoundError:
            files = []  # `add` makes it
        except OSError as error:
            raise ConfigError(f"catalog.folder: {self.folder} cannot be read: {error.strerror}") from error
        return {file: _read(file) for file in files}

    def owners(self) -> Mapping[str, str]:
        """Who has each name that is taken, in words."""
        model = self.config.model
        owners = dict.fromkeys((model.id, *model.aliases), "the default model")
        for file, entry in self.entries().items():
            if isinstance(entry, CatalogEntry):
                owners |= dict.fromkeys((entry.id, *entry.aliases), file.name)
        return owners

    def listed(self) -> Iterator[Listed]:
        """All files, checked as a server does."""
        entries = self.entries()
        good = {file: entry for file, entry in entries.items() if isinstance(entry, CatalogEntry)}
        clashes = name_clashes(self.config.model, good)
        for file, entry in entries.items():
            if isinstance(entry, ConfigError):
                yield Listed(file, None, None, str(entry))
            elif file in clashes:
                yield Listed(file, entry, None, clashes[file])
            else:
                yield self._looked_up(file, entry)

    def ready(self) -> Sequence[CatalogModel]:
        """The models that are read in."""
        if self.configured_folder is None:
            return []
        return [one.model for one in self.listed() if one.model is not None]

    def _looked_up(self, file: Path, entry: CatalogEntry) -> Listed:
        try:
            return Listed(file, entry, known_model(self.config, entry, self.cache), None)
        except (ConfigError, ModelLoadError, OSError) as error:
            return Listed(file, entry, None, str(error))
        except Exception as error:  # the others are listed
            return Listed(file, entry, None, f"source: {error!r}")


def _read(file: Path) -> CatalogEntry | ConfigError:
    try:
        return read_entry(file)
    except ConfigError as error:
        return error
    except Exception as error:  # no file stops what is done with the others
        return ConfigError(f"cannot be understood: {error!r}")
