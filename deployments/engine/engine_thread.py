"""The thread that owns a device: it alone touches the engine; others post to its inbox.

Until a step is to be launched or finished it takes in what is posted (newcomers, aborts); after each step it
hands the events over in one call.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from deployments.engine.denoising import Denoising, Engine, StepReport
from deployments.engine.messages import DenoiseEvent, DenoiseFailed, DenoiseRequest

logger = logging.getLogger(__name__)

# So many broken steps in a row, with none between that worked, and the device is taken for lost.
MAX_BROKEN_STEPS = 3


@dataclass(frozen=True, slots=True)
class _Add:
    requests: Sequence[DenoiseRequest]
    arrival: float  # in seconds since the epoch: a step may still run, and that wait counts


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class EngineThread:
    """Builds an engine and runs it, both on its own thread.

    Building there is more than tidy: where two threads of a process have each started OpenMP's workers, these
    outnumber the cores, stop spinning, and forwards on a CPU take nearly twice as long.

    deliver: called on this thread after each step with its events and what it did (None where it broke);
        must not block
    """

    def __init__(
        self,
        build: Callable[[], Engine],
        deliver: Callable[[Sequence[DenoiseEvent], StepReport | None], None],
    ) -> None:
        self._build = build
        self._built: Future[Engine] = Future()
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[_Add | _Abort | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="denoising-engine", daemon=True)
        self._heartbeat = time.monotonic()
        self._broken_steps = 0
        self._device_fault: str | None = None

    def start(self) -> None:
        """Returns when the engine is built. Raises what its building raised."""
        self._thread.start()
        self._built.result()

    def stop(self) -> None:
        """Returns when what is being launched or waited for is; requests that are not finished stay so."""
        self._inbox.put(None)
        self._thread.join()

    def add(self, requests: Sequence[DenoiseRequest]) -> None:
        self._inbox.put(_Add(requests, time.time()))

    def abort(self, request_id: str) -> None:
        self._inbox.put(_Abort(request_id))

    def problem(self, max_silence_s: float) -> str | None:
        """Why this engine cannot go on, or None: for health checks, from any thread."""
        if not self._thread.is_alive():
            return "the engine thread has ended"
        if self._device_fault is not None:
            return f"the device has failed: {self._device_fault}"
        if self._broken_steps >= MAX_BROKEN_STEPS:
            return f"the last {self._broken_steps} steps failed"
        silence = time.monotonic() - self._heartbeat
        if not self._engine.is_idle and silence > max_silence_s:
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
        while self._drain_inbox():
            if self._engine.must_finish:
                self._finish()
            else:
                self._launch()

    def _drain_inbox(self) -> bool:
        """Takes in what is posted until a step is to be launched or finished, or, if there is nothing to do,
        until something is; False when told to stop."""
        while True:
            timeout_s = None if self._engine.is_idle else self._engine.launch_in_s
            try:
                message = self._inbox.get(timeout=timeout_s)
            except queue.Empty:
                if timeout_s == 0.0:
                    return True
                continue
            self._heartbeat = time.monotonic()
            match message:
                case None:
                    return False
                case _Add(requests, arrival):
                    for request in requests:
                        self._add(request, arrival)
                case _Abort(request_id):
                    self._engine.abort(request_id)

    def _add(self, request: DenoiseRequest, arrival: float) -> None:
        try:
            self._engine.add(request, arrival)
        except Exception as error:  # a boundary as in _launch: this request is told, the others go on
            logger.exception("request %s could not be taken in", request.request_id)
            self._deliver([DenoiseFailed(request.request_id, str(error))], None)

    def _launch(self) -> None:
        batch = self._engine.waiting
        try:
            batch = self._engine.admit()
            self._engine.launch(batch)
        except Exception as error:  # the boundary of the loop: whatever broke, its requests are told
            if self._engine.finishing:
                self._finish()  # if the device had failed before, this batch is not to blame
            self._fail(batch, error)

    def _finish(self) -> None:
        batch = self._engine.finishing
        try:
            report = self._engine.finish()
        except Exception as error:  # likewise
            # What comes to light only now no other step of this process can be free of: so it is with CUDA.
            self._device_fault = f"{type(error).__name__}: {error}"
            self._fail(batch, error)
            return
        self._broken_steps = 0
        self._heartbeat = time.monotonic()
        self._deliver(report.events, report)

    def _fail(self, batch: Sequence[Denoising], error: Exception) -> None:
        self._broken_steps += 1
        ids = ", ".join(item.request.request_id for item in batch)
        logger.error("the step of requests %s failed", ids, exc_info=error)
        self._deliver(self._engine.fail(batch, f"{type(error).__name__}: {error}"), None)
