"""Gives requests that are to have adapters (LoRAs) the names of some."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.bench.checkpoints import Listed
from cluster.bench.lists import asked
from cluster.bench.mix import PlannedRequest

ADAPTERS_PATH = "/v1/adapters"
_MAX_PAGES = 100  # of 100 adapters; the rare ones after them would have few requests


@dataclass(frozen=True)
class Offered:
    """An adapter that requests can name. models: ids of those that it fits; rank: its highest in the U-Net"""

    id: str
    models: Sequence[str]
    rank: int


def by_place(names: Iterable[str]) -> dict[str, float]:
    """Weights like those of real adapters: the n-th has 1/n of the first one's."""
    return {name: 1 / place for place, name in enumerate(names, 1)}


def with_adapters(
    planned: Sequence[PlannedRequest], weights_of: Callable[[str | None], Mapping[str, float]], seed: int
) -> list[PlannedRequest]:
    """The requests with the names of as many different adapters as each is to have, if there are so many.

    weights_of: the adapters for a model's requests, with their weights. Reproducible by seed.
    """
    rng = random.Random(f"adapters {seed}")
    return [
        replace(one, loras=_drawn(weights_of(one.model), one.num_loras, rng)) if one.num_loras else one
        for one in planned
    ]


def _drawn(weights: Mapping[str, float], count: int, rng: random.Random) -> tuple[str, ...] | None:
    drawn: list[str] = []
    left = dict(weights)
    while left and len(drawn) < count:
        [name] = rng.choices(list(left), list(left.values()))
        drawn.append(name)
        del left[name]
    return tuple(drawn) or None


def weights_by_model(
    offered: Sequence[Offered], models: Sequence[Listed]
) -> Callable[[str | None], Mapping[str, float]]:
    """The adapters that fit a model, by any of its names; None is the first. models: as the server lists
    them; without any, all adapters are for all requests"""
    ids = {name: model.id for model in models for name in (model.id, *model.aliases)}
    fitting = {model.id: by_place(one.id for one in offered if model.id in one.models) for model in models}
    everything = by_place(one.id for one in offered)

    def weights_of(model: str | None) -> Mapping[str, float]:
        if not models:
            return everything
        return fitting.get(models[0].id if model is None else ids.get(model, model), {})

    return weights_of


def sentence(name: str, plans: Sequence[Sequence[PlannedRequest]], num_offered: int) -> str:
    """Tells who has adapters. name: of the server, which offers so many"""
    requests = [one for planned in plans for one in planned]
    wishing = [one for one in requests if one.num_loras]
    named = sum(one.loras is not None for one in wishing)
    if not named:
        return (
            f"{name} offers no adapters for them, so {len(wishing)} of {len(requests)} requests go without "
            "theirs."
        )
    rest = f"; {len(wishing) - named} more go without, as none fits their model" * (named < len(wishing))
    return (
        f"{name}: {named} of {len(requests)} requests name adapters, of {num_offered} that are offered (the "
        f"n-th has 1/n of the first one's){rest}."
    )


def served_adapters(url: str, api_key: str | None = None) -> list[Offered]:
    """The adapters that a server lists and that requests can name, in its order; none without such a list."""
    return asyncio.run(_served_adapters(url, api_key))


async def _served_adapters(url: str, api_key: str | None) -> list[Offered]:
    found: list[Offered] = []
    page: str | None = url.rstrip("/") + ADAPTERS_PATH
    for _ in range(_MAX_PAGES):
        answer = await asked(page, api_key) if page else None
        if not isinstance(answer, dict):
            break
        found += _read(answer.get("data"))
        page = _next(answer.get("next"), url)
    return found


def _next(link: object, url: str) -> str | None:
    """The next page, at the address that the server was asked at and not at the one that it is known by."""
    if not isinstance(link, str):
        return None
    _, mark, query = link.partition("?")
    return f"{url.rstrip('/')}{ADAPTERS_PATH}{mark}{query}"


def _read(listed: object) -> list[Offered]:
    return [
        Offered(str(one["id"]), tuple(map(str, one.get("models") or ())), int(one.get("rank") or 0))
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict) and "id" in one and one.get("problem") is None
    ]
