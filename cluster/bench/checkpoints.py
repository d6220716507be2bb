"""Gives a trace's checkpoints models of a server: those of their names, and others by popularity."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.bench.lists import asked
from cluster.bench.mix import PlannedRequest

MODELS_PATH = "/v1/models"


@dataclass(frozen=True)
class Listed:
    """A model of `GET /v1/models`. needs_mask: only repaints pictures"""

    id: str
    aliases: Sequence[str] = ()
    needs_mask: bool = False


@dataclass(frozen=True)
class Mapped:
    """models: by checkpoint, the most popular first; None where the server lists none

    top_share: of the requests that name a model, those that name the most popular one
    """

    models: Mapping[str, str | None]
    top_share: float

    def apply(self, planned: Sequence[PlannedRequest]) -> list[PlannedRequest]:
        return [one if one.model is None else replace(one, model=self.models[one.model]) for one in planned]

    def sentence(self, name: str) -> str:
        """name: of the server"""
        served = {model for model in self.models.values() if model is not None}
        if not served:
            return f"{name} lists no models, so requests name none of the trace's {len(self.models)}."
        same = sum(checkpoint == model for checkpoint, model in self.models.items())
        how = {0: "by popularity", len(self.models): "of the same names"}.get(same, f"{same} by name")
        return (
            f"{name}: the requests of {_counted(len(self.models), 'checkpoint')} go to "
            f"{_counted(len(served), 'model')} ({how}); the top model has {self.top_share:.0%} of them."
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def mapped(plans: Sequence[Sequence[PlannedRequest]], served: Sequence[Listed]) -> Mapped | None:
    """The served models of the checkpoints that requests name; None if they name none.

    A name that is served stays, also as an alias. The others are shared out by rank: the most popular one
    goes to the first model that no checkpoint names, the next to the second, and so on, over and over.
    """
    counts = Counter(one.model for planned in plans for one in planned if one.model is not None)
    if not counts:
        return None
    names = {name: model.id for model in served for name in (model.id, *model.aliases)}
    named = {names[checkpoint] for checkpoint in counts if checkpoint in names}
    plain = [model.id for model in served if not model.needs_mask]
    free = [model for model in plain if model not in named] or plain
    models: dict[str, str | None] = {}
    rank = 0
    for checkpoint, _ in counts.most_common():
        if checkpoint in names:
            models[checkpoint] = checkpoint
        else:
            models[checkpoint] = free[rank % len(free)] if free else None
            rank += 1
    of_model: Counter[str | None] = Counter()
    for checkpoint, count in counts.items():
        model = models[checkpoint]
        of_model[names.get(model, model) if model else None] += count
    return Mapped(models, max(of_model.values()) / counts.total())


def served_models(url: str, api_key: str | None = None) -> list[Listed]:
    """The models that a server lists, in its order; none if it has no such list."""
    return _read(asyncio.run(asked(url.rstrip("/") + MODELS_PATH, api_key)))


def _read(listed: object) -> list[Listed]:
    """Other servers of this dialect list an id and no more."""
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list):
        return []
    return [
        Listed(str(one["id"]), tuple(map(str, one.get("aliases") or ())), bool(one.get("needs_mask")))
        for one in models
        if isinstance(one, dict) and "id" in one
    ]
