"""A driver that is too old for torch is told of with both versions; nothing is on a CPU or GPU in silence."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.machine_checks import model_findings
from deployments.engine import cuda_driver
from deployments.engine.cuda_driver import cuda_of_driver, driver_problem
from deployments.engine.model_source import ModelLoadError, Placement
from serve import app
from serve.app import _with_device, build_app
from serve.config.app import AppConfig
from serve.config.schema import ConfigError

# Both lines are as drivers write them.
MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (root@x)\n"


class Driver:
    """A libcuda."""

    def __init__(self, version: int, status: int = 0) -> None:
        self._version, self._status = version, status

    def cuDriverGetVersion(self, found: Any) -> int:
        found._obj.value = self._version
        return self._status


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, needs: tuple[int, int] | None) -> None:
    """needs: the CUDA that torch is built for"""

    def library(_: str) -> Driver:
        if driver is None:
            raise OSError("no such file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr(cuda_driver, "_torch", lambda: ("2.13.0", needs))


def test_torch_s_own_file_says_what_it_is_built_for() -> None:
    version, cuda = cuda_driver._torch()
    assert version == torch.__version__
    assert (cuda is None) == (torch.version.cuda is None)
    assert cuda is None or f"{cuda[0]}.{cuda[1]}" == torch.version.cuda


def test_the_driver_says_which_cuda_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver, cuda in (
        (Driver(12020), (12, 2)),
        (Driver(13010), (13, 1)),
        (Driver(0, 999), None),
        (None, None),
    ):
        install(monkeypatch, driver, None)
        assert cuda_of_driver() == cuda


@pytest.mark.parametrize(
    ("runs", "needs", "fits"),
    [(12020, (13, 0), False), (12020, (12, 8), True), (13010, (12, 8), True), (13000, (13, 2), True)],
)
def test_a_driver_runs_all_of_its_major_version_and_older_ones(
    runs: int, needs: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Driver(runs), needs)
    assert (driver_problem() is None) == fits


@pytest.mark.parametrize(
    ("module", "version"), [(MODULE, " 535.183.01"), (OPEN_MODULE, " 580.82.07"), (None, "")]
)
def test_the_problem_names_what_is_there_and_what_is_needed(
    module: str | None, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is not None:
        (tmp_path / "version").write_text(module)
    monkeypatch.setattr(cuda_driver, "_KERNEL_MODULE", tmp_path / "version")
    install(monkeypatch, Driver(12020), (13, 0))
    assert driver_problem() == (
        f"the NVIDIA driver{version} runs CUDA up to 12.2, and torch 2.13.0 needs CUDA 13.0 "
        "(driver 580.65.06 or newer)"
    )
    install(monkeypatch, Driver(12020), None)
    assert driver_problem() == "there is an NVIDIA driver, but torch 2.13.0 is built without CUDA"
    install(monkeypatch, None, (13, 0))
    assert driver_problem() is None


def test_a_placement_says_what_is_wrong_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    install(monkeypatch, Driver(12020), (13, 0))
    with pytest.raises(ModelLoadError, match=r"device: cuda .* up to 12\.2, .* needs CUDA 13\.0"):
        Placement("cuda").torch_device()
    with pytest.warns(RuntimeWarning, match=r"device: auto computes on the CPU: .* up to 12\.2"):
        assert Placement("auto").torch_device().type == "cpu"
    install(monkeypatch, None, (13, 0))
    assert Placement("auto").torch_device().type == "cpu"
    with pytest.raises(ModelLoadError, match="torch sees no CUDA device here"):
        Placement("cuda").torch_device()


@pytest.mark.parametrize(
    ("capability", "architectures", "has_code"),
    [
        ((6, 1), ["sm_75", "sm_80", "compute_120"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_86"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((9, 0), ["sm_75", "sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 1), ["sm_75", "compute_120"], True),
        ((12, 0), ["sm_120"], True),
        ((7, 0), [], True),  # an emulated GPU
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_named(
    capability: tuple[int, int], architectures: list[str], has_code: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P4")
    if has_code:
        assert [Placement(device).torch_device().type for device in ("auto", "cuda")] == ["cuda", "cuda"]
        return
    major, minor = capability
    words = rf"Tesla P4 has compute capability {major}\.{minor}, and torch .* has code for sm_75, .* only"
    with pytest.raises(
        ModelLoadError, match=f"device: cuda cannot be used: {words}. device: cpu needs no GPU"
    ):
        Placement("cuda").torch_device()
    with pytest.warns(RuntimeWarning, match=f"device: auto computes on the CPU: {words}"):
        assert Placement("auto").torch_device().type == "cpu"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_check_tells_of_it_too(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver(12020), (13, 0))
    [_, finding] = model_findings(AppConfig.model_validate({"model": {"device": device}}))
    assert str(finding).startswith("model.device: not here, the NVIDIA driver")


def test_on_a_cluster_with_gpus_auto_reserves_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray hides no GPU from replicas that reserve none, so all of them would be on the first."""
    gpus = {"GPU": 4.0, "accelerator_type:GeForce-RTX-5090": 1.0}
    reserved = AppConfig.model_validate({"denoiser": {"num_gpus": 0.8}})
    monkeypatch.setattr(app.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(app.ray, "nodes", lambda: [{"Alive": True, "Resources": gpus}])
    install(monkeypatch, Driver(13000), (13, 0))
    assert 0 not in _with_device(AppConfig()).num_gpus().values()
    assert _with_device(AppConfig()).placement().device == "cuda"
    without = AppConfig.model_validate({"encoder": {"num_gpus": 0}})
    refused = (
        r"auto is cuda here, because Ray has GPUs\. .* encoder\.num_gpus must not be 0\. model\.device: cpu"
    )
    with pytest.raises(ConfigError, match=refused):
        build_app(without)
    some = AppConfig.model_validate({"encoder": {"num_gpus": 0}, "denoiser": {"num_gpus": 0.8}})
    with pytest.raises(ConfigError, match="auto is cuda here, because num_gpus reserves GPUs"):
        build_app(some)
    assert not caplog.records

    install(monkeypatch, Driver(12020), (13, 0))
    assert _with_device(AppConfig()).placement().device == "cpu"
    assert "model.device: auto is cpu, because the NVIDIA driver" in caplog.text
    assert _with_device(reserved).placement().device == "cuda", "its replicas refuse with the same words"

    gpus.clear()
    for driver in (None, Driver(13000)):
        install(monkeypatch, driver, (13, 0))
        assert _with_device(AppConfig()).placement().device == "cpu"
        assert _with_device(reserved).placement().device == "cuda", "its nodes may still come"


@pytest.mark.parametrize(
    ("kinds", "device"),
    [
        (["M3-Pro"], "cpu"),
        (["M4"], "cpu"),
        (["AMD-Instinct-MI300X-OAM"], "cpu"),
        ([None], "cpu"),
        (["M3-Pro", "H100"], "cuda"),
        (["M3-Pro", "RTX-PRO-6000"], "cuda"),
    ],
)
def test_only_nvidia_s_gpus_make_auto_cuda(
    kinds: list[str | None], device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray counts those of other vendors, and what a node is started with, as GPUs too."""
    named = [{f"accelerator_type:{kind}": 1.0} if kind else {} for kind in kinds]
    nodes = [{"Alive": True, "Resources": {"GPU": 1.0, **one}} for one in named]
    gone = {"Alive": False, "Resources": {"GPU": 1.0, "accelerator_type:H100": 1.0}}
    monkeypatch.setattr(app.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(app.ray, "nodes", lambda: [gone, *nodes])
    install(monkeypatch, None, (13, 0))
    assert _with_device(AppConfig()).placement().device == device
    assert ("no GPU that Ray has is NVIDIA's" in caplog.text) == (device == "cpu")


@pytest.mark.parametrize(
    ("driver", "device"), [(None, "cpu"), (Driver(13000), "cuda"), (Driver(12020), "cpu")]
)
def test_before_there_is_a_cluster_auto_goes_by_this_machine_s_driver(
    driver: Driver | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.ray, "is_initialized", lambda: False)
    install(monkeypatch, driver, (13, 0))
    assert _with_device(AppConfig()).placement().device == device
    for named in ("cpu", "cuda"):
        assert _with_device(AppConfig().on_device(named)).placement().device == named
