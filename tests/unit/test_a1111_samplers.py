"""A1111's names of samplers and of noise levels, and its eta."""

import pytest

from deployments.engine.samplers import SAMPLERS
from serve.errors import InvalidRequestError
from serve.http.a1111.samplers import automatic_warning, listed_samplers, sampler_of, with_eta


@pytest.mark.parametrize(
    ("name", "scheduler", "expected"),
    [
        ("Euler a", None, "Euler a"),
        ("Euler a", "automatic", "Euler a"),
        ("Euler a", "Automatic", "Euler a"),
        ("Euler", "Uniform", "Euler"),
        ("k_euler_a", "", "Euler a"),
        ("DPM++ 2M", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "karras", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", None, "DPM++ 2M Karras"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M"),
        ("DPM++ 2M SDE", "Karras", "DPM++ 2M SDE Karras"),
        ("DPM2", None, "KDPM2"),
        ("PLMS", None, "PLMS"),
    ],
)
def test_a_name_and_noise_levels_are_a_sampler(name: str, scheduler: str | None, expected: str) -> None:
    assert sampler_of(name, scheduler) == expected


@pytest.mark.parametrize(
    ("name", "scheduler", "field", "part"),
    [
        ("Euler", "Karras", "scheduler", "it is with DPM++ 2M, DPM++ 2M SDE"),
        ("DPM++ 2M Karras", "Uniform", "scheduler", "leave one of them out"),
        ("Euler", "SGM Uniform", "scheduler", "'SGM Uniform' is not offered; Automatic, Uniform, Karras are"),
        ("DPM++ SDE", None, "sampler_name", "the nearest: DPM++ 2M SDE, Euler a"),
        ("Eular", None, "sampler_name", "unknown sampler 'Eular'"),
    ],
)
def test_what_there_is_not_is_refused(name: str, scheduler: str | None, field: str, part: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field}: ") as raised:
        sampler_of(name, scheduler)
    assert raised.value.param == field
    assert part in raised.value.detail


def test_a1111s_automatic_choice_is_told_where_it_is_another() -> None:
    [warning] = automatic_warning("KDPM2", "Automatic")
    assert "with 'DPM2', A1111 takes Karras" in warning
    for sampler, scheduler in (
        ("Euler a", "Automatic"),
        ("DPM++ 2M", None),
        ("DPM++ 2M Karras", "automatic"),
    ):
        assert automatic_warning(sampler, scheduler) == []


@pytest.mark.parametrize(
    ("sampler", "eta", "expected"),
    [
        ("Euler a", 1.0, ("Euler a", None)),
        ("Euler a", 0.0, ("Euler", None)),  # what A1111's Euler a is without fresh noise
        ("Euler a", None, ("Euler a", None)),
        ("DDIM", 1.0, ("DDIM", 1.0)),
        ("DDIM", 0.0, ("DDIM", 0.0)),
        ("Heun", 0.3, ("Heun", None)),
        ("DPM++ 2M SDE", 1.0, ("DPM++ 2M SDE", None)),
    ],
)
def test_eta(sampler: str, eta: float | None, expected: tuple[str, float | None]) -> None:
    assert with_eta(sampler, eta) == expected


@pytest.mark.parametrize(
    ("sampler", "eta", "allowed"), [("Euler a", 0.5, "0 or 1"), ("DPM++ 2M SDE Karras", 0.0, "1")]
)
def test_shares_of_fresh_noise_that_are_not_offered(sampler: str, eta: float, allowed: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"it can only be {allowed}\."):
        with_eta(sampler, eta)


def test_every_listed_name_means_its_sampler() -> None:
    listed = listed_samplers()
    assert [sampler_of(one["name"], None) for one in listed] == list(SAMPLERS)
    for one, sampler in zip(listed, SAMPLERS, strict=True):
        assert {sampler_of(alias, None) for alias in one["aliases"]} <= {sampler}
