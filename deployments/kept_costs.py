"""A folder of measured costs, so that a replica that replaces a dead one measures nothing.

Each file is for one stage on one kind of device, with one model and the same library versions. Delete a file
to measure again.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("ray.serve")

Cost = TypeVar("Cost")
_VERSIONS = ("torch", "diffusers", "transformers", "xformers", "torchao")


@dataclass(frozen=True, slots=True)
class KeptCosts:
    """The files in a folder. measured_with: all that costs depend on, except device and versions"""

    folder: str
    measured_with: Mapping[str, Any]

    def get_or_measure(
        self, stage: str, kind: type[Cost], counts: Sequence[int], measure: Callable[[], Cost]
    ) -> tuple[Cost, bool]:
        """The stage's cost, and whether it was measured just now. counts: the counts to measure"""
        described = {
            **self.measured_with,
            "stage": stage,
            "counts": list(counts),
            "device": _device(),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "versions": {name: version(name) for name in _VERSIONS if _is_installed(name)},
        }
        digest = sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        path = Path(self.folder) / f"{stage}-{digest}.json"
        adapter: TypeAdapter[Cost] = TypeAdapter(kind)
        if path.exists():
            try:
                return adapter.validate_python(json.loads(path.read_text())["cost"]), False
            except (OSError, ValueError, KeyError, ValidationError) as error:
                logger.warning("%s cannot be used; measuring again: %s", path, error)
        cost = measure()
        _write(path, {"measured_with": described, "cost": adapter.dump_python(cost, mode="json")})
        return cost, True


def _device() -> str:
    import torch  # noqa: PLC0415 - whoever only hands the folder on needs none

    return device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def device_name(device: "torch.device") -> str:
    """The name of a GPU, or of the CPU with the number of its cores."""
    if device.type == "cuda":
        import torch  # noqa: PLC0415

        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(sorted(models))}, {os.cpu_count()} cores"


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the whole file or nothing. If that fails, the next replica measures again."""
    part = path.with_name(f".{path.name}.{token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=2) + "\n")
        part.chmod(0o600)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        logger.warning("measured costs cannot be kept in %s: %s", path.parent, error.strerror)
