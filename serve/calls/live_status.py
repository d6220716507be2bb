"""The live status of the application, made at most twice a second for all who watch it."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

from deployments.engine.model_source import ModelRef
from deployments.running_batch import WINDOW_S, DenoiserStatus, RequestStatus
from serve.calls.denoise_requests import ImagePass
from serve.calls.denoiser_statuses import DenoiserStatuses
from serve.calls.fleet import Fleet, Replicas
from serve.calls.live_answers import (
    LiveDenoiser,
    LiveQueue,
    LiveReplicas,
    LiveRequest,
    LiveStages,
    LiveStatus,
    LiveThroughput,
)
from serve.live_ids import live_id

INTERVAL_S = 0.5
_FRESH_S = 0.25
_EARLY_S = 0.001  # timers go off a little before their time
# A client that connects but does not read would else fill the proxy's memory, at some ten kB a second.
MOST_WATCHED_S = 600.0

Models = Mapping[str, ModelRef]  # by their ids


@dataclass(frozen=True, slots=True)
class _Reading:
    """A status that was read. number: that of the last change; at: by the event loop's clock"""

    status: LiveStatus
    text: str
    number: int
    at: float


class StatusBoard:
    """Keeps the last status. Whoever needs a newer one reads it, and all others wait for that.

    device: as the configuration names it, until a denoiser has said what it is
    models: the served ones
    """

    def __init__(
        self,
        fleet: Fleet,
        device: str,
        models: Callable[[], Models],
        denoisers: DenoiserStatuses,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._device = device
        self._models = models
        self._denoisers = denoisers
        self._clock = clock
        self._turn = asyncio.Lock()
        self._last: _Reading | None = None

    async def now(self) -> str:
        """The status in JSON, at most 0.25 s old."""
        return (await self._reading(_FRESH_S)).text

    async def changes(self) -> AsyncGenerator[str, None]:
        """The status in JSON, at once and whenever more than the clock has changed. Ends after ten minutes,
        and when this replica is to go."""
        clock, shown = asyncio.get_running_loop().time, None
        end = clock() + MOST_WATCHED_S
        while clock() < end and not self._fleet.is_leaving:
            last = await self._reading(INTERVAL_S)
            if last.number != shown:
                shown = last.number
                yield last.text
            await asyncio.sleep(last.at + INTERVAL_S - clock())

    async def _reading(self, max_age_s: float) -> _Reading:
        async with self._turn:
            at = asyncio.get_running_loop().time()
            if self._last is None or at - self._last.at >= max_age_s - _EARLY_S:
                self._last = await self._read(at, self._last)
            return self._last

    async def _read(self, at: float, last: _Reading | None) -> _Reading:
        replicas = self._fleet.replicas
        denoisers = await self._denoisers.read(replicas["denoiser"].actors)
        self._device = next((one.device for one in denoisers.values()), self._device)
        status = status_of(self._clock(), self._device, replicas, denoisers, self._models())
        is_new = last is None or status | {"now": 0} != last.status | {"now": 0}
        number = (last.number if last else 0) + is_new
        return _Reading(status, json.dumps(status, separators=(",", ":")), number, at)


def status_of(
    now: float,
    device: str,
    replicas: Mapping[str, Replicas],
    denoisers: Mapping[str, DenoiserStatus],
    models: Models,
) -> LiveStatus:
    """The status from its parts. replicas: by stage; denoisers: by replica id"""
    requests = [one for denoiser in denoisers.values() for one in denoiser.batch.requests]
    shown = _Models(models)
    return {
        "object": "status",
        "now": round(now, 3),
        "device": device,
        "stages": _stages(replicas),
        "queue": _queue(requests, replicas["denoiser"].running),
        "throughput": _throughput(denoisers),
        "denoisers": [_denoiser(name, one, shown) for name, one in denoisers.items()],
    }


class _Models:
    """Served models by their digests. Of several with the same files the first counts."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._ids: dict[str, str] = {}
        for model_id, ref in models.items():
            self._ids.setdefault(ref.digest, model_id)

    def id_of(self, digest: str) -> str | None:
        return self._ids.get(digest)

    def with_unets(self, digests: tuple[str, ...]) -> list[str]:
        return [model_id for model_id, ref in self._models.items() if ref.unet in digests]


def _stages(replicas: Mapping[str, Replicas]) -> LiveStages:
    def shown(stage: str) -> LiveReplicas:
        found = replicas[stage]
        return {"running": found.running, "starting": found.starting, "stopping": found.stopping}

    return {
        "ingress": shown("ingress"),
        "encoder": shown("encoder"),
        "denoiser": shown("denoiser"),
        "decoder": shown("decoder"),
        "runner": shown("runner"),
    }


def _queue(requests: list[RequestStatus], num_denoisers: int) -> LiveQueue:
    here = [one for one in requests if one.left_at is None]
    work_s = sum((one.work_s for one in here), start=0.0)
    return {
        "images": len(here),
        "waiting": sum(one.state == "waiting" for one in here),
        "work_s": round(work_s, 3),
        "seconds": round(work_s / max(1, num_denoisers), 3),
    }


def _throughput(denoisers: Mapping[str, DenoiserStatus]) -> LiveThroughput:
    batches = [one.batch for one in denoisers.values()]
    forwards_per_s = sum(one.forwards_per_s for one in batches)
    rows_per_s = sum(one.forwards_per_s * one.rows_per_forward for one in batches)
    return {
        "window_s": WINDOW_S,
        "forwards_per_s": round(forwards_per_s, 2),
        "rows_per_forward": round(rows_per_s / forwards_per_s, 2) if forwards_per_s else 0.0,
        "images_per_s": round(sum(one.images_per_s for one in batches), 2),
    }


def _denoiser(name: str, denoiser: DenoiserStatus, models: _Models) -> LiveDenoiser:
    batch = denoiser.batch
    return {
        "id": name,
        "models": models.with_unets(denoiser.models),
        "max_rows": denoiser.max_rows,
        "forwards": batch.forwards,
        "rows": batch.rows,
        "images": batch.images,
        "forwards_per_s": round(batch.forwards_per_s, 2),
        "rows_per_forward": round(batch.rows_per_forward, 2),
        "images_per_s": round(batch.images_per_s, 2),
        "requests": [_request(one, models) for one in batch.requests],
    }


def _request(request: RequestStatus, models: _Models) -> LiveRequest:
    made = ImagePass.of_id(request.request_id)
    return {
        "id": live_id(made.request_id),
        "image": made.index,
        "pass": made.in_pass,
        "model": models.id_of(request.model),
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "step": request.step,
        "rows": request.rows,
        "state": request.state,
        "came_at": round(request.came_at, 3),
        "joined_at": _rounded(request.joined_at),
        "left_at": _rounded(request.left_at),
        "first_forward": request.first_forward,
        "last_forward": request.last_forward,
    }


def _rounded(at: float | None) -> float | None:
    return None if at is None else round(at, 3)
