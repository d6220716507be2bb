"""The A1111 requests under way in this process: how far they are, and what ends them early."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deployments.engine.messages import NO_TOKENS, EncodedImage
from serve.generation import GenerationRequest, ImageDone, ImagePreview, PromptEncoded
from serve.http.a1111.answers import State
from serve.http.front_desk import Generation

_BEGUN = 0.01  # A1111's progress before the first step


class Run:
    """A request, and what has come of it so far. It can be stopped; then what has come is the result.

    job: A1111's name of what is done
    """

    def __init__(self, request: GenerationRequest, job: str) -> None:
        self.request = request
        self.job = job
        self.began_at = time.time()
        self.done: dict[int, ImageDone] = {}
        self.encoded = PromptEncoded(NO_TOKENS, NO_TOKENS)
        self.is_interrupted = self.is_skipped = False
        self._previews: dict[int, ImagePreview] = {}
        self._latest: ImagePreview | None = None
        self._reading: asyncio.Task[None] | None = None

    async def follow(self, generation: Generation) -> None:
        """Reads all events, or those until it is stopped. Raises what the generation raises."""
        self._reading = asyncio.create_task(self._read(generation))
        try:
            await asyncio.wait({self._reading})
        finally:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        is_stopped = self.is_interrupted or self.is_skipped
        if not (is_stopped and self._reading.cancelled()):
            self._reading.result()

    def interrupt(self) -> None:
        self.is_interrupted = True
        self._stop()

    def skip(self) -> None:
        self.is_skipped = True
        self._stop()

    @property
    def unfinished(self) -> Mapping[int, ImagePreview]:
        """The last previews of images that are not done."""
        return {index: one for index, one in self._previews.items() if index not in self.done}

    @property
    def current_image(self) -> EncodedImage | None:
        """The latest preview."""
        return self._latest.image if self._latest else None

    @property
    def steps_done(self) -> int:
        """The steps done of all images, as far as previews and finished images tell."""
        of_unfinished = sum(one.step for one in self.unfinished.values())
        return len(self.done) * self.request.steps_per_image + of_unfinished

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, _BEGUN + self.steps_done / (self.request.num_images * self.request.steps_per_image))

    @property
    def seconds_left(self) -> float:
        """As if every step took as long; before the first ones, the device-seconds of all."""
        if not self.steps_done:
            return self.request.work_s or 0.0
        return (time.time() - self.began_at) * (1 - self.progress) / self.progress

    @property
    def state(self) -> State:
        return {
            "skipped": self.is_skipped,
            "interrupted": self.is_interrupted,
            "stopping_generation": False,
            "job": self.job,
            "job_count": 1,
            "job_timestamp": timestamp(self.began_at),
            "job_no": 0,
            "sampling_step": self.steps_done // self.request.num_images,
            "sampling_steps": self.request.steps_per_image,
        }

    async def _read(self, generation: Generation) -> None:
        async for event in generation:
            match event:
                case PromptEncoded():
                    self.encoded = event
                case ImagePreview():
                    self._previews[event.image_index] = self._latest = event
                case ImageDone():
                    self.done[event.image_index] = event

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()


class Running:
    """The runs of each client, by its name. Other ingress replicas have their own."""

    def __init__(self) -> None:
        self._runs: dict[str, list[Run]] = {}
        self._last: dict[str, State] = {}  # of runs that have ended

    @contextmanager
    def listed(self, client: str, run: Run) -> Iterator[Run]:
        """Lists a run for as long as it is under way."""
        runs = self._runs.setdefault(client, [])
        runs.append(run)
        try:
            yield run
        finally:
            runs.remove(run)
            self._last[client] = run.state
            if not runs:
                del self._runs[client]

    def newest(self, client: str) -> Run | None:
        """The client's run that has begun last, of those under way."""
        return self._runs[client][-1] if client in self._runs else None

    def interrupt(self, client: str) -> None:
        """Ends all of the client's runs."""
        for run in list(self._runs.get(client, ())):
            run.interrupt()

    def idle_state(self, client: str) -> State:
        """The state of a client without a run: how the last one ended."""
        idle: State = {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "",
            "job_count": 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        }
        if last := self._last.get(client):
            idle["skipped"], idle["interrupted"] = last["skipped"], last["interrupted"]
            idle["job_timestamp"] = last["job_timestamp"]
        return idle


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as A1111 writes a job's time."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))
