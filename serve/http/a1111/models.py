"""Models by the names that A1111's clients have for them."""

from collections.abc import Iterator

from serve.served_model import ServedModel
from serve.served_models import ServedModels

_SUFFIXES = (".safetensors", ".ckpt")


def model_named(models: ServedModels, name: str | None, field: str) -> ServedModel:
    """The model of an id or an alias, also with a hash behind it (`name [hash]`), a suffix or a folder.

    Raises ModelNotFoundError, which names the field, and NotReadyError.
    """
    known = models.names
    found = next((one for one in _readings(name or "") if one in known), name)
    return models.named(found, field)


def _readings(name: str) -> Iterator[str]:
    yield name
    if name.endswith("]") and " [" in name:
        name = name.rpartition(" [")[0]
        yield name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    yield name
    yield name.replace("\\", "/").rpartition("/")[2]
