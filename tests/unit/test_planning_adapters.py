"""The planner, estimates and rehearsals with adapters: forwards cost what their ranks cost."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from simpy import Environment

from cluster.bench.answers import Kind
from cluster.bench.arrivals import poisson
from cluster.bench.mix import PlannedRequest
from cluster.cli import main
from cluster.plan.adapters import MadeUp, equipped, offering
from cluster.plan.denoiser import DenoiserReplica, DenoisingCosts, Room
from cluster.plan.devices import Device
from cluster.plan.model_slots import Loads
from cluster.plan.report import title
from cluster.plan.simulation import Simulation
from cluster.rehearsal.adapters import with_adapter_files
from deployments.adapters.targets import targets_of_model
from deployments.batching import Batching
from deployments.engine.adapters import AdapterRef, AdapterUse, rank_buckets
from deployments.engine.bank import EMPTY_LAYOUT
from deployments.engine.cost import StageCost
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import DenoisedLatents, DenoiseRequest
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.model_source import ModelSource, load_model_info
from deployments.engine.samplers import SamplerTables
from deployments.engine.simulated import SimulatedDevice, SimulatedSteps, SimulatedUNet
from serve.adapters import Adapters
from serve.capacity.estimator import Estimator
from serve.config.app import AppConfig
from serve.config.schema import ConfigError
from tests.generation_requests import generation_request
from tests.tiny_models import SHAPES_MODEL
from tests.unit.test_plan_command import config as config  # noqa: PLC0414
from tests.unit.test_planning import (
    ALONE_S,
    COST,
    FORWARD,
    NO_OVERHEADS,
    ONE_EACH,
    SHAPE,
    denoising,
    ends,
    model,
    request,
)

FACTORS = tuple(zip(rank_buckets(128), (1.1, 1.2, 1.4, 1.8), strict=True))
ADAPTED = StageCost(((SHAPE, FORWARD),), adapted=FACTORS)
COSTLY = replace(COST, forward=ADAPTED)


def use(name: str, rank: int) -> AdapterUse:
    return AdapterUse(AdapterRef(name, "", name, rank, 0), 1.0)


def served(**ranks: int) -> Any:
    return replace(model(cost=COSTLY, adapters={"folder": "adapters.d"}), ranks=ranks)


@pytest.mark.parametrize(
    ("loras", "factor"), [((), 1.0), (("a",), 1.1), (("b",), 1.2), (("b", "a"), 1.4), (("c", "b"), 1.8)]
)
def test_a_request_alone_takes_what_its_ranks_cost(loras: tuple[str, ...], factor: float) -> None:
    """Each rank is rounded up to a multiple of 16, and the sum to the next bucket."""
    planned = request(1.0, loras=loras or None)
    [ended] = ends(Simulation(served(a=4, b=20, c=64), ONE_EACH).run([planned]))
    assert ended - 1.0 == pytest.approx(ALONE_S + 20 * 0.010 * (factor - 1), abs=1e-12)


def test_what_the_server_would_refuse_is_refused() -> None:
    many = {f"a{index}": 16 for index in range(9)}
    load = [request(0.0, loras=loras) for loras in (("b", "c"), ("b", "d"), tuple(many))]
    first, second, third = Simulation(served(b=64, c=64, d=65, **many), ONE_EACH).run(load).outcomes
    assert first.answer.kind is Kind.COMPLETED
    assert second.answer.kind is third.answer.kind is Kind.REJECTED
    assert second.answer.detail == (
        "loras: 144 is the rank of the adapters together; at most 128 is allowed."
    )
    assert third.answer.detail == "loras: 9 adapters were given; at most 8 is allowed."


def test_the_simulated_denoiser_mixes_adapters_as_the_engine_does() -> None:
    rng = random.Random(3)
    uses = [use(name, rank) for name, rank in zip("abcdef", (4, 32, 32, 64, 100, 128), strict=True)]
    arrivals = [
        (
            at,
            replace(
                denoising(index, rng.choice([4, 20, 50]), 128, rng.random() < 0.8, 0),
                adapters=(rng.choice(uses),) if rng.random() < 0.4 else (),
            ),
        )
        for index, at in enumerate(poisson(8.0, 4.0, seed=4))
    ]
    config = EngineConfig(16, 12, 8, SHAPE, (2, 4, 8, 16), max_rank=128)
    assert ended_in_plan(config, arrivals) == pytest.approx(ended_in_engine(config, arrivals), rel=1e-9)


def ended_in_engine(
    config: EngineConfig, arrivals: Sequence[tuple[float, DenoiseRequest]]
) -> dict[str, float]:
    """When the production engine ends each request, on a clock of its own."""
    now, ended, waiting = [0.0], {}, list(arrivals)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    tables = SamplerTables(load_model_info(ModelSource(str(SHAPES_MODEL))).scheduler_config)
    known = KnownModel(SimulatedUNet({"in_channels": 1, "out_channels": 1}), tables, ADAPTED)
    device = SimulatedDevice(lambda: now[0], sleep, runs_ahead=False)
    engine = Engine(OneModel(known, SimulatedSteps(ADAPTED, device, 128)), config, lambda: now[0])
    while waiting or engine.num_requests:
        if not engine.num_requests:
            now[0] = max(now[0], waiting[0][0])
        while waiting and waiting[0][0] <= now[0]:
            at, wanted = waiting.pop(0)
            blocks = [
                EMPTY_LAYOUT.pack(one.adapter.digest, one.adapter.unet_rank, {}, torch.float32)
                for one in wanted.adapters
            ]
            engine.add(wanted, at, blocks)
        for event in engine.step().events:
            if isinstance(event, DenoisedLatents):
                ended[event.request_id] = now[0]
    return ended


def ended_in_plan(config: EngineConfig, arrivals: Sequence[tuple[float, DenoiseRequest]]) -> dict[str, float]:
    env, ended = Environment(), {}
    costs = DenoisingCosts.of(config, ADAPTED)
    replica = DenoiserReplica(env, Device(env), Batching(1, 0.0), costs, NO_OVERHEADS, Room(), Loads())

    def arrive(at: float, wanted: DenoiseRequest) -> Any:
        yield env.timeout(at)
        yield replica.run(wanted)
        ended[wanted.request_id] = env.now

    env.run(env.all_of([env.process(arrive(at, wanted)) for at, wanted in arrivals]))
    return ended


def test_work_and_latency_count_a_requests_own_adapters() -> None:
    estimator = Estimator(EngineConfig(16, 16, 8, SHAPE, (), max_rank=128))
    plain = generation_request()
    adapted = generation_request(adapters=(use("b", 20), use("a", 4)))
    assert estimator.work_s(adapted, COSTLY) == pytest.approx(1.4 * estimator.work_s(plain, COSTLY))
    forwards_s = 10 * FORWARD.seconds(2)
    more_s = estimator.latency_s(adapted, COSTLY) - estimator.latency_s(plain, COSTLY)
    assert more_s == pytest.approx(0.4 * forwards_s)


def wishing(*numbers: int, **fields: Any) -> list[PlannedRequest]:
    return [request(float(at), num_loras=number, **fields) for at, number in enumerate(numbers)]


def test_adapters_are_made_up_as_many_as_is_said() -> None:
    config = AppConfig.model_validate({})
    found = equipped([wishing(0, 1, 2, 40)], MadeUp(30, 48), config, seed=0)
    [[without, one, two, most]] = found.plans
    assert (without.loras, len(one.loras or ()), len(two.loras or ())) == (None, 1, 2)
    assert len(most.loras or ()) == 30
    assert set(found.ranks) == {f"adapter-{place}" for place in range(1, 31)}
    assert set(found.ranks.values()) == {48}
    assert "shapes: 3 of 4 requests name adapters, of 30 that are offered" in str(found.told)
    assert title(list(found.plans[0])).endswith(", 3 with adapters")
    assert offering(config, found.ranks).adapters.engine_max_rank == 128
    assert offering(config, {}) is config


def test_without_any_requests_go_without_and_that_is_said() -> None:
    plans = [wishing(0, 1)]
    found = equipped(plans, MadeUp(None, 32), AppConfig.model_validate({}), seed=0)
    assert found.plans == plans
    assert found.told == (
        "shapes offers no adapters for them, so 1 of 2 requests go without theirs. --num-adapters makes "
        "some up."
    )
    assert equipped([wishing(0)], MadeUp(None, 32), AppConfig.model_validate({}), seed=0).told is None
    with pytest.raises(click.BadParameter, match="no request has any"):
        MadeUp(30, 32).check([wishing(0, 0)])


def test_the_configured_folder_has_adapters_of_their_own_ranks() -> None:
    config = AppConfig.model_validate({"model": {"path": str(SHAPES_MODEL)}})
    with with_adapter_files(config, {"styles/ink": 8, "stripes": 40, "wide": 200}) as served:
        Path(str(served.adapters.folder), "broken.safetensors").write_bytes(b"x")
        found = equipped([wishing(*[1] * 50)], MadeUp(None, 32), served, seed=0)
    assert found.ranks == {"styles/ink": 8, "stripes": 40}
    named = equipped([wishing(1, loras=("other",))], MadeUp(None, 24), config, seed=0)
    assert (named.ranks, named.told) == ({"other": 24}, None)


def test_adapters_of_a_rehearsal_are_files_that_fit() -> None:
    config = AppConfig.model_validate({"model": {"path": "cluster/devices/sdxl"}})
    with with_adapter_files(config, {"a": 32, "b": 32}) as served:
        folder = Path(str(served.adapters.folder))
        adapters, targets = Adapters.of(served), targets_of_model(config.model.source())
        files = [adapters.files.header(path, targets) for path in adapters.listing.files.values()]
        assert [file.ranks for file in files] == [{"unet": 32}] * 2
        assert len({adapters.files.digest(path) for path in adapters.listing.files.values()}) == 2
    assert not folder.exists()
    with with_adapter_files(config, {}) as served:
        assert served is config
    with (
        pytest.raises(ConfigError, match=r"'\.\./a' cannot be a file's name"),
        with_adapter_files(config, {"../a": 8}),
    ):
        pass


def test_a_plan_tells_latencies_with_and_without_adapters(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan.json"
    load = ["--rates", "2", "--duration", "20", "--steps", "20", "--num-loras", "0:1,1:1"]
    options = [*load, "--num-adapters", "5", "--adapter-rank", "20", "--json", str(output)]
    assert main(["plan", str(config), *options]) == 0
    assert "name adapters, of 5 that are offered" in " ".join(capsys.readouterr().out.split())
    written = json.loads(output.read_text())
    assert (written["settings"]["num_adapters"], written["settings"]["adapter_rank"]) == (5, 20)
    [plan] = written["loads"]
    parts = plan["options"][0]["summary"]["by_adapters"]
    assert [part["name"] for part in parts] == ["with", "without"]
    assert yaml.safe_load(config.read_text())["applications"][0]["args"].get("adapters") is None
