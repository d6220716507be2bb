"""The adapters of a rehearsal whose requests name some."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from deployments.adapters.targets import targets_of_model
from serve.config.app import AppConfig
from serve.config.schema import ConfigError


@contextmanager
def with_adapter_files(config: AppConfig, ranks: Mapping[str, int]) -> Iterator[AppConfig]:
    """The configuration with a temporary folder of adapters. ranks: by name; without any, it stays as it is

    Each changes one small layer of the configured model's U-Net: simulated devices read only the rank.
    Raises ConfigError for a name that no file can have, and ModelLoadError.
    """
    if not ranks:
        yield config
        return
    layers = targets_of_model(config.model.source()).parts["unet"]
    linear = {name: layer for name, layer in layers.items() if layer.kernel is None}
    name, layer = min(linear.items(), key=lambda item: item[1].num_inputs + item[1].num_outputs)
    with tempfile.TemporaryDirectory() as folder:
        for number, (adapter, rank) in enumerate(ranks.items()):
            path = Path(folder, f"{adapter}.safetensors")
            if not path.resolve().is_relative_to(Path(folder).resolve()):
                raise ConfigError(f"--adapters: {adapter!r} cannot be a file's name")
            path.parent.mkdir(parents=True, exist_ok=True)
            factors = {
                f"unet.{name}.lora_A.weight": torch.full((rank, layer.num_inputs), number / len(ranks)),
                f"unet.{name}.lora_B.weight": torch.zeros(layer.num_outputs, rank),
            }
            save_file(factors, path)
        adapters = config.adapters.model_copy(update={"folder": folder})
        yield config.model_copy(update={"adapters": adapters})
