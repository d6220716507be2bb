"""The spans of a request through the real pipeline. Its stages are scripted and in this process."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import torch
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.engine.messages import (
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseFailed,
    DenoiseRequest,
    EncodedImage,
    PromptEmbeds,
    TokenCount,
)
from serve.calls.pipeline import FROM_THE_START, Pipeline
from serve.calls.telemetry import Telemetry
from serve.errors import DeadlineExceededError, GenerationFailedError
from serve.generation import GenerationRequest, ImageDone, Resume
from tests.generation_requests import SOME_MODEL, generation_request

LATENTS = torch.zeros(4, 8, 8)


class Encoder:
    async def encode(self, prompt: object, model: object) -> PromptEmbeds:
        return PromptEmbeds(
            LATENTS[0], LATENTS[0], torch.empty(0), torch.empty(0), TokenCount(4, 4), TokenCount(2, 2)
        )


class Denoiser:
    async def denoise(self, request: DenoiseRequest, model: object) -> AsyncIterator[DenoiseEvent]:
        yield Checkpoint(request.request_id, 1, 1, LATENTS)
        match request.sampler:
            case "one that never ends":
                await asyncio.Event().wait()
            case "one that fails":
                yield DenoiseFailed(request.request_id, "a fault")
            case _:
                yield DenoisedLatents(request.request_id, LATENTS)


class Decoder:
    async def decode(self, *_: object) -> EncodedImage:
        return EncodedImage(b"a picture", "image/png", 64, 64)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def pipeline(spans: InMemorySpanExporter) -> Pipeline:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    encoder, denoiser, decoder = map(local_handle, (Encoder, Denoiser, Decoder))
    return Pipeline(encoder, denoiser, decoder, SOME_MODEL, Telemetry(provider.get_tracer("test")))


def local_handle(stage: type) -> DeploymentHandle:
    application = serve.deployment(stage, name=stage.__name__).bind()
    return serve.run(application, name=stage.__name__, _local_testing_mode=True)


def request(**changes: Any) -> GenerationRequest:
    fields = {"height": 64, "width": 64, "num_inference_steps": 4, "num_images": 2}
    return generation_request("a-request", **(fields | changes))


def generate(pipeline: Pipeline, wanted: GenerationRequest, resume: Resume = FROM_THE_START) -> int:
    """The number of resulting images."""

    async def run() -> int:
        async with aclosing(pipeline.generate(wanted, resume=resume)) as events:
            return len([event async for event in events if isinstance(event, ImageDone)])

    return asyncio.run(run())


def outcome_of(spans: InMemorySpanExporter) -> str:
    attributes = named(spans, "generate")[0].attributes
    assert attributes is not None
    return str(attributes["midstep.outcome"])


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def test_a_request_has_a_span_for_each_stage(pipeline: Pipeline, spans: InMemorySpanExporter) -> None:
    resume = Resume(checkpoints={1: Checkpoint("another", 2, 2, LATENTS)})
    assert generate(pipeline, request(), resume) == 2
    [whole] = named(spans, "generate")
    [encode] = named(spans, "encode")
    denoise, decode = named(spans, "denoise"), named(spans, "decode")
    for span in (encode, *denoise, *decode):
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert span.attributes is not None
        assert span.attributes["midstep.request_id"] == "a-request"
    assert sorted(
        (
            span.attributes["midstep.image_index"],
            span.attributes["midstep.resumed"],
            span.attributes["midstep.rows"],
            span.attributes["midstep.steps"],
        )
        for span in denoise
        if span.attributes is not None
    ) == [(0, False, 2, 4), (1, True, 2, 4)]
    assert len(decode) == 2
    assert outcome_of(spans) == "completed"


def test_it_goes_on_a_trace_that_was_begun_elsewhere(pipeline: Pipeline, spans: InMemorySpanExporter) -> None:
    elsewhere = TracerProvider().get_tracer("a client")
    with elsewhere.start_as_current_span("a client's request") as begun:
        generate(pipeline, request())
    assert {span.context.trace_id for span in spans.get_finished_spans()} == {
        begun.get_span_context().trace_id
    }


def test_what_failed_is_an_error(pipeline: Pipeline, spans: InMemorySpanExporter) -> None:
    with pytest.raises(GenerationFailedError):
        generate(pipeline, request(sampler="one that fails"))
    assert outcome_of(spans) == "internal_error"
    assert named(spans, "generate")[0].status.status_code is StatusCode.ERROR


def test_what_came_too_late_says_so(pipeline: Pipeline, spans: InMemorySpanExporter) -> None:
    with pytest.raises(DeadlineExceededError):
        generate(pipeline, request(sampler="one that never ends", deadline=time.time() + 0.3))
    assert outcome_of(spans) == "deadline_exceeded"


def test_a_request_that_is_left_was_canceled(
    pipeline: Pipeline, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Left from another task than the one that read it, as in a server whose client is gone."""

    async def run() -> None:
        events = pipeline.generate(request(sampler="one that never ends"))
        await asyncio.create_task(anext(events))  # type: ignore[arg-type]
        await asyncio.create_task(anext(events))  # type: ignore[arg-type]
        await events.aclose()

    asyncio.run(run())
    assert outcome_of(spans) == "canceled"
    assert named(spans, "denoise"), "stages end with the request"
    assert "Failed to detach context" not in caplog.text
