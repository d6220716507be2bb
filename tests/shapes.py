"""The embedded model's own modules, which are beside its weights and not in a package."""

import importlib.util
import sys
from types import ModuleType

from tests.tiny_models import SHAPES_MODEL


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SHAPES_MODEL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = (
        module  # dataclasses look their module up, and evaluate.py imports scenes by this name
    )
    spec.loader.exec_module(module)
    return module


scenes = _module("scenes")
evaluate = _module("evaluate")
evaluate_edits = _module("evaluate_edits")
_module("architecture")
_module("pictures")
denoising = _module("denoising")
low_rank = _module("low_rank")
train = _module("train")
distil = _module("distil")
