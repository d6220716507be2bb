"""Adapters in the engine: any mix of requests with them and without, over all their steps."""

from collections.abc import Callable

import pytest
import torch

from deployments.engine.adapters import AdapterRef, AdapterUse, targets_of
from deployments.engine.bank import Block, Layout
from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import EagerSteps
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import DenoisedLatents, DenoiseFailed, DenoiseRequest
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.models import load_unet_module, place_unet, unet_bank
from deployments.engine.stage_errors import Fault
from tests.conftest import LoadedModel, finish, finish_with_checkpoints
from tests.unit.test_bank import make_weights

SHAPE = (16, 16)
CPU = Placement(device="cpu")
# Room for two adapters of rank 16 at once.
CONFIG = EngineConfig(16, 16, 8, SHAPE, checkpoint_interval_s=0.0, max_rank=32)


class Adapted:
    """An engine with a bank, and adapters of rank 16 for it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        module = load_unet_module(ModelSource(str(model.folder)), torch.float32)
        targets = targets_of(module)
        layout = Layout.of(targets)
        self.unet = place_unet(module, CPU, unet_bank(module, CPU, CONFIG.max_rank))
        self.blocks = {
            name: layout.pack(
                name, 16, make_weights(targets, seed, 16, convolutions=seed % 2 == 0), torch.float32
            )
            for seed, name in enumerate("abcde")
        }

    def engine(self) -> Engine:
        cost = StageCost(((SHAPE, Curve(0.01, 1, 0.0)),))
        known = KnownModel(self.unet.shape, self.model.tables, cost)
        return Engine(OneModel(known, EagerSteps(self.unet, 1)), CONFIG)

    def request(self, name: str, adapters: dict[str, float], **changes: object) -> DenoiseRequest:
        uses = tuple(AdapterUse(AdapterRef(one, "", one, 16, 0), scale) for one, scale in adapters.items())
        return self.model.request(name, adapters=uses, **changes)

    def add(self, engine: Engine, request: DenoiseRequest) -> None:
        blocks: list[Block] = [self.blocks[use.adapter.name] for use in request.adapters]
        engine.add(request, blocks=blocks)

    def alone(self, request: DenoiseRequest) -> torch.Tensor:
        engine = self.engine()
        self.add(engine, request)
        return finish(engine)[request.request_id]


@pytest.fixture(scope="module")
def adapted(load_model: Callable[[str], LoadedModel]) -> Adapted:
    return Adapted(load_model("sd1"))


def test_more_adapters_than_the_bank_holds_take_turns(adapted: Adapted) -> None:
    requests = [
        adapted.request("plain", {}),
        adapted.request("a", {"a": 1.0}, num_inference_steps=4),
        adapted.request("b", {"b": -0.5}, guidance_end=0.5),
        adapted.request("a and c", {"a": 0.3, "c": 0.8}, sampler="Euler a"),
        adapted.request("d", {"d": 1.2}, guidance_scale=1.0),
        adapted.request("e and b", {"e": 0.4, "b": 0.7}),
    ]
    engine = adapted.engine()
    for request in requests:
        adapted.add(engine, request)
    together = finish(engine)
    plain = adapted.alone(adapted.request("same seed", {}))
    for request in requests:
        latents = together[request.request_id]
        assert torch.allclose(latents, adapted.alone(request), atol=2e-4), request.request_id
        assert torch.allclose(latents, plain, atol=2e-4) == (request.request_id == "plain")


def test_deterministic_requests_have_the_same_bits_whatever_adapters_others_have(adapted: Adapted) -> None:
    mine = adapted.request("mine", {"d": 0.4, "b": 0.7}, deterministic=True)
    alone = adapted.alone(mine)
    engine = adapted.engine()
    adapted.add(engine, adapted.request("0", {"d": 1.0}, num_inference_steps=1))
    finish(engine)
    for other in (
        adapted.request("1", {"a": 1.0}, deterministic=True),
        mine,
        adapted.request("2", {"c": 0.5, "d": 1.0}, deterministic=True, num_inference_steps=3),
        adapted.request("3", {}, deterministic=True),
        adapted.request("4", {"e": 1.0}),
    ):
        adapted.add(engine, other)
    assert torch.equal(finish(engine)["mine"], alone)


def test_a_request_goes_on_elsewhere_from_a_checkpoint(adapted: Adapted) -> None:
    request = adapted.request("one", {"a": 0.7, "c": 0.4}, sampler="Euler a", deterministic=True)
    engine = adapted.engine()
    adapted.add(engine, request)
    latents, checkpoints = finish_with_checkpoints(engine)
    for checkpoint in checkpoints[::2]:
        resumed = adapted.request(
            "two", {"a": 0.7, "c": 0.4}, sampler="Euler a", deterministic=True, resume_from=checkpoint
        )
        assert torch.equal(adapted.alone(resumed), latents)


def test_values_that_overflow_fail_their_own_request_which_names_the_adapter(adapted: Adapted) -> None:
    engine = adapted.engine()
    good = adapted.request("good", {"b": 0.5})
    for request in (adapted.request("bad", {"a": 1e38}), good, adapted.request("plain", {})):
        adapted.add(engine, request)
    events = []
    while engine.num_requests:
        events += engine.step().events
    [failed] = [event for event in events if isinstance(event, DenoiseFailed)]
    assert (failed.request_id, failed.fault) == ("bad", Fault.NOT_FINITE), "not retried"
    assert failed.reason.startswith("With a at scale 1e+38, the U-Net gave values that are not numbers")
    done = {event.request_id: event.latents for event in events if isinstance(event, DenoisedLatents)}
    assert set(done) == {"good", "plain"}
    assert torch.allclose(done["good"], adapted.alone(good), atol=2e-4)
