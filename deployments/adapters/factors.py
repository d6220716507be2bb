"""Whether the factors of a layer fit it, and the rank of what they add, from shapes alone.

Shapes may have further sides of 1, as linear layers and convolutions over one pixel differ in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by role


class MisfitError(ValueError):
    """A factor does not fit. role: its role; wanted: the shape that it must have"""

    def __init__(self, role: str, wanted: Shape) -> None:
        super().__init__(role, wanted)
        self.role, self.wanted = role, wanted


def lora_rank(shapes: Shapes, layer: Shape) -> tuple[int, int]:
    """The rank, and what an alpha is divided by. layer: the shape of its weight. Raises MisfitError."""
    rank = _side(shapes, "down", 0)
    top = rank
    if "mid" in shapes:
        top = _side(shapes, "mid", 0)
        _expect(shapes, "mid", (top, rank, *layer[2:]))
        _expect(shapes, "down", (rank, layer[1]))
    else:
        _expect_rows(shapes, "down", rank, layer)
    _expect(shapes, "up", (layer[0], top))
    return top, rank


def loha_rank(shapes: Shapes, layer: Shape) -> tuple[int, int]:
    """As `lora_rank`: the product of two weights of ranks r and s has the rank r * s."""
    rank = 1
    for one, core in (("hada_w1", "hada_t1"), ("hada_w2", "hada_t2")):
        inner = _side(shapes, f"{one}_b", 0)
        if core in shapes:
            _expect_tucker(shapes, (core, f"{one}_a", f"{one}_b"), layer)
            rank *= _side(shapes, core, 0)
        else:
            _expect(shapes, f"{one}_a", (layer[0], inner))
            _expect_rows(shapes, f"{one}_b", inner, layer)
            rank *= inner
    return _at_most_full(rank, layer), _side(shapes, "hada_w1_b", 0)


def lokr_rank(shapes: Shapes, layer: Shape) -> tuple[int, int | None]:
    """As `lora_rank`: the Kronecker product of ranks r and s has the rank r * s. Where neither factor is
    decomposed there is no alpha, and the second number is None."""
    left = _left_shape(shapes)
    if min(left) < 1 or layer[0] % left[0] or layer[1] % left[1]:
        raise MisfitError("lokr_w1" if "lokr_w1" in shapes else "lokr_w1_a", (layer[0], layer[1]))
    right = (layer[0] // left[0], layer[1] // left[1], *layer[2:])
    rank, divisor = min(left), None
    if "lokr_w1_b" in shapes:
        divisor = _side(shapes, "lokr_w1_b", 0)
        rank = min(rank, divisor)
    if "lokr_w2" in shapes:
        _expect(shapes, "lokr_w2", right)
        return _at_most_full(rank * min(right[0], prod(right[1:])), layer), divisor
    divisor = inner = _side(shapes, "lokr_w2_b", 0)
    if "lokr_t2" in shapes:
        _expect_tucker(shapes, ("lokr_t2", "lokr_w2_a", "lokr_w2_b"), right)
        inner = _side(shapes, "lokr_t2", 0)
    else:
        _expect(shapes, "lokr_w2_a", (right[0], inner))
        _expect_rows(shapes, "lokr_w2_b", inner, right)
    return _at_most_full(rank * inner, layer), divisor


def _left_shape(shapes: Shapes) -> Shape:
    if "lokr_w1" in shapes:
        left = (_side(shapes, "lokr_w1", 0), _side(shapes, "lokr_w1", 1))
        _expect(shapes, "lokr_w1", left)
        return left
    rows, inner = _side(shapes, "lokr_w1_a", 0), _side(shapes, "lokr_w1_a", 1)
    columns = _side(shapes, "lokr_w1_b", 1)
    _expect(shapes, "lokr_w1_a", (rows, inner))
    _expect(shapes, "lokr_w1_b", (inner, columns))
    return rows, columns


def expect_same(shapes: Shapes, role: str, wanted: Shape) -> None:
    """Raises MisfitError if the tensor has not that shape."""
    _expect(shapes, role, wanted)


def expect_magnitudes(shapes: Shapes, role: str, layer: Shape) -> None:
    """One value for each output, or for each input. Raises MisfitError."""
    per_output = (layer[0], *(1 for _ in layer[1:]))
    per_input = (1, layer[1], *(1 for _ in layer[2:]))
    given = shapes[role]
    if given not in (layer[:1], per_output, per_input) and not (
        role == "magnitude" and given == (1, layer[0], *(1 for _ in layer[2:]))
    ):
        raise MisfitError(role, per_output)


def _expect_tucker(shapes: Shapes, roles: tuple[str, str, str], layer: Shape) -> None:
    """A core of ranks and pixels, with a factor for the outputs and one for the inputs."""
    core, outputs, inputs = roles
    rows, columns = _side(shapes, core, 0), _side(shapes, core, 1)
    _expect(shapes, core, (rows, columns, *layer[2:]))
    _expect(shapes, outputs, (rows, layer[0]))
    _expect(shapes, inputs, (columns, layer[1]))


def _expect_rows(shapes: Shapes, role: str, rows: int, layer: Shape) -> None:
    """A row of the layer's inputs for each rank, in the layer's shape or flat."""
    if _bare(shapes[role]) != (rows, prod(layer[1:])):
        _expect(shapes, role, (rows, *layer[1:]))


def _expect(shapes: Shapes, role: str, wanted: Shape) -> None:
    if _bare(shapes[role]) != _bare(wanted) or 0 in shapes[role]:
        raise MisfitError(role, wanted)


def _side(shapes: Shapes, role: str, index: int) -> int:
    shape = shapes[role]
    if len(shape) <= index or shape[index] < 1:
        raise MisfitError(role, (1, 1))
    return shape[index]


def _bare(shape: Shape) -> Shape:
    """Without sides of 1 at its end, but for two sides."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _at_most_full(rank: int, layer: Shape) -> int:
    """A weight has no higher rank than its smaller side."""
    return min(rank, layer[0], prod(layer[1:]))
