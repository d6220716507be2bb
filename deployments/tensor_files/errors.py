"""Why a file of tensors cannot be used."""

from deployments.engine.model_source import ModelLoadError


class TensorFileError(ModelLoadError):
    """The file cannot be used. The message names it, what is wrong and what to do."""
