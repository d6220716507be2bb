"""Runs `pip install` with one line of progress. All output of pip goes to a log file.

    python quiet_pip.py LOG ARGUMENTS...

If pip fails, its output is shown in full, and its exit status is this script's. It runs before anything is
installed, so it needs only Python.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

_INTERVAL_S = 0.5
_INTERRUPTED = 130  # the exit status of a shell for SIGINT
_REQUIREMENT = re.compile(r"Collecting ([\w.-]+)")
_DOWNLOAD = re.compile(r"Downloading (?:\S+/)?([\w.]+?)-\d\S* ?(\([^)]*\))?")
_INSTALL = re.compile(r"Installing collected packages: (.+)")


def activity(line: str) -> str | None:
    """The activity that a line of pip's output names; None if it names none."""
    if found := _REQUIREMENT.match(line.strip()):
        return f"resolving {found[1]}"
    if found := _DOWNLOAD.match(line.strip()):
        return " ".join(filter(None, ("downloading", found[1], found[2])))
    if found := _INSTALL.match(line.strip()):
        return f"unpacking {len(found[1].split(', '))} packages"
    return None


class Progress:
    """A progress line that is overwritten on a terminal; elsewhere one line per kind of activity."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._activity = "starting pip"
        self._kinds: set[str] = set()

    def set(self, activity: str) -> None:
        self._activity = activity
        kind = activity.split(maxsplit=1)[0]
        if not self._stream.isatty() and kind not in self._kinds:
            print(f"Installing: {kind} packages", file=self._stream, flush=True)
        self._kinds.add(kind)

    def draw(self) -> None:
        if self._stream.isatty():
            passed_s = time.monotonic() - self._start
            line = f"Installing: {self._activity}, {passed_s:.0f} s"[:79]
            print(f"\r{line:<79}", end="", file=self._stream, flush=True)

    def end(self, words: str) -> None:
        is_drawn = self._stream.isatty()
        print(f"\r{words:<79}" if is_drawn else words, file=self._stream, flush=True)

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._start


def install(log: Path, arguments: list[str], progress: Progress) -> int:
    """Runs pip and returns its exit status."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip,
    ):
        assert pip.stdout is not None

        def read(output: TextIO) -> None:
            for line in output:
                file.write(line)
                file.flush()
                if (now := activity(line)) is not None:
                    progress.set(now)

        reader = threading.Thread(target=read, args=(pip.stdout,))
        reader.start()
        while reader.is_alive():
            progress.draw()
            reader.join(_INTERVAL_S)
    return pip.returncode


def main() -> int:
    log, arguments = Path(sys.argv[1]), sys.argv[2:]
    progress = Progress(sys.stderr)
    try:
        status = install(log, arguments, progress)
    except KeyboardInterrupt:
        progress.end("The installation was interrupted.")
        return _INTERRUPTED
    if status:
        progress.end(f"pip failed with exit status {status}:")
        sys.stderr.write(log.read_text())
    else:
        progress.end(f"Installed in {progress.passed_s:.0f} s; pip's output is in {log}.")
    return status


if __name__ == "__main__":
    sys.exit(main())
