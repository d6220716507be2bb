"""The results of calls that a stage could not do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.engine.messages import DenoiseEvent, DenoiseFailed, DenoiseRequest, PromptEmbeds, TokenCount
from deployments.engine.stage_errors import Fault
from serve.calls import failover
from serve.errors import GenerationFailedError, MidstepError
from serve.http.problems import problem
from tests.generation_requests import SOME_MODEL, denoise_request

NOTHING = torch.empty(0)
EMBEDS = PromptEmbeds(NOTHING, None, NOTHING, None, TokenCount(2, 2), TokenCount(0, 0))


class Failing:
    """Fails in the way that the request's sampler names."""

    async def denoise(self, request: DenoiseRequest, model: object) -> AsyncIterator[DenoiseEvent]:
        yield DenoiseFailed(request.request_id, "what went wrong", Fault(request.sampler))


@pytest.fixture(scope="module")
def denoiser() -> DeploymentHandle:
    application = serve.deployment(Failing, name="failing").bind()
    return serve.run(application, name="failing", _local_testing_mode=True)


@pytest.mark.parametrize(
    ("fault", "status", "code", "detail"),
    [
        (Fault.NOT_FINITE, 500, "not_finite", "what went wrong"),
        (Fault.OUT_OF_MEMORY, 507, "out_of_memory", "what went wrong"),
        (Fault.UNLOADABLE, 422, "model_unloadable", "what went wrong"),
        (Fault.ADAPTER, 422, "adapter_unusable", "what went wrong"),
        (Fault.BROKEN, 500, "internal_error", "A stage failed: an internal error."),
    ],
)
def test_a_client_is_told_what_concerns_it(
    denoiser: DeploymentHandle, fault: Fault, status: int, code: str, detail: str
) -> None:
    async def run() -> None:
        request = denoise_request("a", EMBEDS, sampler=fault.value)
        async with aclosing(failover.denoise(denoiser, request, SOME_MODEL)) as events:
            async for _ in events:
                pytest.fail("nothing came of it")

    with pytest.raises(GenerationFailedError) as caught:
        asyncio.run(run())
    error: MidstepError = caught.value
    assert (error.status, error.code, error.detail) == (status, code, detail)
    assert error.is_final == (fault is Fault.NOT_FINITE)
    should_retry = problem(error, "/").headers.get("x-should-retry")
    assert should_retry == ("false" if error.is_final or status == 422 else None)
