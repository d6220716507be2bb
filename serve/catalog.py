"""The models that are served besides the default one. They come and go with the files of a folder."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deployments.engine.model_source import ModelLoadError
from deployments.ingestion.ingest import Cache, source_key
from deployments.ingestion.process import ingest_in_process
from serve.catalog_folder import Stamp, read_entries, stamps_of
from serve.catalog_model import CatalogModel, checked_model, is_outdated, known_model
from serve.config.app import AppConfig
from serve.config.catalog import CatalogEntry
from serve.config.catalog_files import name_clashes
from serve.config.schema import ConfigError

logger = logging.getLogger("ray.serve")

_LOOK_INTERVAL_S = 2.0
# How often sources are looked at for changes, and served models are marked as used in the cache.
_CHECK_INTERVAL_S = 30.0
# A refused file is tried again, since a disk or a hub may have been away; each time later, up to an hour.
_FIRST_RETRY_S, _LAST_RETRY_S = 60.0, 3600.0
_GIB = 2**30


class EntryState(StrEnum):
    READING = "reading"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True)
class EntryStatus:
    """A file of the catalog's folder and what has become of it.

    share, what: how much was read in, from 0 to 1, and what is being read; None while it waits for its turn
    problem: why it is refused, with a line per key
    """

    id: str
    file: Path
    state: EntryState
    share: float | None = None
    what: str | None = None
    problem: str | None = None


@dataclass
class _File:
    """A file as it was last read.

    retry_s: after which it is read again if there was a problem
    problem: of the file or its model; clash: a name that another model has
    model: what is served, perhaps from what the file said before
    key: of the source when the model was looked for last; is_outdated: whether to look for it again
    told: the problem that was logged last
    """

    stamp: Stamp
    read_at: float
    retry_s: float
    entry: CatalogEntry | None
    problem: str | None = None
    model: CatalogModel | None = None
    key: str | None = None
    is_outdated: bool = False
    clash: str | None = None
    progress: tuple[str, float] | None = None
    told: str | None = None

    @property
    def is_due(self) -> bool:
        """Whether its model is not served yet as the file says, but could be."""
        is_served = self.model is not None and self.model.entry is self.entry and not self.is_outdated
        return self.entry is not None and not is_served and self.problem is None and self.clash is None

    @property
    def named(self) -> CatalogEntry | None:
        """The entry that has its names: also a file that was broken by a change keeps them."""
        return self.entry or (self.model.entry if self.model else None)


class Catalog:
    """The catalog's models. `watch` keeps them up to date; all else only looks at them.

    Every replica has its own: the folder's files are all that they share.
    """

    def __init__(self, config: AppConfig) -> None:
        """Raises ConfigError if one of the folders is in a home folder that there is not."""
        paths = config.catalog.resolved(config.jobs.data_folder)
        self._config = config
        self._folder = None if paths.folder is None else Path(paths.folder)
        self._cache = Path(str(paths.cache_folder))
        self._files: dict[Path, _File] = {}
        self._models: Mapping[str, CatalogModel] = {}
        self._being_read: Path | None = None
        self._reading: asyncio.Task[None] | None = None
        self._has_looked = asyncio.Event()
        self._told: str | None = None
        self._is_full = False
        self._check_at = 0.0

    @property
    def models(self) -> Mapping[str, CatalogModel]:
        """The models that are ready, by id. It is another mapping whenever one has come, changed or gone."""
        return self._models

    @property
    def statuses(self) -> Sequence[EntryStatus]:
        """All files in order, also those that are refused."""
        return [_status(path, self._files[path]) for path in sorted(self._files)]

    async def ready(self, timeout_s: float) -> bool:
        """Waits until the folder was looked at once, after which models that were read in before are ready.
        Returns whether it was."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_looked.wait(), timeout_s)
        return self._has_looked.is_set()

    async def watch(self) -> None:
        """Takes up what changes in the folder, until cancelled."""
        if self._folder is None:
            self._has_looked.set()
            return
        try:
            while True:
                await self._look_safely(self._folder)
                self._has_looked.set()
                await asyncio.sleep(_LOOK_INTERVAL_S)
        finally:
            await self._stop_reading()

    async def _look_safely(self, folder: Path) -> None:
        try:
            await self._look(folder)
            self._told = None
        except OSError as error:
            problem = f"catalog.folder: {folder} cannot be read: {error.strerror or error}"
            if problem != self._told:
                logger.warning("%s; what was known of it stays", problem)
            self._told = problem
        except Exception:  # the boundary of a loop that must go on
            logger.exception("the catalog's folder could not be looked at; what was known of it stays")

    async def _look(self, folder: Path) -> None:
        stamps = await asyncio.to_thread(stamps_of, folder)
        gone = self._files.keys() - stamps.keys()
        changed = {path: stamp for path, stamp in stamps.items() if self._is_to_read(path, stamp)}
        for path, (entry, problem) in (await asyncio.to_thread(read_entries, changed)).items():
            self._put(path, stamps[path], entry, problem)
        for path in gone:
            model = self._files.pop(path).model
            logger.info("%s is gone%s", path, f"; {model.entry.id!r} is not served any more" if model else "")
        if gone or changed:
            self._mark_clashes()
            if self._being_read in gone | changed.keys():
                await self._stop_reading()
            self._publish()
        if time.monotonic() >= self._check_at:
            await self._check_served()
            self._check_at = time.monotonic() + _CHECK_INTERVAL_S
        await self._take_known()
        if (self._reading is None or self._reading.done()) and self._next() is not None:
            self._reading = asyncio.create_task(self._read_in_all())

    async def _check_served(self) -> None:
        """Marks what is served as used, and finds what is to be read in again."""
        for path, file in self._files.items():
            if (model := file.model) is None:
                continue
            try:
                is_so = await asyncio.to_thread(is_outdated, model, file.key, self._cache)
            except Exception:  # no file stops the others
                logger.exception("%s: its source could not be looked at; it is served as it was", path)
                continue
            if is_so and file.model is model:
                logger.info("%s: its source has changed, or the cache has lost it", path)
                file.is_outdated = True

    def _is_to_read(self, path: Path, stamp: Stamp) -> bool:
        file = self._files.get(path)
        if file is None or file.stamp != stamp:
            return True
        return file.problem is not None and time.monotonic() > file.read_at + file.retry_s

    def _put(self, path: Path, stamp: Stamp, entry: CatalogEntry | None, problem: str | None) -> None:
        """Remembers what a file says now."""
        before = self._files.get(path)
        is_retry = before is not None and before.stamp == stamp
        retry_s = min(2 * before.retry_s, _LAST_RETRY_S) if before and is_retry else _FIRST_RETRY_S
        file = _File(stamp, time.monotonic(), retry_s, entry)
        if before is not None:
            file.model, file.told = before.model, before.told
        self._files[path] = file
        if problem is not None:
            _refuse(path, file, problem)

    def _mark_clashes(self) -> None:
        named = {path: entry for path, file in self._files.items() if (entry := file.named)}
        clashes = name_clashes(self._config.model, named)
        for path, file in self._files.items():
            if (clash := clashes.get(path)) and clash != file.clash:
                logger.warning("%s: %s; it is not served", path, clash)
            file.clash = clash

    async def _take_known(self) -> None:
        """Serves what was read in before at once."""
        for path, file in self._files.items():
            if file.is_due and path != self._being_read and file.entry is not None:
                try:
                    model = await self._known(file, file.entry)
                except (ConfigError, ModelLoadError, OSError) as error:
                    _refuse(path, file, str(error))
                    continue
                except Exception as error:  # no file stops the others
                    _refuse_unexpected(path, file, error)
                    continue
                if model is not None:
                    self._serve(path, file, model)

    async def _known(self, file: _File, entry: CatalogEntry) -> CatalogModel | None:
        file.key = await asyncio.to_thread(source_key, entry.to_ingest())
        return await asyncio.to_thread(known_model, self._config, entry, self._cache)

    def _next(self) -> Path | None:
        return next((path for path, file in self._files.items() if file.is_due), None)

    async def _read_in_all(self) -> None:
        """Reads in models one at a time, each in a process of its own: it takes memory and all of a disk."""
        while (path := self._next()) is not None:
            file, self._being_read = self._files[path], path
            try:
                await self._read_in(path, file)
            except (ConfigError, ModelLoadError, OSError) as error:
                _refuse(path, file, str(error))
            except Exception as error:  # the boundary: the others go on
                _refuse_unexpected(path, file, error)
            finally:
                self._being_read, file.progress = None, None

    async def _read_in(self, path: Path, file: _File) -> None:
        assert file.entry is not None, "only files that could be read are due"

        def on_progress(what: str, share: float) -> None:
            file.progress = what, share

        config, entry = self._config, file.entry
        # Another replica may have read it in since the last look.
        model = await self._known(file, entry)
        if model is None:
            await self._shrink_cache()  # room for it
            logger.info("%s: reading in %r", path, entry.source)
            folder = await ingest_in_process(entry.to_ingest(), self._cache, config.model.dtype, on_progress)
            model = await asyncio.to_thread(checked_model, config, entry, folder)
        self._serve(path, file, model)
        await self._shrink_cache()

    async def _shrink_cache(self) -> None:
        keep = [Path(model.ref.source.path) for model in self._models.values()]
        limit_bytes = int(self._config.catalog.cache_gib * _GIB)
        try:
            num_bytes = await asyncio.to_thread(_shrunk, Cache(self._cache), limit_bytes, keep)
        except Exception as error:  # what was read in is served nevertheless
            logger.warning("catalog.cache_folder: %s cannot be made smaller: %r", self._cache, error)
            return
        if num_bytes > limit_bytes and not self._is_full:
            logger.warning(
                "catalog.cache_gib: %s has %.1f GiB, more than %.1f; all of it was used lately",
                *(self._cache, num_bytes / _GIB, self._config.catalog.cache_gib),
            )
        self._is_full = num_bytes > limit_bytes

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])  # it raises only if this task itself is cancelled
            self._reading = None

    def _serve(self, path: Path, file: _File, model: CatalogModel) -> None:
        file.model, file.told, file.is_outdated = model, None, False
        self._publish()
        logger.info("%s: %r is served", path, model.entry.id)

    def _publish(self) -> None:
        """A model that is served as its file said before leaves the names that another file has now."""
        owners = {
            name: path
            for path, file in self._files.items()
            if file.named is not None and not file.clash
            for name in (file.named.id, *file.named.aliases)
        }
        self._models = {
            model.entry.id: model
            for path, file in sorted(self._files.items())
            if (model := file.model) is not None and not file.clash
            if all(owners.get(name, path) == path for name in (model.entry.id, *model.entry.aliases))
        }


def _shrunk(cache: Cache, limit_bytes: int, keep: Sequence[Path]) -> int:
    """The cache's size, once what may go has gone."""
    cache.shrink(limit_bytes, keep)
    return cache.num_bytes()


def _refuse_unexpected(path: Path, file: _File, error: Exception) -> None:
    logger.error("%s: its model could not be read in", path, exc_info=error)
    _refuse(path, file, f"source: {error!r}; the server's log has more")


def _refuse(path: Path, file: _File, problem: str) -> None:
    """Remembers the problem, and logs it once."""
    file.problem = problem
    if problem != file.told:
        is_served = f"; {file.model.entry.id!r} is served as it was before" if file.model else ""
        logger.warning("%s: %s%s", path, problem.replace("\n", "; "), is_served)
    file.told = problem


def _status(path: Path, file: _File) -> EntryStatus:
    name = file.named.id if file.named else path.stem
    if problem := file.problem or file.clash:
        return EntryStatus(name, path, EntryState.REFUSED, problem=problem)
    if not file.is_due:
        return EntryStatus(name, path, EntryState.READY)
    what, share = file.progress or (None, None)
    return EntryStatus(name, path, EntryState.READING, share, what)
