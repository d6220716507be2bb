"""Shows problems of a configuration or its model as a command's error."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from deployments.engine.model_source import ModelLoadError
from serve.config.schema import ConfigError


@contextmanager
def shown_config_errors() -> Iterator[None]:
    try:
        yield
    except (ConfigError, ModelLoadError) as error:
        raise click.ClickException(str(error)) from error
