"""Under a steady load each kind of replica is killed in turn. Nothing accepted is lost or done twice.

`make chaos` kills each of them MIDSTEP_KILLS=50 times.
"""

import asyncio
import base64
import itertools
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray

from serve.jobs.job import JobState
from tests.integration.conftest import replica

KILLS_OF_EACH = int(os.environ.get("MIDSTEP_KILLS", "1"))
KINDS = ("PromptEncoder", "Denoiser", "VaeDecoder", "Runner", "Ingress")
NUM_SEEDS = 4
FINAL = {state.value for state in JobState if state.is_final}
INPUT = {"prompt": "a small blue circle above a red square on a white background", "deterministic": True}
FINISH_TIMEOUT_S = 240.0
# One job and one request arrive per period, which has room for more than both: with more load, the next
# replicas would take longer to start, and requests would be refused.
IMAGES_PER_PERIOD = 4
# Above this, no more jobs are submitted, so that a slow machine can finish them too.
MAX_UNFINISHED = 50


@dataclass
class Load:
    """The accepted work, and the expected images. period_s: between two jobs, and between two requests"""

    expected: dict[int, bytes]
    period_s: float
    jobs: dict[str, int] = field(default_factory=dict)  # id: seed
    unfinished: dict[str, None] = field(default_factory=dict)  # ids, oldest first, as of the last look
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    ingress_is_down: bool = False

    async def hand_in(self, http: httpx.AsyncClient, seed: int) -> None:
        for job_id in list(self.unfinished)[:2]:
            asked = await self._answer(http, "GET", f"/v1/predictions/{job_id}", 200)
            if asked is not None and asked["status"] in FINAL:
                self.unfinished.pop(job_id, None)  # another one may have asked as well
        if len(self.unfinished) >= MAX_UNFINISHED:
            return
        created = await self._answer(http, "POST", "/v1/predictions", 201, json=_job(seed))
        if created is not None:
            self.jobs[created["id"]] = seed
            self.unfinished[created["id"]] = None

    async def ask(self, http: httpx.AsyncClient, seed: int) -> None:
        given = INPUT | {"seed": seed}
        made = await self._answer(http, "POST", "/v1/images/generations", 200, json=given)
        if made is not None:
            self.answered += 1
            if base64.b64decode(made["data"][0]["b64_json"]) != self.expected[seed]:
                self.failures.append("other bytes")

    async def _answer(
        self, http: httpx.AsyncClient, method: str, path: str, status: int, **options: Any
    ) -> dict[str, Any] | None:
        """The answer. None without a failure if the connection's ingress was killed or the queue was full.
        Anything else is a failure."""
        excused = self.ingress_is_down
        try:
            response = await http.request(method, path, **options)
        except httpx.TransportError as error:
            problem = repr(error)
        else:
            if response.status_code == status:
                answer: dict[str, Any] = response.json()
                return answer
            problem = f"{response.status_code}: {response.text}"
            excused |= response.status_code == 429
        if not (excused or self.ingress_is_down):
            self.failures.append(f"{method} {path}: {problem}")
        return None


def _job(seed: int) -> dict[str, Any]:
    return {"version": "shapes", "input": INPUT | {"seed": seed}}


@asynccontextmanager
async def steadily(load: Load, http: httpx.AsyncClient) -> AsyncIterator[None]:
    """Sends one job and one request per period, whether or not they are answered."""

    async def arrive() -> None:
        async with asyncio.TaskGroup() as group:
            for seed in itertools.cycle(range(NUM_SEEDS)):
                group.create_task(load.hand_in(http, seed))
                await asyncio.sleep(load.period_s / 2)
                group.create_task(load.ask(http, seed))
                await asyncio.sleep(load.period_s / 2)

    task = asyncio.create_task(arrive())
    try:
        yield
        assert not task.done(), "the load has ended by itself"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def kill(kind: str) -> str:
    """Kills a replica by SIGKILL. Returns the actor's name."""
    actor = replica(kind)
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    return str(actor._actor_id.hex())


async def replaced(kind: str, killed: str, http: httpx.AsyncClient) -> None:
    """Waits until another replica of the kind is running and the application is ready."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        try:
            is_another = await asyncio.to_thread(replica, kind)
            ready = await http.get("/readyz")
        except (ValueError, httpx.TransportError):
            continue
        if is_another._actor_id.hex() != killed and ready.status_code == 200:
            return
    raise AssertionError(f"no new {kind}")


def check_ends(log_folder: Path, job_ids: Collection[str]) -> None:
    """No job ended twice. A replica that is killed at that moment leaves no line about it."""
    line = re.compile(r"job ([0-9a-f]+) is (succeeded|failed|canceled), attempt ")
    logs = [path.read_text(errors="replace") for path in log_folder.glob("*.log")]
    ends = Counter(job_id for log in logs for job_id, _ in line.findall(log))
    assert ends.keys() & job_ids, "the log is where it is looked for"
    assert all(number == 1 for number in ends.values()), ends


async def check_jobs(load: Load, http: httpx.AsyncClient) -> None:
    for job_id, seed in load.jobs.items():
        prediction: dict[str, Any] = {}
        async with asyncio.timeout(FINISH_TIMEOUT_S):
            while prediction.get("status") not in FINAL:
                prediction = (await http.get(f"/v1/predictions/{job_id}")).json()
                await asyncio.sleep(0.05)
        assert prediction["status"] == "succeeded", prediction
        [url] = prediction["output"]
        assert (await http.get(url)).content == load.expected[seed]
    [head] = [node for node in ray.nodes() if node["Alive"]]
    check_ends(Path(head["RayletSocketName"]).parents[1] / "logs" / "serve", load.jobs)


def test_nothing_accepted_is_lost_whatever_is_killed(base_url: str) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=FINISH_TIMEOUT_S) as http:
            expected = {}
            started_at = time.monotonic()
            for seed in range(NUM_SEEDS):
                answer = (await http.post("/v1/images/generations", json=INPUT | {"seed": seed})).json()
                expected[seed] = base64.b64decode(answer["data"][0]["b64_json"])
            image_s = (time.monotonic() - started_at) / NUM_SEEDS
            load = Load(expected, IMAGES_PER_PERIOD * image_s)
            async with steadily(load, http):
                for _, kind in itertools.product(range(KILLS_OF_EACH), KINDS):
                    load.ingress_is_down = kind == "Ingress"
                    await asyncio.sleep(1.0)
                    await replaced(kind, await asyncio.to_thread(kill, kind), http)
                    load.ingress_is_down = False
            # The kills of one round take longer than two periods.
            assert len(load.jobs) >= 2 * KILLS_OF_EACH, load.failures
            assert load.answered >= 2 * KILLS_OF_EACH, load.failures
            await check_jobs(load, http)
            assert not load.failures, load.failures

    asyncio.run(run())
