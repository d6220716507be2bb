"""Costs that replicas have measured, in a folder: one that takes the place of a dead one measures nothing.

A file is of one stage on one kind of device, with one model and the same versions. Whoever wants to measure
anew deletes it.
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
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from deployments.engine.cost import Curve, StageCost

logger = logging.getLogger("ray.serve")

Cost = TypeVar("Cost", Curve, StageCost)
_VERSIONS = ("torch", "diffusers", "transformers", "xformers")


@dataclass(frozen=True, slots=True)
class KeptCosts:
    """The files of a folder. measured_with: all that costs depend on besides the device and the versions."""

    folder: str
    measured_with: Mapping[str, Any]

    def get_or_measure(
        self, stage: str, kind: type[Cost], counts: Sequence[int], measure: Callable[[], Cost]
    ) -> tuple[Cost, bool]:
        """The stage's costs, and whether they were measured now. counts: that are measured"""
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
                logger.warning("%s cannot be used, and is measured anew: %s", path, error)
        cost = measure()
        _write(path, {"measured_with": described, "cost": adapter.dump_python(cost, mode="json")})
        return cost, True


def _device() -> str:
    import torch  # noqa: PLC0415 - whoever only hands the folder on needs none

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
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
    """Whole or not at all; where it cannot be written the next replica measures again."""
    part = path.with_name(f".{path.name}.{token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=2) + "\n")
        part.chmod(0o600)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        logger.warning("what was measured cannot be kept in %s: %s", path.parent, error.strerror)
