"""The planner's requests that start from a picture: accepted as the server does, and with exact times."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from simpy import Environment

from cluster.bench.answers import Kind
from cluster.bench.arrivals import poisson
from cluster.bench.mix import Mix, PlannedRequest, plan
from cluster.bench.tasks import Task
from cluster.bench.template import IMAGES_BODY, fill
from cluster.plan.devices import Device
from cluster.plan.load_plan import Goal, plan_load
from cluster.plan.model import Model
from cluster.plan.simulation import Simulation
from cluster.plan.stages import DecoderReplica, Overheads, VaeCall
from cluster.plan.validation import measured_request_s
from deployments.engine.cost import Curve, StageCost
from serve.errors import InvalidRequestError
from serve.generation import GenerationRequest
from serve.http.body import parse_body
from serve.http.openai.edit_schema import EditsBody, edit_of
from tests.unit.test_planning import (
    ALONE_S,
    COST,
    ONE_EACH,
    SHAPE,
    WAIT_S,
    ends,
    model,
    quiet,
    request,
)

ENCODE_S = 0.45 * 0.020  # unmeasured, from decoding
MEASURED = replace(COST, encode_picture=StageCost(((SHAPE, Curve(0.030, 1, 0.012)),)))


def edit(due_s: float, steps: int = 20, strength: float = 0.8, **fields: Any) -> PlannedRequest:
    return request(due_s, steps, task=Task.IMG2IMG, strength=strength, **fields)


def for_inpainting() -> Model:
    plain = model()
    return replace(plain, info=replace(plain.info, needs_mask=True))


def accepted_by_server(served: Model, planned: PlannedRequest) -> GenerationRequest:
    """The request that the server makes of the load generator's body."""
    height, width = served.served.default_size
    body = parse_body(EditsBody, json.dumps(fill(IMAGES_BODY, planned, (width, height))).encode())
    image, mask = (
        None if urls is None else base64.b64decode(urls[0].partition(",")[2])
        for urls in (body.image, body.mask)
    )
    return served.served.accept(replace(edit_of(body), image=image, mask=mask), "").request


@pytest.mark.parametrize(
    "planned",
    [
        edit(0.0),
        edit(0.0, 30, strength=0.35, width=192, height=128, num_images=3),
        edit(0.0, 20, strength=0.5, sampler="Heun"),
        replace(edit(0.0, 10, strength=1.0), task=Task.INPAINT),
    ],
    ids=["img2img", "size", "two calls a step", "inpaint"],
)
def test_a_request_is_accepted_as_the_server_accepts_it(planned: PlannedRequest) -> None:
    """Without any picture."""
    accepted = model().accepted(planned, "")
    assert replace(accepted_by_server(model(), planned), start=None) == accepted
    assert accepted.num_steps == int(planned.num_inference_steps * planned.strength)


def test_a_request_is_refused_as_the_server_refuses_it() -> None:
    no_step = edit(0.0, 4, strength=0.2)
    for accept in (model().accepted, lambda planned, _: accepted_by_server(model(), planned)):
        with pytest.raises(InvalidRequestError, match=r"^strength: .*leaves no step"):
            accept(no_step, "")
    outcomes = Simulation(model(), ONE_EACH).run([no_step, edit(0.0)]).outcomes
    assert [outcome.answer.kind for outcome in outcomes] == [Kind.REJECTED, Kind.COMPLETED]


def test_a_model_for_inpainting_needs_a_picture_and_a_mask() -> None:
    load = [request(0.0), edit(0.0), replace(edit(0.0), task=Task.INPAINT)]
    outcomes = Simulation(for_inpainting(), ONE_EACH).run(load).outcomes
    assert [outcome.answer.kind for outcome in outcomes] == [Kind.REJECTED, Kind.REJECTED, Kind.COMPLETED]


@pytest.mark.parametrize(
    ("cost", "encode_s"), [(COST, ENCODE_S), (MEASURED, 0.030)], ids=["part", "measured"]
)
def test_a_picture_is_encoded_beside_the_text_and_only_the_last_steps_are_done(
    cost: Any, encode_s: float
) -> None:
    """Once for all images. The text takes 8 ms, which is less."""
    [ended] = ends(Simulation(model(cost=cost), ONE_EACH).run([edit(1.0)]))
    assert ended - 1.0 == pytest.approx(ALONE_S - WAIT_S - 0.003 + encode_s - 4 * 0.010, abs=1e-12)
    [two] = ends(Simulation(model(cost=cost), ONE_EACH).run([edit(1.0, num_images=2)]))
    steps_s, decode_s = 16 * 0.018, 0.035
    assert two - 1.0 == pytest.approx(WAIT_S + encode_s + steps_s + decode_s, abs=1e-12)


def test_every_request_has_a_picture_of_its_own() -> None:
    """The text is cached at the second one, but the picture is not."""
    first, second = Simulation(model(), ONE_EACH).run([edit(0.0), edit(10.0)]).outcomes
    assert first.latency_s == pytest.approx(second.latency_s)


def test_both_directions_of_the_vae_share_a_thread_and_take_turns() -> None:
    """Batches of one: first come, first served."""
    env = Environment()
    replica = DecoderReplica(env, Device(env), 1, MEASURED, max_hold_s=1.0)
    ended: list[tuple[str, float]] = []

    def call(at: float, name: str, is_encoding: bool) -> Any:
        yield env.timeout(at)
        yield replica.run(VaeCall(SHAPE, is_encoding))
        ended.append((name, env.now))

    calls = [
        (0.0, "first", False),
        (0.001, "second", False),
        (0.002, "picture", True),
        (0.003, "third", False),
    ]
    env.run(env.all_of([env.process(call(*of)) for of in calls]))
    assert [name for name, _ in ended] == ["first", "second", "picture", "third"]
    assert [at for _, at in ended] == pytest.approx([0.020, 0.040, 0.070, 0.090])
    assert replica.work_s(VaeCall(SHAPE, is_encoding=True)) == pytest.approx(0.030)
    assert replica.work_s(VaeCall(SHAPE)) == pytest.approx(0.020)


def test_pictures_are_encoded_in_batches() -> None:
    env = Environment()
    replica = DecoderReplica(env, Device(env), 4, MEASURED, max_hold_s=0.045)
    env.run(env.all_of([replica.run(VaeCall(SHAPE, is_encoding=True)) for _ in range(3)]))
    assert env.now == pytest.approx(0.042 + 0.030), "two and one, as three take 54 ms"


def test_shorter_schedules_need_fewer_gpus() -> None:
    goal = Goal(slo_s=0.8, percentile=95, price=3.6, max_gpus=8)

    def gpus(strength: float) -> int:
        mix = Mix(tasks={Task.IMG2IMG: 1}, strengths={strength: 1})
        load = plan(poisson(16.0, 10.0, seed=2), mix, seed=2)
        best = plan_load(model(limits={"max_queue": 1000}), load, goal, quiet).best
        assert best is not None
        return best.gpus

    assert gpus(0.2) < gpus(1.0)


def test_decoders_are_counted_for_pictures_too() -> None:
    """Eight pictures and eight images a second take 1.2 s of a decoder, the images alone 0.16 s."""
    cost = replace(COST, encode_picture=StageCost(((SHAPE, Curve(0.130, 1, 0.130)),)))
    decoder = {"autoscaling": {"utilization": 0.5}, "max_batch_size": 1}
    goal = Goal(slo_s=1.0, percentile=95, price=3.6, max_gpus=2)
    load = plan(poisson(8.0, 20.0, seed=2), Mix(tasks={Task.IMG2IMG: 1}, strengths={0.2: 1}), seed=2)
    assert plan_load(model(cost=cost, decoder=decoder), load, goal, quiet).best is not None


def test_a_requests_overhead_is_measured_without_a_picture_where_one_can() -> None:
    truth = Overheads(0.030)
    asked: list[PlannedRequest] = []

    def found(server: Model, load: list[PlannedRequest]) -> float:
        simulation = Simulation(replace(server, overheads=truth), ONE_EACH)

        def send(planned: Any) -> Any:
            asked.extend(planned)
            return list(simulation.run(planned).outcomes)

        return measured_request_s(server, load, send)

    assert found(model(), [edit(0.0, strength=0.1), request(1.0)]) == pytest.approx(0.030, abs=1e-6)
    assert {one.task for one in asked} == {Task.TXT2IMG}
    asked.clear()
    repainted = replace(edit(0.0, strength=0.1), task=Task.INPAINT)
    assert found(for_inpainting(), [repainted]) == pytest.approx(0.030, abs=1e-6)
    assert {(one.task, one.strength) for one in asked} == {(Task.INPAINT, 1.0)}
