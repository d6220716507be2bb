"""`make serve` before anything is installed: the Python that it picks, and its display of pip."""

import io
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from cluster.install import quiet_pip
from serve.config.model import PROJECT_FOLDER

PACKAGES = ("serve", "deployments", "cluster")
SCRIPT = Path("cluster/install/make-venv.sh").resolve()


def make_venv(folder: Path, pythons: dict[str, str], *name: str) -> "subprocess.CompletedProcess[str]":
    """pythons: the version of each available one, by name; one with a `!` cannot create environments"""
    programs = folder / "bin"
    programs.mkdir()
    for python, version in pythons.items():
        status = 1 if version.endswith("!") else 0
        file = programs / python
        file.write_text(
            '#!/bin/sh\ncase "$*" in\n'
            f"*version_info*) echo {version.rstrip('!')} ;;\n"
            f"*ensurepip*) exit {status} ;;\n"
            f'*) echo "{python} $*" ;;\nesac\n'
        )
        file.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", SCRIPT, "place", *name],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3": "3.11.2"}, "python3"),
        ({"python3": "3.10.13", "python3.11": "3.11.7", "python3.13": "3.13.0"}, "python3.11"),
        ({"python3.14": "3.14.0", "python3.12": "3.12.1"}, "python3.12"),
        ({"python3.11": "3.11.7!", "python3.13": "3.13.0"}, "python3.13"),
    ],
)
def test_the_first_python_that_fits_makes_the_environment(
    pythons: dict[str, str], taken: str, tmp_path: Path
) -> None:
    done = make_venv(tmp_path, pythons)
    assert done.stdout == f"{taken} -m venv --clear place\n"
    assert f"with Python {pythons[taken]}" in done.stderr


def test_a_python_that_was_named_is_taken_and_no_other(tmp_path: Path) -> None:
    done = make_venv(tmp_path, {"mine": "3.12.0", "python3.13": "3.13.0"}, "mine")
    assert done.stdout == "mine -m venv --clear place\n"


@pytest.mark.parametrize(
    ("pythons", "words"),
    [
        ({}, "none was found"),
        ({"python3": "3.10.13"}, "python3 is 3.10.13."),
        ({"python3.12": "3.12.3!"}, "apt install python3.12-venv"),
    ],
)
def test_where_none_fits_a_sentence_says_what_there_is(
    pythons: dict[str, str], words: str, tmp_path: Path
) -> None:
    done = make_venv(tmp_path, pythons)
    assert done.returncode == 1
    assert "Midstep needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert words in done.stderr


@pytest.mark.parametrize(
    ("given", "pins", "folder"),
    [
        ([], "constraints-sdpa.txt", ".venv"),
        (["ATTENTION=xformers"], "constraints-xformers.txt", ".venv-xformers"),
    ],
)
def test_each_set_of_pins_has_an_environment_of_its_own(given: list[str], pins: str, folder: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "serve", *given],
        cwd=PROJECT_FOLDER,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    made, installed, touched, served = done.stdout.splitlines()
    assert made.startswith(f"cluster/install/make-venv.sh {folder} ")
    assert installed.startswith(f"{folder}/bin/python cluster/install/quiet_pip.py {folder}/pip.log ")
    assert f"--constraint {pins} " in installed
    assert touched == f"touch {folder}/installed"
    assert served == f'{folder}/bin/midstep run "serve_config.yaml"'


def test_another_attention_is_refused_with_what_is_allowed() -> None:
    command = ["make", "--dry-run", "serve", "ATTENTION=flash"]
    done = subprocess.run(command, cwd=PROJECT_FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ATTENTION: 'flash' was given; allowed are sdpa and xformers" in done.stderr


def test_the_pins_for_xformers_have_the_torch_that_it_is_built_for() -> None:
    try:
        xformers = distribution("xformers")
    except PackageNotFoundError:
        pytest.skip("there is no xformers for this machine")
    built = json.loads(Path(xformers.locate_file("xformers/cpp_lib.json")).read_text())["version"]
    assert f"xformers=={xformers.version}" in (PROJECT_FOLDER / "constraints.txt").read_text()
    pinned = (PROJECT_FOLDER / "constraints-xformers.txt").read_text().splitlines()
    assert f"torch=={built['torch'].partition('+')[0]}" in pinned


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting torch>=2.10 (from midstep==0.1.0)", "resolving torch"),
        (
            "  Downloading torch-2.13.0-cp313-cp313-manylinux_2_28_x86_64.whl (530.7 MB)",
            "downloading torch (530.7 MB)",
        ),
        ("  Downloading https://a.b/c/aiohttp-3.14.5-cp311-linux.whl.metadata", "downloading aiohttp"),
        ("Installing collected packages: mpmath, zipp, yarl", "unpacking 3 packages"),
        ("Requirement already satisfied: pip", None),
    ],
)
def test_what_pip_does_is_read_from_what_it_says(line: str, shown: str | None) -> None:
    assert quiet_pip.activity(line) == shown


def test_what_pip_says_is_shown_in_full_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no-such-project"
    monkeypatch.setattr(sys, "argv", ["quiet_pip.py", str(tmp_path / "log"), "--no-index", str(missing)])
    assert quiet_pip.main() == 1
    shown = capsys.readouterr().err
    assert "pip failed with exit status 1:" in shown
    assert str(missing) in shown
    assert shown.endswith((tmp_path / "log").read_text())


def test_without_a_terminal_each_kind_of_activity_is_one_line() -> None:
    stream = io.StringIO()
    progress = quiet_pip.Progress(stream)
    for activity in ("resolving torch", "downloading torch", "resolving numpy", "unpacking 3 packages"):
        progress.set(activity)
        progress.draw()
    kinds = ("resolving", "downloading", "unpacking")
    assert stream.getvalue() == "".join(f"Installing: {kind} packages\n" for kind in kinds)


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13"])
def test_every_python_that_is_promised_can_read_the_sources(name: str) -> None:
    """The other tests run on one Python alone: its packages are gigabytes."""
    program = shutil.which(name)
    if program is None or subprocess.run([program, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{name} is not here")
    paths = [str(path) for folder in PACKAGES for path in (PROJECT_FOLDER / folder).rglob("*.py")]
    read = "import sys; [compile(open(path).read(), path, 'exec') for path in sys.argv[1:]]"
    subprocess.run([program, "-W", "error", "-c", read, *paths], check=True)
