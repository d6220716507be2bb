"""One layer that a file changes: what its tensors are together, and whether they fit the model's layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from deployments.adapters.errors import AdapterFileError, listed, shown
from deployments.adapters.factors import (
    MisfitError,
    Shape,
    expect_magnitudes,
    expect_same,
    loha_rank,
    lokr_rank,
    lora_rank,
)
from deployments.adapters.metadata import Scales
from deployments.adapters.targets import ModelTargets
from deployments.tensor_files.headers import Header

_LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
# What a layer's roles are together, without those of _EXTRAS.
_KINDS: Mapping[frozenset[str], str] = {
    frozenset({"down", "up"}): "lora",
    frozenset({"down", "up", "mid"}): "lora",
    _LOHA: "loha",
    _LOHA | {"hada_t1", "hada_t2"}: "loha",
    **{
        frozenset({*left, *right}): "lokr"
        for left in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for right in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
    },
    frozenset({"diff"}): "full",
    frozenset({"set_weight"}): "full",
    frozenset(): "full",  # of the bias only
    frozenset({"w_norm"}): "norm",
    frozenset({"b_norm"}): "norm",
    frozenset({"w_norm", "b_norm"}): "norm",
}
_FACTORED = ("lora", "loha", "lokr")
DORA = frozenset({"dora_scale", "magnitude"})
_EXTRAS: Mapping[str, frozenset[str]] = {  # what a kind may have besides
    **dict.fromkeys(_FACTORED, frozenset({"alpha", "diff_b"}) | DORA),
    "full": frozenset({"diff_b"}),
    "norm": frozenset(),
}
_ALL_EXTRAS = frozenset[str]().union(*_EXTRAS.values())
_WEIGHTS = frozenset({"diff", "set_weight", "w_norm"})  # each in the shape of the layer's weight
_BIASES = frozenset({"diff_b", "b_norm"})


@dataclass(frozen=True, slots=True)
class Layer:
    """What a file has for one layer of the model.

    part, module: which one it is; shape: of its weight; keys: in the file, by role
    kind: lora, locon, loha, lokr, full or norm
    rank: of what is added to the weight; 0 if it is no low rank
    divisor: what the alpha is divided by; scale: the factor where there is no alpha
    """

    part: str
    module: str
    shape: Shape
    keys: Mapping[str, str]
    kind: str
    rank: int
    divisor: int | None
    scale: float

    @property
    def is_dora(self) -> bool:
        return not DORA.isdisjoint(self.keys)

    @property
    def dense(self) -> list[str]:
        """The keys for which only a model can take it in, and no request use it."""
        is_dense = (role for role in self.keys if self.rank == 0 or role in DORA | _BIASES)
        return [self.keys[role] for role in is_dense if role != "alpha"]


def layer_of(
    header: Header, model: ModelTargets, place: tuple[str, str], keys: Mapping[str, str], scales: Scales
) -> Layer:
    """The layer at that place (part, module). keys: by role. Raises AdapterFileError if they do not fit."""
    part, module = place
    kind = _kind(keys)
    shapes = {role: header.tensors[key].shape for role, key in keys.items()}
    weight, bias = (model.shapes[part].get(f"{module}.{end}") for end in ("weight", "bias"))
    if weight is None or (kind in _FACTORED and module not in model.parts[part]):
        raise AdapterFileError(
            f"{_some(keys)} cannot change {module}, which is no linear layer or convolution"
        )
    if bias is None and not _BIASES.isdisjoint(keys):
        raise AdapterFileError(f"{_some(keys)} would change a bias, and {module} has none")
    try:
        rank, divisor = _rank(kind, shapes, weight)
        _expect_others(shapes, weight, bias)
    except MisfitError as error:
        raise AdapterFileError(_misfit(error, keys, shapes, f"{module} of the {part}", weight)) from error
    scale = scales.of(part, module, divisor) if divisor else 1.0
    is_locon = kind == "lora" and prod(weight[2:]) > 1
    return Layer(part, module, weight, keys, "locon" if is_locon else kind, rank, divisor, scale)


def _kind(keys: Mapping[str, str]) -> str:
    kind = _KINDS.get(frozenset(keys) - _ALL_EXTRAS)
    given = frozenset(keys)
    is_known = kind is not None and len(given & DORA) <= 1 and given & _ALL_EXTRAS <= _EXTRAS[kind]
    if kind is None or not is_known or given <= {"alpha"} | DORA:
        raise AdapterFileError(
            f"of {listed(sorted(keys.values()), 4)} the layer's weights cannot be made: one is missing, or "
            "they are of two kinds"
        )
    return kind


def _rank(kind: str, shapes: Mapping[str, Shape], weight: Shape) -> tuple[int, int | None]:
    """The rank and the alpha's divisor. A Kronecker product of whole factors has no low rank."""
    if kind == "lora":
        return lora_rank(shapes, weight)
    if kind == "loha":
        return loha_rank(shapes, weight)
    if kind == "lokr":
        rank, divisor = lokr_rank(shapes, weight)
        return (rank if divisor else 0), divisor
    return 0, None


def _expect_others(shapes: Mapping[str, Shape], weight: Shape, bias: Shape | None) -> None:
    for role, given in shapes.items():
        if role in _WEIGHTS:
            expect_same(shapes, role, weight)
        elif role in _BIASES:
            assert bias is not None, "the caller looks"
            expect_same(shapes, role, bias)
        elif role in DORA:
            expect_magnitudes(shapes, role, weight)
        elif role == "alpha" and prod(given) != 1:
            raise MisfitError(role, ())


def _misfit(
    error: MisfitError, keys: Mapping[str, str], shapes: Mapping[str, Shape], layer: str, weight: Shape
) -> str:
    others = [role for role in keys if role not in (error.role, "alpha")]
    besides = listed([f"{shown(keys[role])} with {list(shapes[role])}" for role in others])
    beside = f", beside {besides}" if others else ""
    return (
        f"{shown(keys[error.role])} has the shape {list(shapes[error.role])}; for {layer}, whose weight has "
        f"{list(weight)}{beside}, it must be {list(error.wanted)}"
    )


def _some(keys: Mapping[str, str]) -> str:
    return listed(sorted(keys.values()))
