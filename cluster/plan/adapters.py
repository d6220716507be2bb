"""The adapters (LoRAs) that the requests of a plan have: only their ranks concern time."""

from collections.abc import Mapping
from dataclasses import dataclass

import click

from cluster.bench.adapters import Offered, sentence, served_adapters
from cluster.bench.load import Target
from cluster.bench.load_options import NO_ADAPTERS
from cluster.bench.option_values import POSITIVE_COUNT
from cluster.bench.served import Plans, wishes, with_offered
from deployments.adapters.errors import AdapterFileError
from deployments.adapters.targets import targets_of_model
from serve.adapters import Adapters
from serve.config.app import AppConfig

ADAPTER_OPTIONS = (
    click.option(
        "--num-adapters",
        type=POSITIVE_COUNT,
        help="Adapters that there are, made up; the n-th has 1/n of the first one's requests (those in "
        "adapters.folder).",
    ),
    click.option(
        "--adapter-rank", type=POSITIVE_COUNT, default="32", help="Rank of adapters that are made up."
    ),
)


@dataclass(frozen=True)
class MadeUp:
    """The adapters of the options. number: None for those of the configuration; rank: of each"""

    number: int | None
    rank: int

    def settings(self) -> dict[str, int | None]:
        """The settings for a file of results."""
        return {"num_adapters": self.number, "adapter_rank": self.rank}

    def check(self, plans: Plans) -> None:
        """Raises click.BadParameter for adapters that no request is to have."""
        if self.number is not None and not any(one.num_loras for planned in plans for one in planned):
            raise click.BadParameter(NO_ADAPTERS, param_hint="--num-adapters")


@dataclass(frozen=True)
class Equipped:
    """Plans whose requests name adapters. ranks: of all that are named; told: a sentence about them"""

    plans: Plans
    ranks: Mapping[str, int]
    told: str | None = None


def equipped(
    plans: Plans, made_up: MadeUp, config: AppConfig, seed: int, server: Target | None = None
) -> Equipped:
    """The plans with names of adapters where requests are to have some. seed: of their choice

    server: the one whose adapters these are, instead of the configuration's or made-up ones
    Raises ConfigError and ModelLoadError.
    """
    if not any(one.num_loras for planned in plans for one in planned):
        return Equipped(plans, {})
    if server is not None:
        offered = served_adapters(server.url, server.api_key)
    elif made_up.number is not None:
        offered = [Offered(f"adapter-{place}", (), made_up.rank) for place in range(1, made_up.number + 1)]
    else:
        offered = _in_folder(config)
    told = None
    if wishes(plans):
        # All models of a plan cost what the configured one costs, so all adapters fit them.
        plans = with_offered(plans, offered, [], seed)
        told = sentence(config.model.id, plans, len(offered))
        told += "" if offered or server is not None else " --num-adapters makes some up."
    known = {one.id: one.rank for one in offered}
    names = {name for planned in plans for one in planned for name in one.loras or ()}
    return Equipped(plans, {name: known.get(name, made_up.rank) for name in names}, told)


def _in_folder(config: AppConfig) -> list[Offered]:
    """The adapters in the configured folder that fit the configured model."""
    if config.adapters.folder is None:
        return []
    adapters, targets = Adapters.of(config), targets_of_model(config.model.source())
    found: list[Offered] = []
    for name, path in adapters.listing.files.items():
        try:
            file = adapters.files.header(path, targets)
        except AdapterFileError:
            continue
        if adapters.problem(file) is None:
            found.append(Offered(name, (), file.unet_rank))
    return found


def offering(config: AppConfig, ranks: Mapping[str, int]) -> AppConfig:
    """The configuration as it is with adapters offered, if requests have some."""
    if not ranks or config.adapters.are_offered:
        return config
    adapters = config.adapters.model_copy(update={"allow_remote": True})
    return config.model_copy(update={"adapters": adapters})
