"""A1111's samplers: a name, since version 1.9 a name of noise levels beside it, and `eta`."""

from collections.abc import Mapping

from deployments.engine.sampler_names import ALIASES
from deployments.engine.samplers import SAMPLERS, UnsupportedSamplerError, canonical_sampler, takes_eta
from serve.errors import InvalidRequestError
from serve.http.a1111.answers import SamplerItem, SchedulerItem
from serve.wanted import shown

_KARRAS = " Karras"
# By the names of A1111's schedulers, in small letters: whether they are Karras' noise levels.
_LEVELS: Mapping[str, bool | None] = {"automatic": None, "uniform": False, "karras": True}
SCHEDULERS = ("Automatic", "Uniform", "Karras")
# With these, A1111 takes other levels than the name says.
_OTHERWISE_AUTOMATIC = {"DPM++ 2M": "Karras", "DPM++ 2M SDE": "Exponential", "KDPM2": "Karras"}
_NAMES = {"KDPM2": "DPM2"}
# In A1111 `eta` is the share of fresh noise in these; without any, the first one is the second.
_ANCESTRAL = {"Euler a": "Euler"}
_ALWAYS_FRESH = {"DPM++ 2M SDE", "DPM++ 2M SDE Karras"}


def sampler_of(
    name: str, scheduler: str | None, field: str = "sampler_name", levels_field: str = "scheduler"
) -> str:
    """The sampler of a request. field, levels_field: those of the two, for errors

    Raises InvalidRequestError.
    """
    try:
        sampler = canonical_sampler(name)
    except UnsupportedSamplerError as error:
        raise InvalidRequestError(f"{field}: {error}.", field) from error
    levels = (scheduler or "automatic").strip().lower()
    if levels not in _LEVELS:
        raise InvalidRequestError(
            f"{levels_field}: {shown(scheduler)} is not offered; {', '.join(SCHEDULERS)} are.", levels_field
        )
    is_karras, is_named_so = _LEVELS[levels], sampler.endswith(_KARRAS)
    if is_karras is None or is_karras == is_named_so:
        return sampler
    if is_named_so:
        raise InvalidRequestError(
            f"{levels_field}: {shown(scheduler)} was given, and {sampler!r} as {field}; leave one of them "
            "out.",
            levels_field,
        )
    if sampler + _KARRAS in SAMPLERS:
        return sampler + _KARRAS
    having = [one.removesuffix(_KARRAS) for one in SAMPLERS if one.endswith(_KARRAS)]
    raise InvalidRequestError(
        f"{levels_field}: 'Karras' is not offered with {sampler!r}; it is with {', '.join(having)}.",
        levels_field,
    )


def automatic_warning(sampler: str, scheduler: str | None) -> list[str]:
    """A sentence if A1111's automatic choice is another one. sampler: as `sampler_of` gives it"""
    otherwise = _OTHERWISE_AUTOMATIC.get(sampler)
    if otherwise is None or (scheduler or "").strip().lower() != "automatic":
        return []
    return [
        "scheduler: 'Automatic' takes the noise levels that the sampler's name says; with "
        f"{sampler_name(sampler)!r}, A1111 takes {otherwise} since its version 1.9."
    ]


def with_eta(sampler: str, eta: float | None) -> tuple[str, float | None]:
    """The sampler, and its eta if it has one. A1111's clients send eta with all samplers; most ignore it.

    Raises InvalidRequestError.
    """
    if eta is None or takes_eta(sampler):
        return sampler, eta
    if sampler in _ANCESTRAL and eta == 0:
        return _ANCESTRAL[sampler], None
    if (sampler in _ANCESTRAL or sampler in _ALWAYS_FRESH) and eta != 1:
        allowed = "0 or 1" if sampler in _ANCESTRAL else "1"
        raise InvalidRequestError(
            f"eta: {eta:g} was given; with the sampler {sampler!r} it can only be {allowed}.", "eta"
        )
    return sampler, None


def sampler_name(sampler: str) -> str:
    """A1111's name of a sampler, given by its canonical name."""
    return _NAMES.get(sampler, sampler)


def listed_samplers() -> list[SamplerItem]:
    """The samplers as A1111 lists its own."""
    return [
        {
            "name": sampler_name(sampler),
            "aliases": [one for one in (sampler, *ALIASES.get(sampler, ())) if one != sampler_name(sampler)],
            "options": {"scheduler": "karras"} if sampler.endswith(_KARRAS) else {},
        }
        for sampler in SAMPLERS
    ]


def listed_schedulers() -> list[SchedulerItem]:
    """The schedulers as A1111 lists its own. default_rho: of Karras' noise levels"""
    return [
        {
            "name": name.lower(),
            "label": name,
            "aliases": None,
            "default_rho": 7.0 if name == "Karras" else -1.0,
            "need_inner_model": name == "Uniform",
        }
        for name in SCHEDULERS
    ]
