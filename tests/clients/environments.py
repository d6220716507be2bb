"""The clients that Midstep is tested with, and an environment for each. Versions are pinned here only."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

CALLS = Path(__file__).parent
FOLDER = CALLS.parents[1] / "build" / "clients"
PYTEST = "pytest==9.2.0"
PILLOW = "pillow==12.3.0"
# Variables that would connect an environment with the outside.
_UNWANTED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OPENAI_API_KEY", "REPLICATE_API_TOKEN")


@dataclass(frozen=True)
class Client:
    """name: name of the file with its calls; sdist, wheel: distributions to unpack instead of installing,
    because only their scripts are needed and few of their dependencies"""

    name: str
    requirements: tuple[str, ...]
    sdist: str | None = None
    wheel: str | None = None
    in_ci: bool = False

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


_OPENAI = "openai==3.57.0"
_BENCHMARK = ("aiohttp==3.14.5", "numpy==2.4.6", "requests==2.34.2", "tqdm==4.70.1", PILLOW, PYTEST)
PYTHON_CLIENTS = (
    Client(
        "openai",
        # The last four are for its own tests.
        (
            f"openai[aiohttp]{_OPENAI.removeprefix('openai')}",
            PILLOW,
            PYTEST,
            "pytest-asyncio==1.5.0",
            "rich==15.0.0",
        ),
        sdist=_OPENAI,
        in_ci=True,
    ),
    Client("replicate_1", ("replicate==1.0.7", PILLOW, PYTEST), in_ci=True),
    Client("replicate_2", ("replicate==2.0.0b4", PILLOW, PYTEST), in_ci=True),
    Client("langchain", ("langchain-community==0.4.2", _OPENAI, PILLOW, PYTEST), in_ci=True),
    Client("webuiapi", ("webuiapi==0.9.17", "requests==2.34.2", PILLOW, PYTEST), in_ci=True),
    Client("open_webui", ("requests==2.34.2", PILLOW, PYTEST), in_ci=True),
    Client("litellm", ("litellm==1.110.0", PILLOW, PYTEST)),
    Client("aiperf", ("aiperf==0.13.0", PYTEST)),
    Client("vllm_omni", _BENCHMARK, sdist="vllm-omni==0.20.0"),
    Client("sglang", (*_BENCHMARK, "huggingface_hub==2.4.0"), wheel="sglang==0.5.23"),
)
NODE_PACKAGES = ("openai@6.49.0", "replicate@1.4.0")


def environment(**more: str) -> dict[str, str]:
    """The variables of a client's process."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
    return kept | {"HF_HUB_OFFLINE": "1"} | more


def python_of(client: Client) -> Path:
    """The Python of the client's environment. It is created unless it exists with the pinned versions."""
    python = client.folder / "bin" / "python"
    if not _is_made(client.folder, pinned := json.dumps([sys.version, asdict(client)])):
        subprocess.run([sys.executable, "-m", "venv", client.folder], check=True)
        _pip(python, "install", *client.requirements)
        if client.sdist:
            _download(python, client.folder, client.sdist, "--no-binary", client.sdist.partition("==")[0])
        if client.wheel:
            _download(python, client.folder, client.wheel, "--only-binary", ":all:")
        _note(client.folder, pinned)
    return python


def node_packages() -> Path:
    """The folder that npm's packages are installed in."""
    folder = FOLDER / "node"
    if not _is_made(folder, pinned := json.dumps(NODE_PACKAGES)):
        folder.mkdir(parents=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *NODE_PACKAGES],
            cwd=folder,
            check=True,
        )
        _note(folder, pinned)
    return folder


def _is_made(folder: Path, pinned: str) -> bool:
    """Removes a folder that is incomplete or was made for other versions."""
    note = folder / "pinned.json"
    if note.exists() and note.read_text() == pinned:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _note(folder: Path, pinned: str) -> None:
    (folder / "pinned.json").write_text(pinned)


def _pip(python: Path, command: str, *arguments: str) -> None:
    subprocess.run(
        [python, "-m", "pip", command, "-qq", "--disable-pip-version-check", *arguments],
        env=environment(),
        check=True,
    )


def _download(python: Path, folder: Path, requirement: str, *options: str) -> None:
    """Unpacks a distribution into the environment's folder `unpacked`."""
    with tempfile.TemporaryDirectory() as downloads:
        _pip(python, "download", "--no-deps", "--dest", downloads, *options, requirement)
        [archive] = Path(downloads).iterdir()
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder / "unpacked")
        else:
            shutil.unpack_archive(archive, folder / "unpacked", filter="data")
