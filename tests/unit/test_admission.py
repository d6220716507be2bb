"""Admission counts images and gives their places back, however a request ends."""

import pytest

from serve.admission import Admission
from serve.errors import QueueFullError
from serve.pipeline import preview_steps


def test_a_full_queue_refuses_until_places_are_given_back() -> None:
    admission = Admission(max_queue=3)
    with admission.admitted(2):
        with (
            pytest.raises(
                QueueFullError, match="2 images are queued and 2 more were asked for; at most 3"
            ) as refusal,
            admission.admitted(2),
        ):
            pass
        assert refusal.value.retry_after_s == 1
        with admission.admitted(1):
            pass
    with pytest.raises(ZeroDivisionError), admission.admitted(3):
        raise ZeroDivisionError
    with admission.admitted(3):
        pass


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [(20, 3, {5, 10, 15}), (20, 0, set()), (4, 1, {2}), (1, 3, set()), (2, 3, {1})],
)
def test_previews_are_evenly_spaced(steps: int, previews: int, expected: set[int]) -> None:
    assert preview_steps(steps, previews) == expected
