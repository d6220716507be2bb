"""Simulated encoders and decoders: their calls to their devices, and the batches of all stages."""

from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from simpy import Environment, Event, Resource, Store

from cluster.plan.devices import Device
from deployments.batching import Batching
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.messages import LatentShape

Item = TypeVar("Item")
Call_contra = TypeVar("Call_contra", contravariant=True)
Process = Generator[Event, Any, Any]


class Replica(Protocol[Call_contra]):
    """A replica of any stage."""

    def work_s(self, call: Call_contra) -> float:
        """Device-seconds, as the stage counts them for autoscaling."""
        ...

    def routing_stats(self) -> Mapping[str, Any]:
        """What it says to routers."""
        ...

    def run(self, call: Call_contra) -> Event:
        """An event at the end of the call."""
        ...


@dataclass(frozen=True, slots=True)
class Overheads:
    """Overheads that the cost model does not know, in seconds.

    request_s: per request, outside of all stages
    step_s: per denoising step, besides its forward; negative if a device is faster than its costs
    slowdown: the factor by which forwards take longer than the cost model says, because of other work
    """

    request_s: float = 0.0
    step_s: float = 0.0
    slowdown: float = 1.0


class Batches(Generic[Item]):
    """Batches like `@serve.batch`: a batch closes when it is full or its first item has waited that long."""

    def __init__(self, env: Environment, batching: Batching, closed: Callable[[list[Item]], object]) -> None:
        self._env = env
        self._batching = batching
        self._closed = closed
        self._open: list[Item] = []

    def add(self, item: Item) -> None:
        self._open.append(item)
        if len(self._open) == self._batching.max_batch_size:
            self._close()
        elif len(self._open) == 1:
            batch = self._open
            waited = self._env.timeout(self._batching.batch_wait_timeout_s)
            waited.callbacks.append(lambda _: self._close() if batch is self._open else None)

    def _close(self) -> None:
        batch, self._open = self._open, []
        self._closed(batch)


class _BatchedCalls(Generic[Item]):
    """Batches that go to the device one after another, like those of one `@serve.batch` method.

    seconds: of the device for a batch
    """

    def __init__(
        self,
        env: Environment,
        device: Device,
        batching: Batching,
        seconds: Callable[[Sequence[Item]], float],
    ) -> None:
        self._env = env
        self._device = device
        self._seconds = seconds
        self._closed = Store(env)
        self._batches: Batches[tuple[Item, Event]] = Batches(env, batching, self._closed.put)
        env.process(self._work())

    def run(self, item: Item) -> Event:
        done = self._env.event()
        self._batches.add((item, done))
        return done

    def _work(self) -> Process:
        while True:
            batch = yield self._closed.get()
            yield self._device.run(self._seconds([item for item, _ in batch]))
            for _, done in batch:
                done.succeed()


class _GatheredCalls(Generic[Item]):
    """Items that go to the device together if they came while the thread was busy, as in `Gathered`.

    thread: the replica's one thread, first come, first served; parts_s: seconds of each call for a batch
    """

    def __init__(
        self,
        env: Environment,
        device: Device,
        thread: Resource,
        max_batch_size: int,
        parts_s: Callable[[Sequence[Item]], Sequence[float]],
    ) -> None:
        self._env = env
        self._device = device
        self._thread = thread
        self._max_batch_size = max_batch_size
        self._parts_s = parts_s
        self._waiting: list[tuple[Item, Event]] = []

    def run(self, item: Item) -> Event:
        done = self._env.event()
        self._waiting.append((item, done))
        self._env.process(self._take_turn())
        return done

    def _take_turn(self) -> Process:
        with self._thread.request() as turn:
            yield turn
            batch = self._waiting[: self._max_batch_size]
            del self._waiting[: self._max_batch_size]
            for seconds in self._parts_s([item for item, _ in batch]):
                yield self._device.run(seconds)
        for _, done in batch:
            done.succeed()


class EncoderReplica:
    """A simulated text encoder. Cached texts cost nothing."""

    def __init__(
        self, env: Environment, device: Device, batching: Batching, cost: Curve, cache_size: int
    ) -> None:
        self._env = env
        self._cost = cost
        self._text_s = cost.seconds_each(batching.max_batch_size)
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._cache_size = cache_size
        self._calls: _BatchedCalls[str] = _BatchedCalls(
            env, device, batching, lambda texts: cost.seconds(len(texts))
        )

    def work_s(self, call: Sequence[str]) -> float:
        return self._text_s * sum(text not in self._kept for text in call)

    def routing_stats(self) -> Mapping[str, Any]:
        return {}

    def run(self, call: Sequence[str]) -> Event:
        return self._env.all_of([self._encode(text) for text in call])

    def _encode(self, text: str) -> Event:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._env.timeout(0)
        done = self._calls.run(text)
        done.callbacks.append(lambda _: self._keep(text))
        return done

    def _keep(self, text: str) -> None:
        self._kept[text] = None
        while len(self._kept) > self._cache_size:
            self._kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class VaeCall:
    """A call of the decoder. is_encoding: encodes a picture, else decodes an image"""

    latent_shape: LatentShape
    is_encoding: bool = False


class DecoderReplica:
    """A simulated VAE: both directions have batches of their own, and one thread. No picture comes twice."""

    def __init__(
        self, env: Environment, device: Device, max_batch_size: int, cost: CostModel, max_hold_s: float
    ) -> None:
        self._max_batch_size = max_batch_size
        self._costs = {False: cost.decode, True: cost.picture}  # by is_encoding
        thread = Resource(env)
        self._calls: dict[bool, _GatheredCalls[LatentShape]] = {
            is_encoding: _GatheredCalls(
                env, device, thread, max_batch_size, partial(_parts_s, known, max_hold_s)
            )
            for is_encoding, known in self._costs.items()
        }

    def work_s(self, call: VaeCall) -> float:
        return self._costs[call.is_encoding].curve(call.latent_shape).seconds_each(self._max_batch_size)

    def routing_stats(self) -> Mapping[str, Any]:
        return {}

    def run(self, call: VaeCall) -> Event:
        return self._calls[call.is_encoding].run(call.latent_shape)


def _parts_s(cost: StageCost, max_hold_s: float, shapes: Sequence[LatentShape]) -> list[float]:
    """Seconds of each call for a batch, one shape per call."""
    return [
        cost.seconds(shape, size)
        for shape in dict.fromkeys(shapes)
        for size in cost.parts(shape, shapes.count(shape), max_hold_s)
    ]
