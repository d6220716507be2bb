"""What is measured, in which order, and for how long: what has the most value comes first."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A function of a `Bench` and a family that yields figures.

    target: the function, as `pkgutil.resolve_name` reads it
    needs_s: it is left out if less of the budget is left; limit_s: it is stopped after so long
    """

    name: str
    target: str
    needs_s: float
    limit_s: float

    @classmethod
    def of(cls, name: str, needs_s: float, limit_s: float) -> "Part":
        """A part with a module of its name."""
        return cls(name, f"benchmarks.gpu.{name}:figures", needs_s, limit_s)


PARTS = (
    Part.of("checks", 10, 80),
    Part.of("steps", 10, 60),
    Part.of("pipelines", 15, 80),
    Part.of("decoding", 15, 60),
    Part.of("variants", 15, 60),
    Part.of("adapters", 15, 60),
    Part.of("slots", 20, 60),
    Part.of("quantized", 15, 60),
)
COMPILED = Part.of("compiled", 40, 180)
FAMILIES = ("sdxl", "sd15")
