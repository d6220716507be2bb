"""The machine checks of `midstep check` and `midstep run`: ports, folders, where HTTP is answered."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import machine_checks, server
from cluster.cli import main
from cluster.machine_checks import port_problem
from cluster.ports import free_port
from serve.config.model import PROJECT_FOLDER


@pytest.fixture(autouse=True)
def ray_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes the variables that `midstep run` sets for Ray."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def write(folder: Path, port: int, **changes: Any) -> Path:
    config = yaml.safe_load((PROJECT_FOLDER / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    args = config["applications"][0]["args"]
    args["model"] |= changes.pop("model", {})
    args["denoiser"] = changes.pop("denoiser", {})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def test_a_taken_port_is_told_by_check_and_by_run(
    tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "serve_config", lambda *_: pytest.fail("it was run"))
    path = write(tmp_path, taken_port)
    told = f"http_options.port: {taken_port} on 127.0.0.1 is taken by a running program"
    with pytest.raises(SystemExit, match=told):
        main(["run", str(path)])
    assert main(["check", str(path)]) == 0, "the server that runs with this file may be what has the port"
    assert told.replace("port: ", "port: not here, ") in capsys.readouterr().out


def test_ports_of_a_ray_that_is_joined_are_its_own(
    tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str | None] = []
    monkeypatch.setattr(server, "serve_config", lambda _, address: addresses.append(address))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(["run", str(write(tmp_path, taken_port))]) == 0
    assert addresses == ["10.0.0.1:6379"]


def test_every_item_that_is_in_order_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    path = write(tmp_path, port)
    assert main(["check", str(path)]) == 0
    lines = [line.removeprefix(f"{path}: ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "keys: ok"
    assert lines[1] == "catalog: ok, its 1 files can be read"
    assert lines[2].startswith("model shapes: ok, all its files are in ")
    assert lines[3] == "proxy_location: ok, HeadOnly: HTTP is answered on the head node"
    assert lines[4] == f"http_options.port: ok, {port} is free on 127.0.0.1"


def test_nothing_would_answer_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "serve_config", lambda *_: pytest.fail("it was run"))
    with pytest.raises(SystemExit, match="'Disabled' was given, with which nothing answers HTTP"):
        main(["run", str(write(tmp_path, free_port(), proxy_location="Disabled"))])


@pytest.mark.parametrize(
    ("args", "cuda", "problem", "words"),
    [
        ({"model": {"device": "cuda"}}, None, None, "there is no NVIDIA driver"),
        ({"denoiser": {"num_gpus": 0.8}}, None, None, "there is no NVIDIA driver"),
        ({"model": {"device": "cuda"}}, (12, 2), "the driver is old", "the driver is old"),
        ({"denoiser": {"num_gpus": 0.8}}, (12, 2), "the driver is old", "the driver is old"),
    ],
)
def test_a_missing_gpu_is_told_by_check_and_by_run(
    args: dict[str, Any],
    cuda: tuple[int, int] | None,
    problem: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray would wait for a GPU for ever. One that is joined may have some elsewhere."""
    served: list[str | None] = []
    monkeypatch.setattr(server, "serve_config", lambda _, address: served.append(address))
    monkeypatch.setattr(machine_checks, "cuda_of_driver", lambda: cuda)
    monkeypatch.setattr(machine_checks, "driver_problem", lambda: problem)
    path = str(write(tmp_path, free_port(), **args))
    assert main(["check", path]) == 0
    assert f"model.device: not here, {words}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"model.device: {words}"):
        main(["run", path])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(["run", path]) == 0
    assert served == ["10.0.0.1:6379"]


def test_a_model_that_can_take_the_cpu_is_run_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str | None] = []
    monkeypatch.setattr(server, "serve_config", lambda _, address: served.append(address))
    monkeypatch.setattr(machine_checks, "driver_problem", lambda: "the driver is old")
    assert main(["run", str(write(tmp_path, free_port()))]) == 0
    assert served == [None]


def test_a_model_of_the_hub_is_said_to_be_looked_at_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(write(tmp_path, free_port(), model={"path": "someone/something"}))]) == 0
    assert "model shapes: ok, the hub is asked for someone/something at start\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no.such.host.invalid", "has no address"),
        ("a..b", "has no address"),
        ("192.0.2.1", "is no address of this machine"),
    ],
)
def test_a_host_that_cannot_be_listened_at_is_told(host: str, words: str) -> None:
    assert words in str(port_problem(host, free_port()))
