"""The adapters (LoRAs) that requests can name, by their ids in the adapters' folder."""

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from deployments.adapters.files import AdapterFile, AdapterFileError
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.adapters import AdapterRef, AdapterUse, padded_rank
from deployments.engine.model_source import ModelLoadError, ModelSource
from deployments.recent import Recent
from serve.adapter_files import AdapterFiles, version_of
from serve.adapter_folder import NOTHING, AdapterFolder, Listing
from serve.config.adapters import AdaptersConfig
from serve.config.app import AppConfig
from serve.errors import AdapterNotFoundError, AdapterUnusableError
from serve.wanted import WantedAdapter, is_url, shown

MAX_SCALE = 100.0
_AT_ONCE = 2  # files; the largest take seconds, and other threads serve those who name none
_MOST_TARGETS = 64  # models
_MOST_NAMED = 5  # of several ids or keys in a sentence
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request's adapters, each once: those of the U-Net, and those of the text encoders."""

    unet: tuple[AdapterUse, ...] = ()
    text: tuple[AdapterUse, ...] = ()


NO_ADAPTERS = Resolved()


@dataclass
class _Sum:
    """An adapter with the sums of its scales. place: where the request names it first"""

    adapter: AdapterRef
    place: WantedAdapter
    unet_scale: float = 0.0
    text_scale: float = 0.0


class Adapters:
    """The adapters that are offered now. It may be used by several threads. config: resolved"""

    def __init__(self, config: AdaptersConfig) -> None:
        self.config = config
        self.files = AdapterFiles(config.max_bytes)
        self._folder = None if config.folder is None else AdapterFolder(Path(config.folder))
        self._threads = ThreadPoolExecutor(_AT_ONCE, "adapters")
        self._lock = threading.Lock()
        self._targets: Recent[ModelSource, ModelTargets] = Recent(_MOST_TARGETS)

    @classmethod
    def of(cls, config: AppConfig) -> Self:
        """Raises ConfigError if a folder is in a home folder that there is not."""
        return cls(config.adapters.resolved(config.jobs.data_folder))

    @property
    def listing(self) -> Listing:
        """The files that are in the folder now. It may take a while."""
        return NOTHING if self._folder is None else self._folder.listing()

    async def on_thread(self, act: Callable[..., Result], *given: Any) -> Result:
        """What the call gives. For all that reads the folder or files, on threads for this alone."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, act, *given)

    def targets(self, source: ModelSource) -> ModelTargets:
        """A model's layers. They are kept: the hub would be asked anew each time. Raises ModelLoadError."""
        with self._lock:
            known = self._targets.use(source)
        if known is None:
            known = targets_of_model(source)
            with self._lock:
                self._targets.keep(source, known)
        return known

    def check(self, wanted: Sequence[WantedAdapter]) -> None:
        """Refuses what can be refused before any file is fetched or read. Raises InvalidRequestError."""
        if len(wanted) > self.config.max_per_request:
            raise wanted[0].refusal(
                f"{len(wanted)} adapters were given; at most {self.config.max_per_request} are allowed"
            )
        here = [one for one in wanted if not is_url(one.name)]
        if here and not self.config.are_offered:
            raise here[0].refusal(
                f"{shown(here[0].name)} was given, and adapters are not offered here (adapters.folder in "
                "the server's configuration)"
            )

    def resolve(self, wanted: Sequence[WantedAdapter], source: ModelSource) -> Resolved:
        """The adapters that a request names, checked against its model. Reads files that are new.

        Raises AdapterNotFoundError, AdapterUnusableError, and InvalidRequestError, which names the field.
        """
        if not wanted:
            return NO_ADAPTERS
        self.check(wanted)
        targets = self._targets_for(source, wanted[0])
        found: dict[str, _Sum] = {}
        for one in wanted:
            adapter = self._ref(one, targets)
            one_sum = found.setdefault(adapter.digest, _Sum(adapter, one))
            one_sum.unet_scale += one.scale
            one_sum.text_scale += one.scale if one.text_scale is None else one.text_scale
        for one_sum in found.values():
            _check_scales(one_sum)
        self._check_ranks(list(found.values()))
        return Resolved(
            tuple(
                AdapterUse(one.adapter, one.unet_scale)
                for one in found.values()
                if one.adapter.unet_rank and one.unet_scale
            ),
            tuple(
                AdapterUse(one.adapter, one.text_scale)
                for one in found.values()
                if one.adapter.text_rank and one.text_scale
            ),
        )

    def find(self, name: str, field: str) -> tuple[str, Path]:
        """The id and the file of an adapter of the folder.

        field: for errors
        Raises AdapterNotFoundError, also if the name is that of several.
        """
        listing = self.listing
        ids = listing.named(name)
        if not ids:
            raise AdapterNotFoundError(
                f"{field}: there is no adapter {shown(name)}; {self._alternatives(name, listing)}", field
            )
        if len(ids) > 1:
            raise AdapterNotFoundError(
                f"{field}: {shown(name)} is the name of {len(ids)} adapters; give the id: "
                f"{', '.join(ids[:_MOST_NAMED])}.",
                field,
            )
        return ids[0], listing.files[ids[0]]

    def _ref(self, one: WantedAdapter, targets: ModelTargets) -> AdapterRef:
        """An adapter that fits the model, with its digest."""
        if one.fetched is None:
            name, path = self.find(one.name, one.field)
        else:
            name, path = one.fetched.name, one.fetched.path
        try:
            version = version_of(path)  # one for both, as the file may be replaced at any time
            file = self.files.header(path, targets, version)
            if problem := self.problem(file):
                raise AdapterFileError(f"{path.name} {problem}")
            digest = self.files.digest(path, version) if one.fetched is None else one.fetched.digest
        except AdapterFileError as error:
            raise one.refusal(str(error).replace(path.name, name).removesuffix(".")) from error
        if one.sha256 not in (None, digest):
            raise AdapterUnusableError(
                f"{one.field}: {shown(name)} is another file than the one that is wanted: its SHA-256 is "
                f"{digest}, and {one.sha256} was given.",
                one.field,
            )
        return AdapterRef(name, str(path), digest, file.unet_rank, file.text_rank)

    def problem(self, file: AdapterFile) -> str | None:
        """Why requests cannot name a file that fits, as the end of a sentence; None if they can."""
        if file.dense:
            more = f" and {len(file.dense) - _MOST_NAMED} more" if len(file.dense) > _MOST_NAMED else ""
            return (
                f"is of a kind ({', '.join(file.kinds)}) that has no low rank and can only be fused into a "
                f"model of the catalog (its key `fuse`): {', '.join(file.dense[:_MOST_NAMED])}{more}"
            )
        rank, most = max(file.unet_rank, file.text_rank), self.config.max_rank
        if padded_rank(rank) > most:
            return f"has the rank {rank}; at most {most} is allowed (adapters.max_rank)"
        return None

    def _check_ranks(self, found: Sequence[_Sum]) -> None:
        """Refuses adapters whose ranks do not fit together into one forward, as those of one request must."""
        for part, ranks in (
            ("the U-Net", [one.adapter.unet_rank for one in found if one.unet_scale]),
            ("the text encoders", [one.adapter.text_rank for one in found if one.text_scale]),
        ):
            total, most = sum(map(padded_rank, ranks)), self.config.max_rank
            if total > most:
                raise found[0].place.refusal(
                    f"the ranks of these adapters in {part} are {' + '.join(map(str, ranks))}, each rounded "
                    f"up to a multiple of 16; together at most {most} are allowed (adapters.max_rank)"
                )

    def _targets_for(self, source: ModelSource, first: WantedAdapter) -> ModelTargets:
        try:
            return self.targets(source)
        except ModelLoadError as error:
            raise AdapterUnusableError(
                f"{first.field}: adapters cannot be used with this model, whose layers are not known here.",
                first.field,
            ) from error

    def _alternatives(self, name: str, listing: Listing) -> str:
        near = listing.near(name)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        lists = f"GET /v1/adapters lists the {len(listing.files)} that there are." if listing.files else ""
        hub = ""
        if self.config.allow_remote and "/" in name:
            hub = " One of the hub can be named in `loras` by its URL, https://huggingface.co/owner/name."
        return f"{meant}{lists or 'there are none (GET /v1/adapters).'}{hub}"


def _check_scales(one: _Sum) -> None:
    for scale in (one.unet_scale, one.text_scale):
        if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
            raise one.place.refusal(
                f"{one.adapter.name!r} has the scale {scale:g}; allowed are {-MAX_SCALE:g} to {MAX_SCALE:g}"
            )
