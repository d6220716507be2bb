"""The NVIDIA driver of this machine, and whether it is new enough for torch. Asks neither torch nor a GPU."""

import ctypes
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

_LIBRARY = "libcuda.so.1"
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
# The oldest driver on Linux for a major version of CUDA, whatever the minor one (CUDA's release notes).
_OLDEST_DRIVERS = {12: "525.60.13", 13: "580.65.06"}


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA, major and minor, that the driver runs; None if there is no driver."""
    found = ctypes.c_int()
    try:
        status = ctypes.CDLL(_LIBRARY).cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return None if status else (found.value // 1000, found.value % 1000 // 10)


def driver_problem() -> str | None:
    """The reason why torch cannot use the driver, as a sentence; None if it can, or if there is no driver."""
    runs = cuda_of_driver()
    if runs is None:
        return None
    torch_version, needs = _torch()
    if needs is None:
        return f"there is an NVIDIA driver, but torch {torch_version} is built without CUDA"
    if runs[0] >= needs[0]:
        return None
    oldest = _OLDEST_DRIVERS.get(needs[0])
    newer = f" (driver {oldest} or newer)" if oldest else ""
    return (
        f"the NVIDIA driver{_driver_version()} runs CUDA up to {runs[0]}.{runs[1]}, "
        f"and torch {torch_version} needs CUDA {needs[0]}.{needs[1]}{newer}"
    )


def _driver_version() -> str:
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _KERNEL_MODULE.read_text())
    except OSError:
        return ""
    return f" {found[1]}" if found else ""


def _torch() -> tuple[str, tuple[int, int] | None]:
    """torch's version, and the CUDA that it is built for. To import torch would take seconds."""
    spec = find_spec("torch")
    assert spec is not None, "torch is a dependency"
    assert spec.origin is not None, "torch is a package"
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    cuda = version["cuda"]
    if cuda is None:
        return version["__version__"], None
    major, minor = cuda.split(".")[:2]
    return version["__version__"], (int(major), int(minor))
