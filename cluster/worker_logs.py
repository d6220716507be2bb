"""The output of Ray's workers: all of it goes to a file, warnings and errors to the terminal as well.

Workers print Serve's and Midstep's log lines, each with its level, and the output of libraries.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

_MAX_FILE_BYTES = 64 * 2**20
_NUM_OLD_FILES = 3
_SHOWN_LEVELS = ("WARNING", "ERROR", "CRITICAL")
# Lines that begin a record: as Serve logs them, as Ray's Python does, and as its C++ does.
_SERVE = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d{4}-\d\d-\d\d .*? -- (.*)")
_RAY = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s+(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+(.*)")
_NATIVE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ ([DIWEFC]) [^\]]*\] (.*)")
_NATIVE_LEVELS = {"D": "DEBUG", "I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL", "C": "CRITICAL"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Serve warns so of each deployment with a fixed number of replicas, at every start: nothing is wrong.
_MEANS_NOTHING = re.compile(r"Cannot deregister autoscaling state for deployment .* it is not registered")
_SAYS_SO = re.compile(r"(Warning|Error|Exception):")


@dataclass(frozen=True)
class Line:
    """A line printed by a worker. source: its deployment, or else its process

    level: of its log record, None if it has none
    """

    source: str
    text: str
    message: str
    level: str | None

    @property
    def is_shown(self) -> bool:
        return self.level in _SHOWN_LEVELS and not _MEANS_NOTHING.match(self.message)


def lines_of(batch: Mapping[str, Any]) -> Iterable[Line]:
    """The lines of one process. Lines that begin no record belong to the previous one, if there is one.

    Lines without a level are shown if they came from stderr, because a dying process has no time for a level.
    """
    actor = str(batch.get("actor_name") or "")
    source = actor.rpartition(":")[2] or str(batch.get("pid", ""))
    level = None
    for raw in batch.get("lines", ()):
        text = _COLOUR.sub("", raw).rstrip()
        begun = _begun(text)
        if begun is not None:
            level, message = begun
        else:
            message = text
            if level is None and text and (_SAYS_SO.search(text) or _is_unsaid_error(batch)):
                level = "WARNING"
        yield Line(source, text, message, level)


def _is_unsaid_error(batch: Mapping[str, Any]) -> bool:
    return bool(batch.get("is_err")) and batch.get("pid") != "autoscaler"


def _begun(text: str) -> tuple[str, str] | None:
    """The level and the message of the record that a line begins."""
    if text.startswith("{"):
        try:
            record = json.loads(text)
            return str(record["levelname"]), str(record["message"])
        except (ValueError, KeyError, TypeError):
            return None
    if found := _SERVE.match(text) or _RAY.match(text):
        return found[1], found[2]
    if found := _NATIVE.match(text):
        return _NATIVE_LEVELS[found[1]], found[2]
    return None


class WorkerLogs:
    """Takes batches of lines. show: called with warnings and errors; see: called with every line"""

    def __init__(self, path: Path, show: Callable[[Line], None], see: Callable[[Line], None]) -> None:
        self.path = path
        self._show = show
        self._see = see
        self._file = RotatingFileHandler(path, maxBytes=_MAX_FILE_BYTES, backupCount=_NUM_OLD_FILES)

    def take(self, batch: Mapping[str, Any]) -> None:
        is_chatter = batch.get("pid") == "autoscaler"  # a table every five seconds
        for line in lines_of(batch):
            if is_chatter and not line.is_shown:
                continue
            record = {"msg": f"({line.source}) {line.text}", "levelno": logging.INFO}
            self._file.emit(logging.makeLogRecord(record))
            self._see(line)
            if line.is_shown:
                self._show(line)
