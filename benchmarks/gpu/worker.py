"""The process that uses the device. It runs parts and sends each figure as soon as it is measured."""

import gc
import logging
import os
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench


@dataclass(frozen=True, slots=True)
class Settings:
    """repeats: a figure is the median of so many timings; num_inference_steps: of a picture"""

    repeats: int
    num_inference_steps: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The device and the versions of the libraries, once the worker can run parts."""

    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Warned:
    """A line of the log, such as that a step could not be captured."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a part. error: None if it succeeded; is_lost: whether the process has lost its device"""

    error: str | None = None
    is_lost: bool = False


Message = Ready | Figure | Warned | Ended


def end_with_parent() -> None:
    """Ends this process when its parent is gone, also if that was killed. A device is not kept busy then."""
    parent = parent_process()
    assert parent is not None, "only spawned processes have a parent"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


class _Warnings(logging.Handler):
    """Sends what is logged as a warning or worse."""

    def __init__(self, send: Callable[[Warned], None]) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(Warned(self.format(record)))


def work(connection: Connection, settings: Settings) -> None:
    """Runs the parts that `connection` names, until it is closed."""
    end_with_parent()
    # Here, so that the runner needs neither PyTorch nor a device to start a worker.
    from benchmarks.gpu.bench import Bench  # noqa: PLC0415

    lock = threading.Lock()  # a part may have threads that log

    def send(message: Message) -> None:
        with lock:
            connection.send(message)

    logging.getLogger().addHandler(_Warnings(send))
    bench = Bench.of_this_machine(settings)
    send(Ready(bench.environment()))
    with suppress(EOFError):
        while True:
            target, family = connection.recv()
            send(_released(bench, _run(bench, target, family, send)))


def _run(bench: "Bench", target: str, family: str, send: Callable[[Message], None]) -> Ended:
    from deployments.engine.device_faults import is_device_fault  # noqa: PLC0415

    try:
        for name, value in resolve_name(target)(bench, family):
            send(Figure(name, value))
    except Exception as error:  # the boundary of a part: the others go on
        return Ended(traceback.format_exc(), is_device_fault(error))
    return Ended()


def _released(bench: "Bench", ended: Ended) -> Ended:
    """A part's end, when its memory is free again."""
    try:
        gc.collect()
        bench.release_memory()
    except RuntimeError:  # CUDA answers with an earlier failure
        return Ended(ended.error or traceback.format_exc(), is_lost=True)
    return ended
