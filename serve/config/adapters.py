"""The section `adapters` of the configuration."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from serve.config.model import watched_folder
from serve.config.schema import Section, expanded

_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9-]{1,63}\.)*[a-z0-9-]{1,63}")
_GIB = 2**30
Gib = Annotated[float, Field(gt=0, le=1_000_000)]


def _host(given: str) -> str:
    if not _HOST.fullmatch(given):
        raise ValueError(f"{given!r} is no name of a host in small letters, such as huggingface.co")
    return given


class AdaptersConfig(Section):
    """Adapters (LoRAs) that requests can name."""

    folder: str | None = Field(
        None,
        description="Folder of adapters (`.safetensors`), also in folders in it, looked at again when it "
        "changes; `null`: none",
    )
    max_rank: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = Field(
        128,
        description="Most ranks of the adapters in one forward, each rounded up to a multiple of 16; an "
        "adapter with more is refused",
    )
    max_per_request: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="Most adapters that a request can name"
    )
    max_gib: Annotated[float, Field(gt=0, le=2)] = Field(2.0, description="Size of the largest file in GiB")
    host_gib: Gib = Field(
        4.0, description="Size of the host's memory for adapters in GiB, of each denoiser and encoder"
    )
    gpu_gib: Gib = Field(
        4.0, description="Size of the device's memory for adapters in GiB, of each denoiser and encoder"
    )
    allow_remote: bool = Field(
        False, description="Whether requests can name adapters by hub ids and `https` URLs, which are fetched"
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        ("huggingface.co", "hf.co"),
        description="Hosts that they are fetched from, with the hosts below them; also those that the hosts "
        "redirect to",
    )
    allow_private_hosts: bool = Field(
        False,
        description="Whether they may come from private addresses and by plain `http` too: for development",
    )
    cache_folder: str | None = Field(
        None,
        description="Folder of what was fetched, shared by all nodes; `null`: `adapters` in "
        "`jobs.data_folder`",
    )
    cache_gib: Gib = Field(
        20.0,
        description="Size of that folder in GiB, past which files that were not used for a day go; if that "
        "is not enough, nothing more is fetched",
    )

    @property
    def are_offered(self) -> bool:
        """Whether requests can name any."""
        return self.folder is not None or self.allow_remote

    @property
    def engine_max_rank(self) -> int:
        """The highest sum of ranks in a forward; 0 if adapters are not offered."""
        return self.max_rank if self.are_offered else 0

    @property
    def max_bytes(self) -> int:
        """The size of the largest file."""
        return int(self.max_gib * _GIB)

    @property
    def host_bytes(self) -> int:
        return int(self.host_gib * _GIB)

    @property
    def gpu_bytes(self) -> int:
        return int(self.gpu_gib * _GIB)

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gib * _GIB)

    def resolved(self, data_folder: str) -> Self:
        """The section with absolute paths. Raises ConfigError if one names no home folder.

        data_folder: `jobs.data_folder`
        """
        if self.cache_folder is None:
            cache = expanded("jobs.data_folder", data_folder) / "adapters"
        else:
            cache = expanded("adapters.cache_folder", self.cache_folder)
        folder = None if self.folder is None else str(watched_folder("adapters.folder", self.folder))
        return self.model_copy(update={"folder": folder, "cache_folder": str(cache.absolute())})
