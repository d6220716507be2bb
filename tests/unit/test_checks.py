"""A configuration file is checked to its last key, and against its model, before anything is deployed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster import server
from cluster.cli import main
from serve.checks import check
from serve.config.model import PROJECT_FOLDER
from serve.config.schema import ConfigError
from tests import tiny_models


def write(folder: Path, changes: dict[str, object], args: dict[str, object]) -> Path:
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]} | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        (
            {"proxy_locaton": "HeadOnly"},
            {},
            "proxy_locaton: unknown key; the nearest one is 'proxy_location'",
        ),
        ({"http_options": {"prot": 1}}, {}, "http_options.prot: unknown key; the nearest one is 'port'"),
        ({}, {"limit": {}}, r"applications\[0\].args.limit: unknown key; the nearest one is 'limits'"),
        ({}, {"model": {"dtype": "x"}}, r"applications\[0\].args.model.dtype: "),
        (
            {},
            {"model": {"path": "./nowhere"}},
            r"applications\[0\].args.model.path: there is no folder './nowhere'",
        ),
        ({}, {"defaults": {"width": 100}}, r"applications\[0\].args.defaults.width: 100 is not a multiple"),
        (
            {"http_options": {"port": 80000}},
            {},
            "http_options.port: 80000 is not a port; ports go from 0 to 65535",
        ),
        ({"grpc_options": {"port": -1}}, {}, "grpc_options.port: -1 is not a port"),
        (
            {"proxy_location": "Headonly"},
            {},
            "proxy_location: 'Headonly' was given; allowed are 'Disabled', 'HeadOnly' or 'EveryNode'",
        ),
        ({"logging_config": {"log_level": "LOUD"}}, {}, 'logging_config.log_level: Got "LOUD" for log_level'),
        ({"applications": 3}, {}, "applications: Input should be a valid list"),
        ({"applications": [{"name": "a"}]}, {}, r"applications\[0\].import_path: is missing"),
    ],
)
def test_a_file_is_checked_to_its_last_key(
    tmp_path: Path, changes: dict[str, object], args: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(write(tmp_path, changes, args))


def test_the_shipped_file_is_right() -> None:
    check(PROJECT_FOLDER / "serve_config.yaml")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("é: 1".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not YAML: 'utf-8' codec"):
        check(path)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="is not a mapping"):
        check(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"denoser": {}}, "unknown key; the nearest one is 'denoiser'"),
        ({"defaults": {"width": 100}}, "defaults.width: 100 is not a multiple of 8"),
    ],
)
def test_nothing_is_run_that_cannot_be(
    args: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["midstep", "run", str(write(tmp_path, {}, args))])
    monkeypatch.setattr(server, "serve_config", lambda *_: pytest.fail("it was run"))
    with pytest.raises(SystemExit, match=message):
        main()


def test_all_that_is_wrong_with_a_model_is_said_by_check_and_by_run(
    tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m", "unet/config.json", sample_size="big")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    tiny_models.use_pickle(folder, "vae")
    path = write(tmp_path, {}, {"model": {"path": str(folder)}})
    monkeypatch.setattr(server, "serve_config", lambda *_: pytest.fail("it was run"))
    for command in ("check", "run"):
        monkeypatch.setattr(sys, "argv", ["midstep", command, str(path)])
        with pytest.raises(SystemExit) as refused:
            main()
        where = f"{path}: applications[0].args.model.path: model {str(folder)!r}: "
        lines = str(refused.value).splitlines()
        assert all(line.startswith(where) for line in lines)
        assert [line.removeprefix(where).split()[0].rstrip(":") for line in lines] == [
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "vae/diffusion_pytorch_model.bin",
        ]


def test_a_quantization_without_torchao_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.checks.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"args\.model\.quantization: int8 needs torchao, which is not inst"
    ):
        check(write(tmp_path, {}, {"model": {"quantization": "int8"}}))
    simulated = {"device": "simulated", "cost_model": "cluster/devices/h200-sd15.json"}
    check(write(tmp_path, {}, {"model": simulated | {"quantization": "int8"}}))


def test_a_simulated_device_needs_no_weights(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    simulated = {"device": "simulated", "cost_model": "cluster/devices/h200-sd15.json"}
    check(
        write(
            tmp_path,
            {},
            {"model": {"path": str(folder)} | simulated},
        )
    )
    with pytest.raises(ConfigError, match=r"unet/diffusion_pytorch_model\.safetensors is not there"):
        check(write(tmp_path, {}, {"model": {"path": str(folder)}}))
