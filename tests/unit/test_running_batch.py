"""The live view of a denoiser, on a separate clock."""

from typing import Any

import pytest
import torch

from deployments.engine.messages import Checkpoint
from deployments.engine.reports import ForwardStep
from deployments.running_batch import LEFT_SHOWN_S, MOST_LEFT, WINDOW_S, RequestStatus, RunningBatch
from tests.generation_requests import denoise_request

FORWARD_S = 0.5


class Scripted:
    """A batch whose clock moves by its forwards."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.batch = RunningBatch(lambda: self.now)

    def come(self, request_id: str, **changes: Any) -> None:
        self.batch.come(denoise_request(request_id, **changes), "a-model")

    def forward(self, rows: int = 2, **steps: int) -> None:
        """A forward after which requests have done so many steps."""
        self.now += FORWARD_S
        self.batch.forward([ForwardStep(name, step, rows) for name, step in steps.items()], FORWARD_S)

    @property
    def requests(self) -> dict[str, RequestStatus]:
        return {one.request_id: one for one in self.batch.status().requests}


def test_a_request_joins_beside_another_and_leaves_first() -> None:
    scripted = Scripted()
    scripted.come("long", steps=50, work_s=5.0)
    scripted.forward(long=1)
    scripted.come("short", steps=2, guidance_scale=1.0, height=64, width=96)
    assert scripted.requests["short"] == RequestStatus(
        "short", "a-model", 64, 96, steps=2, step=0, rows=1, work_s=0.0, state="waiting", came_at=1000.5
    )
    scripted.forward(long=2, short=1)
    scripted.forward(long=3, short=2)
    scripted.batch.leave("short", "denoised")
    scripted.forward(long=4)

    long, short = scripted.requests["long"], scripted.requests["short"]
    assert (short.first_forward, short.last_forward) == (2, 3)
    assert (short.joined_at, short.left_at, short.state) == (1000.5, 1001.5, "done")
    assert (long.first_forward, long.last_forward, long.joined_at) == (1, 4, 1000.0)
    assert (long.state, long.step, long.left_at) == ("running", 4, None)
    assert long.work_s == pytest.approx(5.0 * 46 / 50)
    status = scripted.batch.status()
    assert (status.forwards, status.rows, status.images) == (4, 2 * 6, 1)
    assert [one.request_id for one in status.requests] == ["long", "short"], "as they came"


def test_one_that_resumes_has_done_the_steps_before() -> None:
    scripted = Scripted()
    checkpoint = Checkpoint("id", 8, 8, torch.zeros(1))
    scripted.come("resumed", work_s=1.0, resume_from=checkpoint)
    assert (scripted.requests["resumed"].step, scripted.requests["resumed"].state) == (8, "waiting")
    scripted.forward(resumed=9)
    assert scripted.requests["resumed"].work_s == pytest.approx(0.1), "a tenth of its steps is left"


@pytest.mark.parametrize(("outcome", "images"), [("denoised", 1), ("failed", 0), ("canceled", 0)])
def test_whoever_leaves_is_shown_for_a_while(outcome: Any, images: int) -> None:
    scripted = Scripted()
    scripted.come("here")
    scripted.come("gone")
    scripted.batch.leave("gone", outcome)
    scripted.forward(here=1, gone=1)
    assert scripted.requests["gone"].first_forward is None, "it left before the forward was done"
    assert scripted.requests["gone"].state == {"denoised": "done"}.get(outcome, outcome)
    assert scripted.batch.status().images == images
    scripted.now = 1000.0 + LEFT_SHOWN_S
    assert list(scripted.requests) == ["here"]


def test_of_many_that_left_only_the_last_are_shown() -> None:
    scripted = Scripted()
    for number in range(MOST_LEFT + 10):
        scripted.come(f"{number}")
        scripted.batch.leave(f"{number}", "canceled")
    scripted.come("here")
    assert list(scripted.requests) == [*(f"{number}" for number in range(10, MOST_LEFT + 10)), "here"]


def test_rates_are_those_of_the_last_seconds() -> None:
    scripted = Scripted()
    scripted.come("a", steps=100)
    for step in range(1, 21):
        scripted.forward(rows=1 if step <= 10 else 2, a=step)
        scripted.come(f"image {step}")
        scripted.batch.leave(f"image {step}", "denoised")
    status = scripted.batch.status()
    assert status.forwards_per_s == 1 / FORWARD_S
    assert status.rows_per_forward == 2.0, "those with one row are longer ago"
    assert status.images_per_s == 1 / FORWARD_S
    scripted.now += WINDOW_S
    status = scripted.batch.status()
    assert (status.forwards_per_s, status.rows_per_forward, status.images_per_s) == (0.0, 0.0, 0.0)
    assert (status.forwards, status.rows, status.images) == (20, 30, 20)
