"""Runs parts one after another within a budget, and owns the file of their results.

This process never touches the device. So whatever happens there, the results so far are in the file, and the
next part runs in another worker.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part
from benchmarks.gpu.worker import Ended, Figure, Message, Ready, Settings, Warned, work

_PATIENCE_S = 5.0  # with a worker that has nothing left to do


class Report:
    """The results, printed and written as they come. The file is whole at every moment.

    path: None to print only
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self._content: dict[str, Any] = {"settings": settings, "environment": {}, "results": {}}

    @property
    def has_failures(self) -> bool:
        parts = (part for family in self._content["results"].values() for part in family.values())
        return any(part["status"] == "failed" for part in parts)

    def environment(self, environment: dict[str, str]) -> None:
        self._content["environment"] = environment
        print(json.dumps(environment), flush=True)
        self._write()

    def status(self, family: str, part: str, status: str, **fields: Any) -> None:
        """status: running, done, skipped, stopped (at its limit) or failed"""
        self._entry(family, part).update(status=status, **fields)
        print(f"{family} {part}: {status} {json.dumps(fields) if fields else ''}", flush=True)
        self._write()

    def figure(self, family: str, part: str, figure: Figure) -> None:
        self._entry(family, part).setdefault("figures", {})[figure.name] = figure.value
        print(f"    {figure.name}: {json.dumps(figure.value)}", flush=True)
        self._write()

    def warning(self, family: str, part: str, text: str) -> None:
        self._entry(family, part).setdefault("warnings", []).append(text)
        print(f"    warning: {text}", flush=True)
        self._write()

    def _entry(self, family: str, part: str) -> dict[str, Any]:
        entry: dict[str, Any] = self._content["results"].setdefault(family, {}).setdefault(part, {})
        return entry

    def _write(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(json.dumps(self._content, indent=2) + "\n")
        os.replace(beside, self._path)


class Worker:
    """A process with the device, from the runner's side."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, settings))
        self._process.start()
        theirs.close()

    def begin(self, part: Part, family: str) -> None:
        """Hands a part to the process, which may still be starting."""
        with suppress(BrokenPipeError):  # `messages` says that it has died
            self._connection.send((part.target, family))

    def messages(self, ends_at: float) -> Iterator[Message]:
        """What the worker sends until then, by time.monotonic. Ends with `Ended` if the process has died."""
        while (left_s := ends_at - time.monotonic()) > 0 and self._connection.poll(left_s):
            try:
                yield self._connection.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                yield Ended(f"the process ended with exit code {self._process.exitcode}", is_lost=True)
                return

    def end(self, patience_s: float) -> None:
        """Lets the process end by itself, or kills it after so long."""
        self._connection.close()
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()


class Runner:
    """Runs parts in a worker, and in another one when that is lost or does not come to an end.

    budget_s: of all parts together
    """

    def __init__(self, report: Report, settings: Settings, budget_s: float) -> None:
        self._report = report
        self._settings = settings
        self._budget_s = budget_s
        self._ends_at = 0.0
        self._worker: Worker | None = None

    def run(self, parts: Sequence[Part], families: Sequence[str]) -> None:
        self._ends_at = time.monotonic() + self._budget_s
        try:
            for part in parts:
                for family in families:
                    left_s = self._ends_at - time.monotonic()
                    if left_s >= part.needs_s:
                        self._run(part, family)
                        continue
                    reason = f"it needs {part.needs_s:g} s; {max(0.0, left_s):.1f} s of the budget are left"
                    self._report.status(family, part.name, "skipped", reason=reason)
        finally:
            self._end_worker(_PATIENCE_S)

    def _run(self, part: Part, family: str) -> None:
        self._report.status(family, part.name, "running")
        began = time.monotonic()
        self._worker = self._worker or Worker(self._settings)
        self._worker.begin(part, family)
        ended = self._follow(self._worker, part, family, min(self._ends_at, began + part.limit_s))
        fields: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
        if ended is None:
            status, fields["reason"] = "stopped", "its time was over, or that of the run"
        elif ended.error is not None:
            status, fields["reason"] = "failed", ended.error
        else:
            status = "done"
        self._report.status(family, part.name, status, **fields)
        if ended is None or ended.is_lost:
            self._end_worker(patience_s=0.0)

    def _follow(self, worker: Worker, part: Part, family: str, ends_at: float) -> Ended | None:
        """Takes in a part's figures. Returns its end; None if there was none in time."""
        for message in worker.messages(ends_at):
            match message:
                case Ready():
                    self._report.environment(message.environment)
                case Figure():
                    self._report.figure(family, part.name, message)
                case Warned():
                    self._report.warning(family, part.name, message.text)
                case Ended():
                    return message
        return None

    def _end_worker(self, patience_s: float) -> None:
        if self._worker is not None:
            self._worker.end(patience_s)
            self._worker = None
