"""Which served models an adapter fits, and what its file says about itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.adapters.files import TITLES, TRIGGERS, AdapterFile, AdapterFileError
from deployments.adapters.targets import ModelTargets
from deployments.engine.model_source import ModelLoadError, ModelSource
from serve.adapters import Adapters

_LONGEST_TITLE = 200


@dataclass(frozen=True)
class Architecture:
    """Models whose layers are the same. family: of the first, without `-inpainting`; models: their ids"""

    targets: ModelTargets
    family: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Surveyed:
    """What is known of an adapter's file.

    file: None if it fits no served model; family: of the models that it fits, whose ids are `models`
    problem: why requests cannot name it, as the end of a sentence; None if they can
    """

    file: AdapterFile | None
    family: str | None
    models: tuple[str, ...]
    problem: str | None

    @property
    def title(self) -> str | None:
        metadata = self.file.metadata if self.file else {}
        return next((metadata[key][:_LONGEST_TITLE] for key in TITLES if metadata.get(key)), None)

    @property
    def trigger_words(self) -> list[str]:
        """The words that a prompt should have, as the file's author says."""
        text = self.file.metadata.get(TRIGGERS, "") if self.file else ""
        return [word.strip() for word in text.split(",") if word.strip()]


def architectures(models: Iterable[tuple[str, str, ModelSource]], adapters: Adapters) -> list[Architecture]:
    """The different ones of the models, without those that are not whole. models: id, family and source"""
    found: dict[str, Architecture] = {}
    for model_id, family, source in models:
        try:
            targets = adapters.targets(source)
        except ModelLoadError:
            continue
        known = found.get(targets.key) or Architecture(targets, family.removesuffix("-inpainting"), ())
        found[targets.key] = Architecture(targets, known.family, (*known.models, model_id))
    return list(found.values())


def survey(path: Path, adapters: Adapters, known: Sequence[Architecture]) -> Surveyed:
    """Reads a file's header. known: the architectures that it may fit, the configured model's first"""
    file, family, problem = None, None, "fits no model: there is none to compare it with"
    models: list[str] = []
    for one in known:
        try:
            fitting = adapters.files.header(path, one.targets)
        except AdapterFileError as error:
            problem = problem if one is not known[0] else _without_name(str(error), path)
            continue
        file, family = file or fitting, family or one.family
        models += one.models
    return Surveyed(file, family, tuple(models), problem if file is None else adapters.problem(file))


def _without_name(sentence: str, path: Path) -> str:
    return sentence.removeprefix(path.name).removeprefix(":").strip().removesuffix(".")
