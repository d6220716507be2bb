"""Files of results: settings, hardware, versions and summaries, but no paths or host names."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.bench.report import Summary

PACKAGES = ("midstep", "aiohttp", "ray", "torch")


@dataclass(frozen=True)
class Results:
    """hardware, versions: of the machine that made the load; settings: options of the runs"""

    name: str
    date: str  # ISO 8601, UTC
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    summaries: Sequence[Summary]


_FORMAT = TypeAdapter(Results)


def new_results(name: str, settings: Mapping[str, Any], summaries: Sequence[Summary]) -> Results:
    """Makes results with the current time and this machine's hardware."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Results(name, date, _hardware(), _versions(), settings, summaries)


def write_results(results: Results, path: Path) -> None:
    path.write_bytes(_FORMAT.dump_json(results, indent=2) + b"\n")


def read_results(path: Path) -> Results:
    """Reads results. Raises ValueError, which says what is wrong, and OSError."""
    try:
        return _FORMAT.validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ValueError(f"{path}: is not a result of midstep bench: {place}: {problem['msg']}") from error


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "gpus": _gpus(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split("\n")[:-1]
