"""The live view of a denoiser: the requests in it, the forwards that they joined, and how fast it goes."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from deployments.engine.messages import DenoiseRequest
from deployments.engine.reports import ForwardStep

WINDOW_S = 5.0
LEFT_SHOWN_S = 10.0
MOST_LEFT = 64

State = Literal["waiting", "running", "done", "failed", "canceled"]
Outcome = Literal["denoised", "failed", "canceled"]


class RequestStatus(NamedTuple):
    """A request as it is or was.

    model: the digest of its ModelRef
    step: its steps that are done; rows: in its last forward, or in its first if that is still to come
    work_s: device-seconds that are left; 0 while costs are unknown
    came_at, joined_at, left_at: in seconds since the epoch; joined_at: when its first forward began
    first_forward, last_forward: numbers of forwards, counted from 1

    Each forward makes one for each of its requests: `_replace` takes 1.4 us, a frozen dataclass's 5.
    """

    request_id: str
    model: str
    height: int
    width: int
    steps: int
    step: int
    rows: int
    work_s: float
    state: State
    came_at: float
    joined_at: float | None = None
    left_at: float | None = None
    first_forward: int | None = None
    last_forward: int | None = None


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """What a denoiser has done since its start, how fast it was in the last WINDOW_S, and its requests.

    images: denoised ones; requests: those here and those that left lately, in the order in which they came
    """

    forwards: int
    rows: int
    images: int
    forwards_per_s: float
    rows_per_forward: float
    images_per_s: float
    requests: tuple[RequestStatus, ...]


@dataclass(frozen=True, slots=True)
class DenoiserStatus:
    """A denoiser's part of the live status.

    device: cpu, cuda or simulated; models: the digests of the U-Nets on it
    max_rows: the most rows in a forward of the usual size
    """

    device: str
    models: tuple[str, ...]
    max_rows: int
    batch: BatchStatus


class RunningBatch:
    """Keeps the view. Its status may be read on any thread. clock: in seconds since the epoch"""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._here: dict[str, RequestStatus] = {}
        self._left: deque[RequestStatus] = deque(maxlen=MOST_LEFT)
        self._forwards = self._rows = self._images = 0
        self._lately: deque[tuple[float, int]] = deque()  # time and rows of each forward
        self._denoised_lately: deque[float] = deque()

    def come(self, request: DenoiseRequest, model: str) -> None:
        """A request is here. model: the digest of its ModelRef"""
        came = RequestStatus(
            request_id=request.request_id,
            model=model,
            height=request.height,
            width=request.width,
            steps=request.num_steps,
            step=request.resume_from.step if request.resume_from else 0,
            rows=request.rows_at(request.first_call),
            work_s=request.work_left_s or 0.0,
            state="waiting",
            came_at=self._clock(),
        )
        with self._lock:
            self._here[request.request_id] = came

    def forward(self, steps: Sequence[ForwardStep], seconds: float) -> None:
        """A forward is done, which took so long. It may be of requests that have left meanwhile."""
        now = self._clock()
        rows = sum(step.rows for step in steps)
        with self._lock:
            self._forwards += 1
            self._rows += rows
            self._lately.append((now, rows))
            while self._lately[0][0] <= now - WINDOW_S:
                self._lately.popleft()
            for step in steps:
                if (before := self._here.get(step.request_id)) is not None:
                    self._here[step.request_id] = _after(before, step, self._forwards, now - seconds)

    def leave(self, request_id: str, outcome: Outcome) -> None:
        """A request has left."""
        now = self._clock()
        with self._lock:
            last = self._here.pop(request_id)
            state: State = "done" if outcome == "denoised" else outcome
            self._left.append(last._replace(state=state, work_s=0.0, left_at=now))
            if outcome == "denoised":
                self._images += 1
                self._denoised_lately.append(now)
                while self._denoised_lately[0] <= now - WINDOW_S:
                    self._denoised_lately.popleft()

    def status(self) -> BatchStatus:
        now = self._clock()
        with self._lock:
            requests = (*self._left, *self._here.values())
            lately = [rows for at, rows in self._lately if at > now - WINDOW_S]
            num_denoised = sum(at > now - WINDOW_S for at in self._denoised_lately)
            forwards, rows, images = self._forwards, self._rows, self._images
        shown = [one for one in requests if one.left_at is None or one.left_at > now - LEFT_SHOWN_S]
        return BatchStatus(
            forwards=forwards,
            rows=rows,
            images=images,
            forwards_per_s=len(lately) / WINDOW_S,
            rows_per_forward=sum(lately) / len(lately) if lately else 0.0,
            images_per_s=num_denoised / WINDOW_S,
            requests=tuple(sorted(shown, key=lambda one: one.came_at)),
        )


def _after(before: RequestStatus, step: ForwardStep, number: int, began: float) -> RequestStatus:
    """A request after the forward of that number, which began then."""
    joins = before.first_forward is None
    share_left = (before.steps - step.step) / max(1, before.steps - before.step)
    return before._replace(
        state="running",
        step=step.step,
        rows=step.rows,
        work_s=before.work_s * share_left,
        joined_at=began if joins else before.joined_at,
        first_forward=number if joins else before.first_forward,
        last_forward=number,
    )
