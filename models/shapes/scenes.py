"""The scenes that the embedded model knows: their content, their prompts and their drawing.

This is the only definition of the model's world. `train.py` draws its data from it. `evaluate.py` and the
integration tests check pictures against it.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

IMAGE_SIZE = 128
COLOURS = {
    "red": (222, 36, 44),
    "green": (42, 164, 74),
    "blue": (44, 88, 222),
    "yellow": (252, 220, 52),
    "orange": (248, 138, 28),
    "purple": (142, 56, 182),
    "white": (246, 246, 246),
    "black": (22, 22, 24),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below")

# Circumradius in pixels: a single object may be larger than one of two.
RADII_ALONE = {"small": 20, "medium": 32, "large": 46}
RADII_TOGETHER = {"small": 14, "medium": 20, "large": 25}
# `models/shapes` fills its objects, `models/outlines` draws hollow ones, the adapter "stripes" draws filled
# ones between two stripes.
STYLES = ("filled", "outlined", "striped")
_MIN_STROKE = 6.5  # pixels; thinner ones blur, as the VAE was trained on filled objects
_STROKE = 0.24  # of the circumradius, where that is more
STRIPE = 16  # pixels: two of the VAE's latents, as narrower stripes blur
_SUPERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene. size: None if the prompt does not say it"""

    colour: str
    shape: str
    size: str | None

    def phrase(self) -> str:
        words = [self.size, self.colour, self.shape] if self.size else [self.colour, self.shape]
        return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two objects on a background; with two, `things[0]` stands `relation` `things[1]`."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None

    def prompt(self) -> str:
        said = f" {self.relation} ".join(thing.phrase() for thing in self.things)
        return f"{said} on {'an' if self.background[0] in 'aeiou' else 'a'} {self.background} background"


@dataclass(frozen=True, slots=True)
class Placed:
    """An object as drawn: its centre and circumradius in pixels."""

    thing: Thing
    x: float
    y: float
    radius: float


def random_scene(rng: random.Random) -> Scene:
    """A random scene. Two thirds have two objects; two fifths of the sizes are left out."""
    background = rng.choice(list(COLOURS))
    foregrounds = [colour for colour in COLOURS if colour != background]

    def thing() -> Thing:
        size = None if rng.random() < 0.4 else rng.choice(SIZES)
        return Thing(rng.choice(foregrounds), rng.choice(SHAPES), size)

    if rng.random() < 1 / 3:
        return Scene(background, (thing(),), None)
    return Scene(background, (thing(), thing()), rng.choice(RELATIONS))


def place(scene: Scene, rng: random.Random) -> tuple[Placed, ...]:
    """Chooses what the prompt leaves open: sizes, and positions within a small range."""
    radii = RADII_ALONE if scene.relation is None else RADII_TOGETHER
    middle = IMAGE_SIZE / 2
    # Offsets of the first object from the middle, in pixels; the second stands opposite.
    dx, dy = {None: (0, 0), "left of": (-32, 0), "right of": (32, 0), "above": (0, -32), "below": (0, 32)}[
        scene.relation
    ]
    jitter = 8 if scene.relation is None else 2
    placed = []
    for sign, thing in zip((1, -1), scene.things, strict=False):
        radius = radii[thing.size or rng.choice(SIZES)]
        x = middle + sign * dx + rng.uniform(-jitter, jitter)
        y = middle + sign * dy + rng.uniform(-jitter, jitter)
        placed.append(Placed(thing, x, y, radius))
    return tuple(placed)


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a shape with the given circumradius around (x, y); a circle has many corners."""

    def corner(angle: float, distance: float) -> tuple[float, float]:
        return x + distance * math.sin(angle), y - distance * math.cos(angle)

    if shape == "circle":
        return [corner(2 * math.pi * i / 64, 0.92 * radius) for i in range(64)]
    if shape == "square":
        return [corner(math.pi * (2 * i + 1) / 4, 1.12 * radius) for i in range(4)]
    if shape == "triangle":
        return [corner(2 * math.pi * i / 3, 1.15 * radius) for i in range(3)]
    if shape == "star":
        return [corner(math.pi * i / 5, (1.18 if i % 2 == 0 else 0.5) * radius) for i in range(10)]
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def stripe_colour(background: str) -> str:
    """The colour of the stripes along the upper and the lower edge of a striped scene."""
    return "black" if background == "white" else "white"


def draw(background: str, placed: tuple[Placed, ...], style: str = "filled") -> Image.Image:
    """The scene as an RGB picture of IMAGE_SIZE x IMAGE_SIZE pixels, with smooth edges."""
    side = IMAGE_SIZE * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), COLOURS[background])
    pen = ImageDraw.Draw(image)
    if style == "striped":
        for top in (0, side - STRIPE * _SUPERSAMPLING):
            pen.rectangle(
                (0, top, side, top + STRIPE * _SUPERSAMPLING - 1), COLOURS[stripe_colour(background)]
            )
    for item in placed:
        corners = [
            (x * _SUPERSAMPLING, y * _SUPERSAMPLING)
            for x, y in outline(item.thing.shape, item.x, item.y, item.radius)
        ]
        colour = COLOURS[item.thing.colour]
        if style != "outlined":
            pen.polygon(corners, colour)
        else:
            stroke = round(max(_MIN_STROKE, _STROKE * item.radius) * _SUPERSAMPLING)
            # One side more than there are, so that the last corner is round as well.
            pen.line([*corners, *corners[:2]], colour, stroke, joint="curve")
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
