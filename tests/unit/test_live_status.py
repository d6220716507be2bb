"""The live status: what it shows, and how many read it at once."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from ray.exceptions import RayError

from deployments.running_batch import BatchStatus, DenoiserStatus, RequestStatus
from serve.calls import live_status
from serve.calls.denoise_requests import ImagePass
from serve.calls.denoiser_statuses import DenoiserStatuses
from serve.calls.fleet import Fleet, Replicas
from serve.calls.live_status import StatusBoard, status_of
from serve.live_ids import live_id
from tests import virtual_time
from tests.generation_requests import SOME_MODEL

STAGES = ("ingress", "encoder", "denoiser", "decoder", "runner")
IDLE = BatchStatus(0, 0, 0, 0.0, 0.0, 0.0, ())


def denoiser(**changes: Any) -> DenoiserStatus:
    return DenoiserStatus("cpu", ("unet",), 16, replace(IDLE, **changes))


def request(request_id: str, index: int = 0, in_pass: int = 0, **changes: Any) -> RequestStatus:
    shown = RequestStatus(
        ImagePass(request_id, index, in_pass).new_id(), "digest", 64, 96, 20, 0, 2, 1.0, "waiting", 1000.1234
    )
    return shown._replace(**changes)


def test_requests_are_shown_by_ids_that_only_their_clients_know() -> None:
    running: dict[str, Any] = {"state": "running", "step": 7, "joined_at": 1001.5}
    requests = (
        request("a/b", 3, 1, **running, first_forward=4, last_forward=9),
        request("gone", model="of a removed model", state="done", left_at=1002.0),
    )
    replicas = dict.fromkeys(STAGES, Replicas(1))
    [shown] = status_of(1003.0, "cpu", replicas, {"d": denoiser(requests=requests)}, {"shapes": SOME_MODEL})[
        "denoisers"
    ]
    assert (shown["id"], shown["models"], shown["max_rows"]) == ("d", ["shapes"], 16)
    assert shown["requests"][0] == {
        "id": live_id("a/b"),
        "image": 3,
        "pass": 1,
        "model": "shapes",
        "width": 96,
        "height": 64,
        "steps": 20,
        "step": 7,
        "rows": 2,
        "state": "running",
        "came_at": 1000.123,
        "joined_at": 1001.5,
        "left_at": None,
        "first_forward": 4,
        "last_forward": 9,
    }
    assert shown["requests"][1]["model"] is None
    assert "gone" not in json.dumps(shown)


def test_models_are_told_apart_by_all_their_files_and_those_with_one_unet_are_there_together() -> None:
    other = replace(SOME_MODEL, digest="another", vae="another")
    models = {"first": SOME_MODEL, "same files": SOME_MODEL, "other VAE": other}
    requests = (request("a"), request("b", model="another"))
    replicas = dict.fromkeys(STAGES, Replicas(1))
    [shown] = status_of(0.0, "cpu", replicas, {"d": denoiser(requests=requests)}, models)["denoisers"]
    assert shown["models"] == ["first", "same files", "other VAE"]
    assert [one["model"] for one in shown["requests"]] == ["first", "other VAE"]


def test_the_queue_and_the_throughput_are_those_of_all_denoisers() -> None:
    busy = denoiser(
        forwards_per_s=30.0,
        rows_per_forward=10.0,
        images_per_s=2.0,
        requests=(request("a", state="running"), request("b"), request("c", left_at=5.0, work_s=9.0)),
    )
    slow = denoiser(forwards_per_s=10.0, rows_per_forward=2.0, images_per_s=0.5, requests=(request("d"),))
    replicas = dict.fromkeys(STAGES, Replicas(1)) | {"denoiser": Replicas(2, starting=1)}
    status = status_of(0.0, "cpu", replicas, {"x": busy, "y": slow}, {})
    assert status["stages"]["denoiser"] == {"running": 2, "starting": 1, "stopping": 0}
    assert status["queue"] == {"images": 3, "waiting": 2, "work_s": 3.0, "seconds": 1.5}
    throughput = {"forwards_per_s": 40.0, "rows_per_forward": 8.0, "images_per_s": 2.5}
    assert status["throughput"] == {"window_s": 5.0, **throughput}


class Scripted(DenoiserStatuses):
    """Denoisers in this process. reads: when they were read"""

    def __init__(self) -> None:
        super().__init__()
        self.status = denoiser()
        self.reads: list[float] = []

    async def read(self, actors: Mapping[str, str]) -> dict[str, DenoiserStatus]:
        self.reads.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        return {"d": self.status}


class Board:
    def __init__(self) -> None:
        self.fleet = Fleet("app", {stage: stage for stage in STAGES[1:]}, "ingress", "a replica")
        self.denoisers = Scripted()
        loop = asyncio.get_running_loop()
        self.board = StatusBoard(self.fleet, "auto", dict, self.denoisers, loop.time)

    async def watch(self, seen: list[str]) -> None:
        async with aclosing(self.board.changes()) as changes:
            async for status in changes:
                seen.append(status)


def test_many_watchers_cost_one_reading_every_half_second() -> None:
    async def main() -> None:
        board = Board()
        seen: list[list[str]] = [[] for _ in range(20)]
        watchers = []
        for one in seen:
            watchers.append(asyncio.create_task(board.watch(one)))
            await asyncio.sleep(0.03)
        for forwards in range(1, 6):
            board.denoisers.status = denoiser(forwards=forwards)
            await asyncio.sleep(1.0)
        reads = board.denoisers.reads
        assert {round(later - earlier, 2) for earlier, later in pairwise(reads)} == {0.5}
        assert all(one[-5:] == seen[0][-5:] for one in seen)
        assert len(seen[0]) == 6, "those that changed nothing but the clock are not sent"
        for watcher in watchers:
            watcher.cancel()
        await asyncio.sleep(5.0)
        assert len(board.denoisers.reads) == len(reads), "nobody watches"

    virtual_time.run(main())


def test_whoever_asks_once_gets_what_is_no_older_than_a_quarter_of_a_second() -> None:
    async def main() -> None:
        board = Board()
        for _ in range(10):
            first, second = await asyncio.gather(board.board.now(), board.board.now())
            assert first == second
            await asyncio.sleep(0.1)
        assert len(board.denoisers.reads) == 4

    virtual_time.run(main())


def test_the_device_is_what_a_denoiser_has_said() -> None:
    async def main() -> None:
        board = Board()
        assert json.loads(await board.board.now())["device"] == "cpu"

    virtual_time.run(main())


def test_a_stream_ends_when_its_replica_is_to_go_and_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_status, "MOST_WATCHED_S", 20.0)

    async def main() -> None:
        board = Board()
        started = asyncio.get_running_loop().time()
        watcher = asyncio.create_task(board.watch([]))
        await asyncio.sleep(5.2)
        board.fleet.is_leaving = True
        await watcher
        assert asyncio.get_running_loop().time() - started < 5.6
        board.fleet.is_leaving = False
        await board.watch(seen := [])
        assert len(seen) == 1
        assert 20 <= asyncio.get_running_loop().time() - started - 5.5 < 21

    virtual_time.run(main())


class Replica:
    """A denoiser's replica. problem: what a call raises; answers: whether it answers"""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls = 0

    async def ask(self) -> DenoiserStatus:
        self.calls += 1
        await self.answers.wait()
        if self.problem:
            raise self.problem
        return denoiser(forwards=self.calls)


class Reader(DenoiserStatuses):
    """found: the actors that were looked for"""

    def __init__(self, **replicas: Replica) -> None:
        self.found: list[str] = []
        self.replicas = replicas

        def find(name: str) -> Replica:
            self.found.append(name)
            if name not in replicas:
                raise ValueError(name)
            return replicas[name]

        super().__init__(find, lambda replica, _: replica.ask())

    async def forwards(self) -> dict[str, int]:
        found = await self.read({name: name for name in ("a", "b", "gone")})
        return {name: one.batch.forwards for name, one in found.items()}


def test_one_that_is_gone_is_left_out_and_looked_for_again() -> None:
    async def main() -> None:
        a, b = Replica(), Replica()
        reader = Reader(a=a, b=b)
        assert await reader.forwards() == {"a": 1, "b": 1}
        assert await reader.forwards() == {"a": 2, "b": 2}
        assert sorted(reader.found) == ["a", "b", "gone", "gone"], "handles are kept"
        assert (await reader.read({"a": "a"})).keys() == {"a"}
        b.problem = RayError("it has died")
        assert await reader.forwards() == {"a": 4}, "what it said before it was forgotten is not shown"
        b.problem = None
        assert await reader.forwards() == {"a": 5, "b": 4}

    asyncio.run(main())


def test_one_that_does_not_answer_holds_up_nobody_and_gets_one_call() -> None:
    async def main() -> None:
        a, b = Replica(), Replica()
        b.answers.clear()
        reader = Reader(a=a, b=b)
        for number in range(1, 4):
            assert await reader.forwards() == {"a": number}
        assert b.calls == 1
        b.answers.set()
        while await reader.forwards() != {"a": a.calls, "b": b.calls}:
            pass
        b.answers.clear()
        assert (await reader.forwards())["b"] == b.calls - 1, "its last answer counts for a while"

    asyncio.run(main())
