"""What one server is sent: plans with the names of its models and its adapters."""

import json
from collections.abc import Sequence

from cluster.bench.adapters import Offered, sentence, served_adapters, weights_by_model, with_adapters
from cluster.bench.checkpoints import Listed, mapped, served_models
from cluster.bench.load import Target
from cluster.bench.mix import PlannedRequest

Plans = Sequence[Sequence[PlannedRequest]]


def as_served(name: str, target: Target, plans: Plans, is_trace: bool, seed: int) -> tuple[Plans, list[str]]:
    """The plans for a server, and sentences about the names in them. seed: of the adapters

    A trace's checkpoints become models of the server, and requests that are to have adapters without names
    get some of the server's. It is asked for its lists only for that, and only if bodies have such names.
    """
    body, told = json.dumps(target.body), []
    has_checkpoints = is_trace and "{model}" in body and mapped(plans, []) is not None
    has_wishes = "{loras}" in body and wishes(plans)
    if not has_checkpoints and not has_wishes:
        return plans, []
    models = served_models(target.url, target.api_key)
    if has_checkpoints and (found := mapped(plans, models)) is not None:
        told.append(found.sentence(name))
        plans = [found.apply(planned) for planned in plans]
    if has_wishes:
        offered = served_adapters(target.url, target.api_key)
        plans = with_offered(plans, offered, models, seed)
        told.append(sentence(name, plans, len(offered)))
    return plans, told


def wishes(plans: Plans) -> bool:
    """Whether any request is to have adapters whose names are not known yet."""
    return any(one.num_loras and one.loras is None for planned in plans for one in planned)


def with_offered(
    plans: Plans, offered: Sequence[Offered], models: Sequence[Listed], seed: int
) -> list[list[PlannedRequest]]:
    """The plans with adapters that fit the requests' models, drawn in the same way for each plan."""
    weights_of = weights_by_model(offered, models)
    return [with_adapters(planned, weights_of, seed) for planned in plans]
