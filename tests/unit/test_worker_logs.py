"""Workers' output: the part on the terminal, and the part only in the log file."""

from pathlib import Path
from typing import Any

import pytest

from cluster.worker_logs import Line, WorkerLogs, lines_of

INFO = "INFO 2026-11-29 13:00:00,123 midstep_Denoiser ab12 -- cost of U-Net forwards"
REQUEST = "INFO 2026-11-29 13:00:00,123 midstep_Ingress ab12 req-1 -- POST /v1/images/generations 200 340.1ms"
WARNING = "WARNING 2026-11-29 13:00:00,123 midstep_Ingress ab12 req-1 -- the job store does not answer"
ERROR = "ERROR 2026-11-29 13:00:00,123 controller 12 -- Exception in replica"
NOISE = (
    "WARNING 2026-11-29 13:00:00,123 controller 12 -- Cannot deregister autoscaling state for deployment "
    "Deployment(name='Runner', app='midstep') because it is not registered"
)
TRACEBACK = ["Traceback (most recent call last):", '  File "x.py", line 1', "RuntimeError: no disk"]
JSON = '{"levelname": "%s", "asctime": "now", "message": "told as JSON"}'


def batch(*lines: str, is_err: bool = True, pid: object = 7) -> dict[str, Any]:
    return {"actor_name": "ServeReplica:midstep:Denoiser", "pid": pid, "is_err": is_err, "lines": lines}


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([INFO, "rows ms", "1 8.0"], []),
        ([REQUEST], []),
        ([NOISE], []),
        ([WARNING], [WARNING]),
        ([INFO, ERROR, *TRACEBACK, INFO, "rows"], [ERROR, *TRACEBACK]),
        ([JSON % "INFO"], []),
        ([JSON % "ERROR"], [JSON % "ERROR"]),
        (
            ["\x1b[33mlib.py:1: UserWarning: old\x1b[0m", "  warn()"],
            ["lib.py:1: UserWarning: old", "  warn()"],
        ),
        (["Fatal Python error: Segmentation fault"], ["Fatal Python error: Segmentation fault"]),
        (["[2026-11-29 13:00:00,1 I 9 9] a.cc:1: fine"], []),
        (["[2026-11-29 13:00:00,1 E 9 9] a.cc:1: bad"], ["[2026-11-29 13:00:00,1 E 9 9] a.cc:1: bad"]),
        (["2026-11-29 13:00:00,123\tINFO worker.py:1 -- fine"], []),
    ],
)
def test_warnings_and_errors_are_shown_in_full_and_nothing_else(lines: list[str], shown: list[str]) -> None:
    assert [line.text for line in lines_of(batch(*lines)) if line.is_shown] == shown


def test_what_is_printed_without_a_level_is_shown_if_it_is_an_error() -> None:
    printed = batch("hello", "ValueError: bad", is_err=False)
    assert [line.text for line in lines_of(printed) if line.is_shown] == ["ValueError: bad"]


def test_a_line_knows_who_said_what() -> None:
    [line] = lines_of(batch(REQUEST))
    assert line == Line("Denoiser", REQUEST, "POST /v1/images/generations 200 340.1ms", "INFO")


def test_the_file_has_every_line(tmp_path: Path) -> None:
    shown: list[Line] = []
    seen: list[Line] = []
    logs = WorkerLogs(tmp_path / "midstep.log", shown.append, seen.append)
    logs.take(batch(REQUEST))
    logs.take(batch(WARNING, "  and more"))
    logs._file.close()
    written = (tmp_path / "midstep.log").read_text().splitlines()
    assert written == [f"(Denoiser) {line}" for line in (REQUEST, WARNING, "  and more")]
    assert [line.text for line in shown] == [WARNING, "  and more"]
    assert len(seen) == 3
