"""Bodies and headers of Replicate's dialect: an accepted one is valid, others are refused in a sentence."""

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from serve.errors import InvalidRequestError
from serve.http.replicate.prediction import describe, logs
from serve.http.replicate.predictions import model_named
from serve.http.replicate.schema import (
    given_input,
    idempotency_key,
    input_warnings,
    lifetime_s,
    read_body,
    wait_s,
    wanted_of,
)
from serve.jobs.job import Job, JobState, WebhookEvent
from tests.job_stores import new_job


def body(**given: Any) -> Any:
    return read_body(json.dumps({"version": "shapes", "input": {"prompt": "a star"} | given}).encode())


def test_replicates_names_are_taken() -> None:
    parsed = body(
        width=256,
        height=192,
        num_outputs=2,
        scheduler="euler a",
        seed=5,
        output_format="jpg",
        output_quality=50,
    )
    wanted = wanted_of(parsed, "shapes", "version")
    assert (wanted.width, wanted.height, wanted.num_images, wanted.seed) == (256, 192, 2, 5)
    assert (wanted.sampler, wanted.output_format, wanted.output_quality) == ("euler a", "jpg", 50)
    assert given_input(parsed)["output_format"] == "jpg", "shown again as it was given"


def test_other_programs_names_are_taken_and_shown_again_as_they_were_given() -> None:
    given = {
        "sampler": "k_euler",
        "steps": 5.0,
        "cfg": 2.5,
        "batch_size": 2,
        "negativePrompt": "b",
        "seed": -1,
    }
    parsed = body(**given, width=None)
    wanted = wanted_of(parsed, "shapes", "version")
    assert (wanted.sampler, wanted.num_inference_steps, wanted.guidance_scale) == ("k_euler", 5, 2.5)
    assert (wanted.num_images, wanted.negative_prompt, wanted.width) == (2, "b", None)
    assert given_input(parsed) == {"prompt": "a star"} | given
    assert wanted.name("num_inference_steps") == "input.steps"
    assert wanted.name("width") == "input.width"


def test_fields_of_replicates_models_without_a_meaning_are_taken_with_a_warning() -> None:
    parsed = body(
        apply_watermark=False,
        disable_safety_checker=True,
        refine="no_refiner",
        high_noise_frac=0.8,
        lora_scale=0.6,
    )
    sentences = input_warnings(given_input(parsed))
    assert [sentence.partition(":")[0] for sentence in sentences] == [
        "apply_watermark",
        "disable_safety_checker",
        "refine",
        "high_noise_frac",
        "lora_scale",
    ]
    made = replace(job(JobState.PROCESSING, {}, 5), input=given_input(parsed))
    assert "Warning: refine: changes nothing; there is no refiner.\n" in logs(made)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"prompt": 5}, "input.prompt", "5 was given"),
        ({"width": "big"}, "input.width", "valid integer"),
        ({"widht": 64}, "input.widht", "nearest one is 'width'"),
        ({"image": 7}, "input.image", "valid string"),
        ({"prompt_strength": 0}, "input.prompt_strength", "greater than 0"),
        ({"hires": {"scale": 9}}, "input.hires.scale", "less than or equal to 4"),
        (
            {"replicate_weights": "http://..."},
            "input.replicate_weights",
            "archive of a training is not taken",
        ),
        ({"lora_scale": 101}, "input.lora_scale", "less than or equal to 100"),
        ({"loras": [{"id": 5}]}, "input.loras.0.id", "valid string"),
        ({"refine": "expert_ensemble_refiner"}, "input.refine", "'no_refiner'"),
        ({"steps": 0}, "input.steps", "0 was given"),
        (
            {"num_outputs": 1, "num_images": 2},
            "input.num_images",
            "input.num_images: 2 was given, and 1 as num_outputs; the two are one field",
        ),
        ({"elephant": 1}, "input.elephant", "input.elephant: unknown field."),
        ({"num_outputs": 0}, "input.num_outputs", "greater than or equal to 1"),
    ],
)
def test_a_refusal_names_the_field(given: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        body(**given)
    assert refusal.value.param == param
    assert words in refusal.value.detail


def test_webhook_events_are_all_unless_chosen() -> None:
    def events(**given: Any) -> frozenset[WebhookEvent]:
        return read_body(json.dumps({"input": {"prompt": "a"}} | given).encode()).webhook_events

    assert events() == set(WebhookEvent)
    assert events(webhook_events_filter=["completed"]) == {WebhookEvent.COMPLETED}
    with pytest.raises(InvalidRequestError, match=r"webhook_events_filter\.0: .*'start', 'output'"):
        events(webhook_events_filter=["begin"])


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [(None, None), ("wait", 60), ("wait=5", 5), ("respond-async, wait=7", 7), ("respond-async", None)],
)
def test_prefer(prefer: str | None, seconds: float | None) -> None:
    assert wait_s(prefer) == seconds


@pytest.mark.parametrize("prefer", ["wait=0", "wait=61", "wait=soon"])
def test_a_wait_that_is_none_is_refused(prefer: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 60 seconds"):
        wait_s(prefer)


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("90", 90), ("5s", 5), ("1m", 60), ("1h30m", 5400), ("24h", 86400)]
)
def test_cancel_after(header: str | None, seconds: float | None) -> None:
    assert lifetime_s(header) == seconds


@pytest.mark.parametrize("header", ["", "soon", "1d", "4s", "25h", "-5s", "1m 30s"])
def test_a_lifetime_that_is_none_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequestError, match="Cancel-After"):
        lifetime_s(header)


@pytest.mark.parametrize(("header", "key"), [(None, None), ("abc", "abc"), ('"abc"', "abc")])
def test_idempotency_keys(header: str | None, key: str | None) -> None:
    assert idempotency_key(header) == key


@pytest.mark.parametrize("header", ["", '""', "a" * 256, "a\x00b"])
def test_a_key_that_is_none_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequestError, match="Idempotency-Key"):
        idempotency_key(header)


@pytest.mark.parametrize(
    ("path", "version", "served", "named"),
    [
        ({"owner": "any", "name": "shapes"}, None, {"shapes"}, ("shapes", "{owner}/{name}")),
        ({"owner": "a", "name": "b"}, None, {"a/b"}, ("a/b", "{owner}/{name}")),
        ({}, "shapes", {"shapes"}, ("shapes", "version")),
        ({}, "any/shapes:shapes", {"shapes"}, ("shapes", "version")),
        ({}, "a/b", {"a/b", "b"}, ("a/b", "version")),
        ({}, "a/b:c", {"a/b"}, ("a/b", "version")),
        ({}, "any/other", {"shapes"}, ("other", "version")),
    ],
)
def test_a_model_is_named_with_or_without_owner_and_version(
    path: dict[str, str], version: str | None, served: set[str], named: tuple[str, str]
) -> None:
    request = Request({"type": "http", "path_params": path})
    body = read_body(json.dumps({"input": {"prompt": "a"}, "version": version}).encode())
    assert model_named(request, body, served) == named


def job(state: JobState, output: dict[int, str], steps_done: int) -> Job:
    new = new_job("job")
    begun = state is not JobState.STARTING
    return Job(
        id="job",
        owner=new.owner,
        model=new.request.model,
        request=new.request,
        input=new.input,
        base_url=new.base_url,
        webhook=None,
        deadline=None,
        state=state,
        attempt=int(begun),
        created_at=1e9,
        started_at=1e9 + 1 if begun else None,
        completed_at=1e9 + 3 if state.is_final else None,
        steps_done=steps_done,
        output=output,
        previews={},
        error=None,
        data_removed=False,
        is_deleted=False,
    )


def test_a_prediction_is_what_replicates_client_reads() -> None:
    done = describe(job(JobState.SUCCEEDED, {0: "images/job/0.png", 1: "images/job/1.png"}, 20))
    assert done["output"] == [f"http://localhost:8000/v1/files/images/job/{index}.png" for index in (0, 1)]
    assert done["created_at"] == "2001-09-09T01:46:40Z"
    assert done["metrics"] == {"predict_time": 2.0, "total_time": 3.0}
    assert (done["status"], done["progress"]) == ("succeeded", 1.0)
    waiting = describe(job(JobState.STARTING, {}, 0))
    assert (waiting["output"], waiting["logs"], waiting["metrics"]) == (None, "", {})


def test_outputs_are_listed_in_order_and_without_gaps() -> None:
    """The second image is done before the first. Listed images must keep their places."""
    assert describe(job(JobState.PROCESSING, {1: "b"}, 12))["output"] is None
    assert len(describe(job(JobState.PROCESSING, {0: "a"}, 12))["output"]) == 1


def test_logs_are_what_replicates_client_reads_progress_from() -> None:
    from replicate.prediction import Prediction  # noqa: PLC0415  (slow to import)

    begun = job(JobState.PROCESSING, {}, 5)
    warned = replace(begun, request=replace(begun.request, prompt="a (red:1.4) star"))
    seed, warning, _ = logs(warned).splitlines()
    assert seed == f"Using seed: {warned.request.seed}"
    assert warning.startswith("Warning: prompt: '(red:1.4)' was taken literally")
    for one in (begun, warned):
        progress = Prediction.Progress.parse(logs(one))
        assert progress is not None
        assert (progress.percentage, progress.current, progress.total) == (0.25, 5, 20)
