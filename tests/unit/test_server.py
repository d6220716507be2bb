"""`midstep run` before and after Ray: obstacles at the start, and errors of an application that failed."""

from pathlib import Path

import pytest

from cluster import server
from cluster.cli import main
from cluster.server import StartError, check_nothing_in_the_way, last_error
from serve.config.model import PROJECT_FOLDER
from serve.config.schema import ConfigError


@pytest.mark.parametrize("name", ["serve.py", "serve/__init__.py", "deployments.py"])
def test_a_module_that_replicas_would_import_in_place_of_ours_is_named(name: str, tmp_path: Path) -> None:
    check_nothing_in_the_way(tmp_path)
    module = tmp_path / name
    module.parent.mkdir(exist_ok=True)
    module.touch()
    in_the_way = tmp_path / name.removesuffix("/__init__.py")
    with pytest.raises(ConfigError, match=f"{in_the_way} is in the way of Midstep's package"):
        check_nothing_in_the_way(tmp_path)


def test_nothing_is_run_where_a_module_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "serve_config", lambda *_: pytest.fail("it was run"))
    (tmp_path / "serve.py").touch()
    with pytest.raises(SystemExit, match=r"serve\.py is in the way"):
        main(["run", str(PROJECT_FOLDER / "serve_config.yaml")])


def test_the_projects_own_folder_is_not_in_its_way() -> None:
    check_nothing_in_the_way(PROJECT_FOLDER)


TRACEBACK = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
ray::ServeReplica:ours:Denoiser.initialize_and_get_metadata() (pid=1)
KeyError: 'unet'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "denoiser.py", line 1, in __init__
deployments.engine.models.ModelLoadError: models/x: the variant is missing in
  unet/
  vae/
"""


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (
            ["The deployments ['Denoiser'] are unhealthy.", "", TRACEBACK],
            "the variant is missing in\n  unet/",
        ),
        (["Deploying failed:\nTraceback\nValueError: no such port", ""], "ValueError: no such port"),
        (["The deployments are unhealthy.", "", "no room"], "The deployments are unhealthy.; no room"),
    ],
)
def test_the_last_error_of_a_replica_is_told(messages: list[str], error: str) -> None:
    assert error in last_error(messages)
    assert "KeyError" not in last_error(messages)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "nowhere"])
def test_a_wrong_address_of_ray_is_named(address: str) -> None:
    with pytest.raises(StartError, match=f"RAY_ADDRESS: the Ray at '{address}' cannot be joined: "):
        server._connected(address)
