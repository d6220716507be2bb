"""The thread that owns a device. Only it touches the engine; other threads post to its inbox.

Until a step is due it takes in what is posted (new requests, aborts). After each step it delivers all events
in one call.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from deployments.engine.bank import Block
from deployments.engine.device_faults import is_device_fault, is_out_of_memory
from deployments.engine.engine import Engine
from deployments.engine.fitting import does_not_fit
from deployments.engine.messages import DenoiseFailed, DenoiseRequest
from deployments.engine.reports import StepReport
from deployments.engine.stage_errors import Fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Add:
    requests: Sequence[tuple[DenoiseRequest, Sequence[Block]]]
    arrival: float  # in seconds since the epoch; waiting for a running step counts


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class _Look:
    """A model has been loaded."""


class EngineThread:
    """Builds an engine and runs it, both on its own thread.

    Building on the same thread matters for speed. If two threads of a process have each started OpenMP's
    workers, the workers outnumber the cores and stop spinning, and CPU forwards take nearly twice as long.

    deliver: called on this thread after each step; must not block
    lost: called on this thread with the reason when the engine cannot go on, for example when its device is
        lost. Nobody is told before. The thread ends afterwards
    """

    def __init__(
        self,
        build: Callable[[], Engine],
        deliver: Callable[[StepReport], None],
        lost: Callable[[str], None],
    ) -> None:
        self._build = build
        self._built: Future[Engine] = Future()
        self._deliver = deliver
        self._lost = lost
        self._inbox: queue.SimpleQueue[_Add | _Abort | _Look | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="denoising-engine", daemon=True)
        self._heartbeat = time.monotonic()

    def start(self) -> None:
        """Returns when the engine is built. Raises the error of building it."""
        self._thread.start()
        self._built.result()

    def stop(self) -> None:
        """Returns when the current launch or wait is over. Unfinished requests get no further events."""
        self._inbox.put(None)
        self._thread.join()

    def add(self, requests: Sequence[tuple[DenoiseRequest, Sequence[Block]]]) -> None:
        """Adds requests, each with the adapters that it names."""
        self._inbox.put(_Add(requests, time.time()))

    def abort(self, request_id: str) -> None:
        self._inbox.put(_Abort(request_id))

    def look(self) -> None:
        """Lets the engine see that a model has been loaded."""
        self._inbox.put(_Look())

    def problem(self, max_silence_s: float) -> str | None:
        """The reason why this engine cannot go on, or None; for health checks, from any thread."""
        if not self._thread.is_alive():
            return "the engine thread has ended"
        silence = time.monotonic() - self._heartbeat
        if self._engine.due_in_s is not None and silence > max_silence_s:
            return f"no step has ended for {silence:.0f} s"
        return None

    @property
    def _engine(self) -> Engine:
        return self._built.result()

    def _run(self) -> None:
        try:
            self._built.set_result(self._build())
        except Exception as error:  # raised again by start()
            self._built.set_exception(error)
            return
        try:
            while self._take_in():
                report = self._engine.step()
                if report.forward is not None:
                    self._heartbeat = time.monotonic()
                self._deliver(report)
        except Exception as error:  # a lost device or a bug of ours: nobody steps the engine any more
            logger.critical("the engine cannot go on", exc_info=error)
            self._lost(f"{type(error).__name__}: {error}")

    def _take_in(self) -> bool:
        """Takes in posted messages until a step is due. Returns False when told to stop."""
        while True:
            due_in_s = self._engine.due_in_s
            try:
                message = self._inbox.get(timeout=due_in_s)
            except queue.Empty:
                if due_in_s == 0.0:
                    return True
                continue
            self._heartbeat = time.monotonic()
            match message:
                case None:
                    return False
                case _Add(requests, arrival):
                    for request, blocks in requests:
                        self._add(request, arrival, blocks)
                case _Abort(request_id):
                    self._engine.abort(request_id)
                case _Look():
                    self._engine.arrange()

    def _add(self, request: DenoiseRequest, arrival: float, blocks: Sequence[Block]) -> None:
        try:
            self._engine.add(request, arrival, blocks)
        except Exception as error:  # a boundary: this request fails, the others go on
            if is_device_fault(error):
                raise
            logger.exception("request %s could not be added", request.request_id)
            failed = DenoiseFailed(request.request_id, *_reason_and_fault(request, error))
            self._deliver(StepReport([failed], None))


def _reason_and_fault(request: DenoiseRequest, error: Exception) -> tuple[str, Fault]:
    """The reason and the fault of a request that could not be added."""
    if is_out_of_memory(error):
        too_large = does_not_fit("rows", request.latent_shape)
        return too_large.detail, too_large.fault
    return str(error), Fault.REFUSED if isinstance(error, ValueError) else Fault.BROKEN
