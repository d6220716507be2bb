"""The models that the requests of a plan are for."""

from collections.abc import Sequence
from pathlib import Path

from cluster.bench.checkpoints import Listed, Mapped, mapped, served_models
from cluster.bench.mix import PlannedRequest
from cluster.plan.options import PlanOptions
from serve.config.app import AppConfig
from serve.config.catalog_files import entry_files, read_entry
from serve.config.schema import ConfigError


def models_of(options: PlanOptions, config: AppConfig) -> Mapped | None:
    """The models of the checkpoints that the plans name. None where the names need none: there are no
    checkpoints, or each is a model of its own because the configuration has no catalog."""
    is_anonymous = options.settings["arrivals"] == "trace" or options.num_models is not None
    served = _served(options, config)
    return mapped(options.plans, served) if is_anonymous and served is not None else None


def named(plans: Sequence[Sequence[PlannedRequest]], models: Mapped | None) -> list[list[PlannedRequest]]:
    """The plans with the models' names."""
    return [list(planned) if models is None else models.apply(planned) for planned in plans]


def _served(options: PlanOptions, config: AppConfig) -> list[Listed] | None:
    if options.validate is not None:
        return served_models(options.validate.url, options.validate.api_key)
    if options.num_models is not None:
        others = (Listed(f"model-{rank}") for rank in range(2, options.num_models + 1))
        return [_own(config), *others]
    return catalog_models(config)


def catalog_models(config: AppConfig) -> list[Listed] | None:
    """The models that a configuration with a catalog serves, in the order in which a server lists them,
    without those whose files are wrong. None without a catalog. Raises ConfigError if it cannot be read."""
    folder = config.catalog.resolved(config.jobs.data_folder).folder
    if folder is None:
        return None
    models = [_own(config)]
    try:
        for file in entry_files(Path(folder)):
            try:
                entry = read_entry(file)
            except ConfigError:
                continue
            models.append(Listed(entry.id, entry.aliases))
    except OSError as error:
        raise ConfigError(f"catalog.folder: {folder} cannot be read: {error.strerror or error}") from error
    return models


def _own(config: AppConfig) -> Listed:
    return Listed(config.model.id, config.model.aliases)
