"""Due times, mixes and bodies of the load generator: right in number and reproducible by seed."""

import base64
import gzip
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.bench.arrivals import TraceArrival, constant, poisson, steps, trace
from cluster.bench.mix import Mix, PlannedRequest, plan, plan_trace, read_mix, read_weights
from cluster.bench.pictures import picture_urls
from cluster.bench.tasks import Task
from cluster.bench.template import IMAGES_BODY, fill, read_template
from serve.config.limits import LimitsConfig
from serve.http.body import parse_body
from serve.http.openai.edit_schema import EditsBody, edit_of
from serve.http.openai.schema import read_body
from serve.start_pictures import open_picture


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert constant(4, 1) == [0, 0.25, 0.5, 0.75]
    assert len(constant(0.1, 3600)) == 360, "no error adds up"


def test_poisson_arrivals_have_their_rate_and_their_spread() -> None:
    times = poisson(20, 1000, seed=1)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 1000
    assert len(times) == pytest.approx(20_000, abs=4 * math.sqrt(20_000))
    in_each_second = Counter(int(due_s) for due_s in times)
    mean = len(times) / 1000
    variance = sum((in_each_second[second] - mean) ** 2 for second in range(1000)) / 1000
    assert variance == pytest.approx(mean, rel=0.2), "as a Poisson variable has it"
    assert times == poisson(20, 1000, seed=1)
    assert times != poisson(20, 1000, seed=2)


def test_steps_change_the_rate_where_they_say() -> None:
    times = steps([(10, 100), (0, 100), (40, 100)], seed=0)
    counts = Counter(int(due_s // 100) for due_s in times)
    assert set(counts) == {0, 2}
    assert counts[0] == pytest.approx(1000, rel=0.15)
    assert counts[2] == pytest.approx(4000, rel=0.15)


TRACE = """arrival_s,task,num_images,num_inference_steps
10,txt2img,1,30
10,txt2img,8,40
12,txt2img,,
30,txt2img,2,20
"""


def test_a_trace_is_replayed_faster_from_where_it_is_said(tmp_path: Path) -> None:
    plain, packed = tmp_path / "trace.csv", tmp_path / "trace.csv.gz"
    plain.write_text(TRACE)
    packed.write_bytes(gzip.compress(TRACE.encode()))
    arrivals = trace(plain, speed_up=2, start_s=10, duration_s=5)
    assert arrivals == trace(packed, speed_up=2, start_s=10, duration_s=5)
    assert {arrival.num_images for arrival in arrivals[:2]} == {1, 8}
    assert all(0 <= arrival.due_s < 0.5 for arrival in arrivals[:2])
    assert arrivals[0].due_s < arrivals[1].due_s
    assert (arrivals[2].num_images, arrivals[2].num_inference_steps) == (None, None)
    assert 1 <= arrivals[2].due_s < 1.5
    assert len(arrivals) == 3, "the fourth is due after the end"
    assert {arrival.task for arrival in arrivals} == {Task.TXT2IMG}
    assert len(trace(plain, speed_up=1, start_s=11)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,num_images\n1,2\n", "has no column 'num_inference_steps'"),
        (TRACE + "x,txt2img,1,30\n", "line 6: 'x' is not a number"),
        (TRACE + "13,txt2img,-1,30\n", "line 6: '-1' is not a whole number"),
        (TRACE + "13,txt2img,1,0\n", "line 6: '0' is not above 0"),
        (TRACE + ",txt2img,1,30\n", "line 6: arrival_s is empty"),
        (TRACE + "13,upscale,1,30\n", "line 6: 'upscale' is none of txt2img, img2img, inpaint"),
        ("arrival_s,num_images,num_inference_steps,strength\n1,1,20,1.5\n", "line 2: '1.5' is above 1"),
        ("", "has no column 'arrival_s'"),
    ],
)
def test_what_is_no_trace_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        trace(path, speed_up=1)


def test_half_a_trace_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(TRACE.encode())[:-12])
    with pytest.raises(ValueError, match=r"trace\.csv\.gz: .*ended before"):
        trace(path, speed_up=1)


def test_parts_of_seconds_in_a_trace_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,num_images,num_inference_steps\n1.25,1,20\n1.5,,\n")
    assert trace(path, speed_up=2) == [TraceArrival(0.625, 1, 20), TraceArrival(0.75, None, None)]


def test_a_trace_may_say_what_requests_start_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "arrival_s,num_images,num_inference_steps,task,strength\n"
        "1.0,1,20,txt2img,0.3\n2.0,1,20,img2img,0.5\n3.0,1,20,inpaint,\n4.0,1,20,,\n5.0,1,20\n"
    )
    arrivals = trace(path, speed_up=1)
    assert [(one.task, one.strength) for one in arrivals] == [
        (Task.TXT2IMG, 0.3),
        (Task.IMG2IMG, 0.5),
        (Task.INPAINT, None),
        (None, None),
        (None, None),
    ]
    tasks = [(request.task, request.strength) for request in plan_trace(arrivals, Mix(), seed=0)]
    assert tasks == [
        (Task.TXT2IMG, None),
        (Task.IMG2IMG, 0.5),
        (Task.INPAINT, 1.0),
        (Task.TXT2IMG, None),
        (Task.TXT2IMG, None),
    ]
    mix = Mix(tasks={Task.IMG2IMG: 1}, strengths={0.7: 1})
    tasks = [(request.task, request.strength) for request in plan_trace(arrivals[2:], mix, seed=0)]
    assert tasks == [(Task.INPAINT, 0.7), (Task.IMG2IMG, 0.7), (Task.IMG2IMG, 0.7)]


MIX = Mix(
    prompts=("a star", "a circle"),
    sizes={(512, 512): 3, (768, 512): 1},
    num_inference_steps={4: 20, 20: 40, 30: 30, 50: 10},
    samplers={"Euler": 1, None: 1},
)


def test_a_plan_is_drawn_by_weight_and_is_the_same_again() -> None:
    planned = plan([0.01 * index for index in range(4000)], MIX, seed=3)
    assert planned == plan([0.01 * index for index in range(4000)], MIX, seed=3)
    counts = Counter(request.num_inference_steps for request in planned)
    for value, weight in MIX.num_inference_steps.items():
        assert counts[value] == pytest.approx(4000 * weight / 100, rel=0.15)
    widths = Counter(request.width for request in planned)
    assert widths[768] == pytest.approx(1000, rel=0.15)
    assert len({request.seed for request in planned}) > 3990
    other = plan([0.01 * index for index in range(4000)], MIX, seed=4)
    assert [request.seed for request in other] != [request.seed for request in planned]


def test_tasks_are_drawn_by_weight_and_change_nothing_else() -> None:
    due_s = [0.01 * index for index in range(4000)]
    mix = replace(MIX, tasks={Task.TXT2IMG: 90, Task.IMG2IMG: 8, Task.INPAINT: 2})
    planned = plan(due_s, mix, seed=3)
    counts = Counter(request.task for request in planned)
    assert counts[Task.IMG2IMG] == pytest.approx(320, rel=0.2)
    assert counts[Task.INPAINT] == pytest.approx(80, rel=0.35)
    strengths = {(request.task, request.strength) for request in planned}
    assert strengths == {(Task.TXT2IMG, None), (Task.IMG2IMG, 0.8), (Task.INPAINT, 1.0)}
    assert [replace(one, task=Task.TXT2IMG, strength=None) for one in planned] == plan(due_s, MIX, seed=3)


def test_a_trace_says_what_is_asked_for_where_it_does() -> None:
    arrivals = [TraceArrival(0.5, 8, 40), TraceArrival(1.5, None, None)]
    mix = Mix(num_inference_steps={7: 1}, num_images={2: 1})
    asked = [
        (request.num_images, request.num_inference_steps) for request in plan_trace(arrivals, mix, seed=0)
    ]
    assert asked == [(8, 40), (2, 7)]


def test_weights_are_read() -> None:
    assert read_weights("4:20, 20:40.5,30", int) == {4: 20, 20: 40.5, 30: 1}
    assert read_weights("DPM++ 2M:2", str) == {"DPM++ 2M": 2}
    for text, message in [
        ("4:0", "'4:0': a weight must be above 0"),
        ("x", "'x' is not VALUE or VALUE:WEIGHT"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_weights(text, int)


def test_a_mix_is_read_from_yaml_and_json(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text("sizes: {512x512: 3, 768x512: 1}\nsamplers: {Euler: 1}\nprompts: [a star]\n")
    expected = Mix(prompts=["a star"], sizes={(512, 512): 3, (768, 512): 1}, samplers={"Euler": 1})
    assert read_mix(path) == expected
    path.write_text('{"num_inference_steps": {"4": 20, "20": 80}}')
    assert read_mix(path) == Mix(num_inference_steps={4: 20, 20: 80})
    path.write_text("tasks: {txt2img: 9, img2img: 1}\nstrengths: {0.5: 1}")
    assert read_mix(path) == Mix(tasks={Task.TXT2IMG: 9, Task.IMG2IMG: 1}, strengths={0.5: 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: [a]", "mix.yaml: prompt: unknown key; known are prompts, sizes, num_inference_steps"),
        ("sizes: {512: 1}", 'mix.yaml: sizes.512: 512 is not "WIDTHxHEIGHT"'),
        ("num_inference_steps: {4: -1}", "mix.yaml: num_inference_steps.4: Input should be greater than 0"),
        ("prompts: []", "mix.yaml: prompts: List should have at least 1 item"),
        ("tasks: {upscale: 1}", "mix.yaml: tasks.upscale: Input should be 'txt2img', 'img2img' or 'inpaint'"),
        ("strengths: {1.5: 1}", "mix.yaml: strengths.1.5: Input should be less than or equal to 1"),
        ("- a", "mix.yaml: the file: Input should be a valid dictionary"),
        ("a: [", "mix.yaml: is not YAML"),
    ],
)
def test_what_is_wrong_in_a_mix_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_mix(path)


REQUEST = PlannedRequest(
    due_s=0,
    prompt='a {width} "star"',
    seed=7,
    num_images=2,
    width=512,
    height=768,
    num_inference_steps=20,
    guidance_scale=2.5,
)


def test_a_body_is_filled_with_types() -> None:
    template = {
        "text": "{prompt}",
        "options": [{"w": "{width}", "cfg": "{guidance_scale}", "sampler": "{sampler}"}, "{sampler}", None],
        "size": "{width}x{height}",
        "fixed": 5,
        "empty": None,
    }
    assert fill(template, REQUEST) == {
        "text": 'a {width} "star"',
        "options": [{"w": 512, "cfg": 2.5}, None],
        "size": "512x768",
        "fixed": 5,
        "empty": None,
    }


@pytest.mark.parametrize("request_", [REQUEST, PlannedRequest(due_s=0, prompt="a star", seed=1)])
def test_the_default_body_is_one_that_midstep_takes(request_: PlannedRequest) -> None:
    body = read_body(json.dumps(fill(IMAGES_BODY, request_)).encode())
    assert (body.prompt, body.n, body.seed) == (request_.prompt, request_.num_images, request_.seed)
    assert body.size == ("512x768" if request_.width else None)
    assert body.num_inference_steps == request_.num_inference_steps


@pytest.mark.parametrize(("task", "strength"), [(Task.IMG2IMG, 0.5), (Task.INPAINT, 1.0)])
def test_an_edits_body_has_a_picture_that_midstep_can_open(task: Task, strength: float) -> None:
    """In the request's size; of the mask, the middle is repainted."""
    request = replace(REQUEST, task=task, strength=strength)
    body = parse_body(EditsBody, json.dumps(fill(IMAGES_BODY, request)).encode())
    assert (body.size, body.strength) == ("512x768", strength)
    image, mask = (
        None if urls is None else base64.b64decode(urls[0].partition(",")[2])
        for urls in (body.image, body.mask)
    )
    limits = LimitsConfig().for_model(512, 512)
    opened = open_picture(replace(edit_of(body), image=image, mask=mask), limits)
    assert opened.size == (768, 512)
    if task is Task.IMG2IMG:
        assert opened.mask is None
    else:
        assert opened.mask is not None
        assert opened.mask.getbbox() == (128, 192, 384, 576)
        assert opened.mask.getextrema() == (0, 255)
    assert len(json.dumps(fill(IMAGES_BODY, request))) < 200_000, "thousands are kept in memory"


def test_each_request_starts_from_a_picture_of_its_own() -> None:
    """A server keeps pictures that it has encoded."""
    sizes = (64, 64)
    urls = [picture_urls(Task.INPAINT, seed, sizes) for seed in (1, 2, 1)]
    assert urls[0]["image"] != urls[1]["image"]
    assert urls[0] == urls[2]
    assert picture_urls(Task.TXT2IMG, 1, sizes) == {"image": None, "mask": None}


def test_a_request_without_a_size_starts_from_a_picture_of_the_given_one() -> None:
    request = PlannedRequest(0, "a star", seed=1, task=Task.IMG2IMG, strength=0.8)
    filled = fill({"picture": "{image}", "mask": "{mask}", "size": "{width}x{height}"}, request, (96, 64))
    assert filled == {"picture": picture_urls(Task.IMG2IMG, 1, (96, 64))["image"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"p": "{promt}"}', r"unknown placeholder \{promt\}; known are prompt, seed, num_images"),
        ("[1]", "is not a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_template_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "body.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_template(path)
