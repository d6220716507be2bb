"""The router that sends an image to the denoiser with the least work, within Serve's own router."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID

from deployments.engine.messages import Checkpoint, DenoiseRequest, PromptEmbeds, TokenCount
from serve.calls.routing import SAID_WITHIN_S, HeldModels, LeastWorkRouter, Outstanding, work_s
from tests.generation_requests import denoise_request

pytestmark = pytest.mark.anyio
ID = DeploymentID("Denoiser", "midstep")
EMBEDS = PromptEmbeds(
    torch.zeros(2, 1), torch.zeros(2, 1), torch.empty(0), torch.empty(0), TokenCount(2, 2), TokenCount(2, 2)
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def image(steps: int, model: str = "") -> DenoiseRequest:
    return denoise_request("id", EMBEDS, steps, work_s=steps * 0.1, model=model)


class Replica:
    """A replica as the router sees it."""

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, ID)
        self.max_ongoing_requests = 64
        self.routing_stats: dict[str, Any] = {}

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


class Result:
    """The result of a call. `end` does what Ray does when the call is over."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(None)


async def router_of(replicas: Sequence[Replica]) -> LeastWorkRouter:
    router = LeastWorkRouter(ID, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state()
    router.update_replicas(list(replicas))
    await asyncio.sleep(0.01)  # it asks the replicas how many requests they have
    return router


def pending(request: DenoiseRequest | None, internal_request_id: str = "http") -> PendingRequest:
    return PendingRequest([request] if request else [], {}, RequestMetadata("id", internal_request_id))


async def chosen(router: LeastWorkRouter, call: PendingRequest) -> ReplicaID:
    """The replica chosen by Serve, with Serve's own code around our choice."""
    replica: Replica = await router._choose_replica_for_request(call)
    return replica.replica_id


async def test_work_is_balanced_and_not_the_number_of_images() -> None:
    router = await router_of([Replica("a"), Replica("b")])
    long = await chosen(router, pending(image(50)))
    short = [await chosen(router, pending(image(10))) for _ in range(4)]
    assert long not in short


async def test_a_burst_is_spread_before_any_replica_has_answered() -> None:
    replicas = [Replica(name) for name in "abcd"]
    router = await router_of(replicas)
    choices = await asyncio.gather(*(chosen(router, pending(image(20))) for _ in range(40)))
    assert Counter(choices) == {replica.replica_id: 10 for replica in replicas}


async def test_what_is_done_counts_no_longer() -> None:
    router = await router_of([Replica("a"), Replica("b")])
    call, result = pending(image(50)), Result()
    first = await chosen(router, call)
    router.on_request_routed(call, first, result)
    assert await chosen(router, pending(image(20))) != first
    result.end()
    await asyncio.sleep(0)  # Ray calls back on its own thread, and the router's loop hears of it next
    assert await chosen(router, pending(image(20))) == first


async def test_images_of_one_http_request_end_one_by_one() -> None:
    """Serve gives them the same id."""
    router = await router_of([Replica("a")])
    calls = [pending(image(steps)) for steps in (10, 30)]
    results = [Result(), Result()]
    for call, result in zip(calls, results, strict=True):
        router.on_request_routed(call, await chosen(router, call), result)
    [replica_id] = router.curr_replicas
    results[0].end()
    router.on_request_completed(replica_id, "http")
    await asyncio.sleep(0)
    assert router._outstanding.of(replica_id, 1) == work_s(image(30))


@pytest.mark.parametrize("how", ["refused", "canceled"])
async def test_what_never_got_to_a_replica_does_not_count(how: str) -> None:
    router = await router_of([Replica("a"), Replica("b")])
    call = pending(image(50))
    if how == "refused":
        router.on_request_completed(await chosen(router, call), "http")
    else:
        await router.choose_replicas(list(router.curr_replicas.values()), call)
        call.future.cancel()
        await asyncio.sleep(0)
    assert not router._unanswered
    assert {router._outstanding.of(replica_id, 0) for replica_id in router.curr_replicas} == {0}


async def test_the_choice_that_serve_changed_is_what_counts() -> None:
    """Serve may give the chosen replica to a call that has waited longer."""
    router = await router_of([Replica("a"), Replica("b")])
    call = pending(image(50))
    chosen_id = await chosen(router, call)
    [other_id] = router.curr_replicas.keys() - {chosen_id}
    router.on_request_routed(call, other_id, Result())
    assert router._outstanding.of(chosen_id, 0) == 0
    assert router._outstanding.of(other_id, 1) == work_s(image(50))


def test_requests_of_others_count_as_ones_own_in_the_mean() -> None:
    outstanding = Outstanding()
    assert outstanding.of("a", 3) > outstanding.of("b", 2), "by their number, while there are none of its own"
    outstanding.assign(1, "a", 100)
    outstanding.assign(2, "b", 300)
    assert outstanding.of("a", 1) == 100
    assert outstanding.of("a", 3) == 100 + 2 * 200
    assert outstanding.of("c", 1) == 200
    assert outstanding.of("b", 0) == 300, "what has not arrived there yet counts as well"


def test_other_calls_weigh_nothing_and_a_resumed_image_what_is_left_of_it() -> None:
    whole = image(20)
    rest = replace(whole, resume_from=Checkpoint("id", 15, 15, torch.zeros(1)))
    assert work_s(whole) == pytest.approx(2.0)
    assert work_s(rest) == pytest.approx(0.5)
    assert work_s(replace(whole, work_s=None)) == 1.0, "before costs are known"


async def test_a_call_without_an_image_is_routed() -> None:
    router = await router_of([Replica("a")])
    replica_id = await chosen(router, pending(None))
    assert router._outstanding.of(replica_id, 0) == 0


def test_a_replica_that_does_not_hold_the_model_weighs_the_load_more() -> None:
    now = [100.0]
    held = HeldModels(lambda: now[0])
    said = {"models": ("a", "b"), "load_s": 2.5}
    assert held.load_s("x", said, "a") == 0
    assert held.load_s("x", said, "c") == 2.5
    assert held.load_s("x", {}, "c") == 0, "it has not said anything yet"
    assert held.load_s("x", said, None) == 0
    held.sent("x", "c")
    assert held.load_s("x", said, "c") == 0, "it will hold it once it gets to what was sent"
    assert held.load_s("y", said, "c") == 2.5
    now[0] += SAID_WITHIN_S
    assert held.load_s("x", said, "c") == 2.5, "since then it has said that it does not"


async def test_an_image_goes_to_the_replica_that_holds_its_model() -> None:
    first, second = Replica("a"), Replica("b")
    first.routing_stats = {"models": ("one",), "load_s": 3.0}
    second.routing_stats = {"models": ("two",), "load_s": 3.0}
    router = await router_of([first, second])
    for _ in range(3):
        assert await chosen(router, pending(image(10, model="two"))) == second.replica_id
    # Three images of a second each are as much as a load.
    assert await chosen(router, pending(image(10, model="one"))) == first.replica_id
    assert await chosen(router, pending(image(11, model="two"))) == second.replica_id
    assert await chosen(router, pending(image(1, model="two"))) == first.replica_id
