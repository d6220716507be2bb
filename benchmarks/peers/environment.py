"""An environment for the peers' packages: a layer over the project's, so that torch is there only once."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_FOLDER = ROOT / "build" / "peers-venv"


def peers_python() -> Path:
    """The environment's interpreter. It is made at the first call, and again when the requirements change."""
    python, installed = _FOLDER / "bin" / "python", _FOLDER / "installed"
    wanted = REQUIREMENTS.read_text()
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {REQUIREMENTS.relative_to(ROOT)} into {_FOLDER.relative_to(ROOT)}", flush=True)
    venv.create(_FOLDER, clear=True, with_pip=True)
    # The packages installed here come before the project's own, which may have other versions.
    own = next(_FOLDER.glob("lib/python*/site-packages"))
    (own / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True)
    installed.write_text(wanted)
    return python


def project_python() -> Path:
    return Path(sys.executable)
