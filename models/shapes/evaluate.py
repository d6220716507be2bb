"""Measures how often the embedded model draws what the prompt says, from the pixels.

    python models/shapes/evaluate.py            the table in docs/models.md: 200 prompts, 4 to 50 steps
    python models/shapes/evaluate.py --sheet F  also draws the first pictures at the last step count
    python models/shapes/evaluate.py --model models/outlines   the same of the model that draws outlines
    python models/shapes/evaluate.py --adapters models/shapes/adapters/lcm.safetensors --steps 4 --guidance 1
        --sampler LCM                           with adapters, at one guidance scale
    python models/shapes/evaluate.py --steps 8 20 --quantization int8     with weights in fewer bits
    python models/shapes/evaluate.py --steps 20 --guidance-ends 1 0.8 0.6 0.5 0.4 0.25
                                                what ending guidance early saves, and what it costs

A picture is right in colour if the background and every object have their colours, right in position if its
two objects stand as said (only pictures with two count), and right in shape if every object has its shape.
It is right in style if its objects are filled, or are outlines for the model that draws those, or stand
between stripes for the adapter that draws these.
"""

import argparse
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw
from scenes import COLOURS, SHAPES, STRIPE, STYLES, Scene, outline, random_scene, stripe_colour

from deployments.adapters.reading import digest_of, read_weights
from deployments.adapters.targets import targets_of_model
from deployments.engine import load_engine
from deployments.engine.local_engine import LocalAdapter, LocalEngine
from deployments.engine.model_source import ModelSource

_BATCH_SIZE = 16
_MIN_AREA = 60  # pixels; smaller specks are not objects
_MIN_HOLE = 6  # pixels
_MIN_HOLLOW = 0.04  # share of an outlined object that is background; the smallest ones are mostly line
_BORDER = 3  # pixels at the edge, where only the background is
_PALETTE = np.array(list(COLOURS.values()), dtype=np.int32)
_NAMES = list(COLOURS)


@dataclass(frozen=True, slots=True)
class Seen:
    """An object found in a picture: its colour, its shape, its middle in pixels, and whether it is hollow."""

    colour: str
    shape: str
    x: float
    y: float
    is_outlined: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """position: None with only one object"""

    colour: bool
    position: bool | None
    shape: bool


def look(pixels: np.ndarray) -> tuple[str, list[Seen]]:
    """The background's colour and the objects of a picture [h, w, 3], largest first.

    Of objects of the stripes' colour, what is before stripes is not seen.
    """
    labels, background, stripes = _labels(pixels)
    for edge in (labels[:STRIPE], labels[-STRIPE:]):
        edge[edge == stripes] = background
    holes = [part for part in _components(labels == background, _MIN_HOLE) if not _touches_edge(part)]
    seen = []
    for mask in _components(labels != background):
        colour = Counter(labels[mask].tolist()).most_common(1)[0][0]
        rows, columns = np.nonzero(mask)
        inside = np.zeros_like(mask)
        inside[rows.min() : rows.max(), columns.min() : columns.max()] = True
        within = [hole for hole in holes if inside[hole].all()]
        whole = np.logical_or.reduce([mask, *within])
        is_outlined = bool(whole.sum() - mask.sum() >= _MIN_HOLLOW * whole.sum())
        x, y = float(columns.mean()), float(rows.mean())
        seen.append(Seen(_NAMES[colour], _shape_of(whole), x, y, is_outlined))
    return _NAMES[background], seen


def _labels(pixels: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Each pixel's colour [h, w], the background's, and the one of its stripes: the same if it has none."""
    distances = np.abs(pixels[:, :, None].astype(np.int32) - _PALETTE).sum(axis=-1)
    labels = distances.argmin(axis=-1)
    border = np.concatenate([labels[:, :_BORDER], labels[:, -_BORDER:]], axis=1)
    stripes, background = (
        Counter(rows.ravel().tolist()).most_common(1)[0][0]
        for rows in (np.concatenate([border[:STRIPE], border[-STRIPE:]]), border[STRIPE:-STRIPE])
    )
    return labels, background, stripes


def _touches_edge(part: np.ndarray) -> bool:
    return bool(part[[0, -1]].any() or part[:, [0, -1]].any())


def _components(mask: np.ndarray, min_area: int = _MIN_AREA) -> list[np.ndarray]:
    """The connected parts of a mask [h, w] that are not specks, largest first."""
    left = mask.copy()
    parts = []
    while left.any():
        start = tuple(np.argwhere(left)[0])
        part = np.zeros_like(mask)
        stack = [start]
        left[start] = False
        while stack:
            row, column = stack.pop()
            part[row, column] = True
            for neighbour in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                inside = 0 <= neighbour[0] < mask.shape[0] and 0 <= neighbour[1] < mask.shape[1]
                if inside and left[neighbour]:
                    left[neighbour] = False
                    stack.append(neighbour)
        parts.append(part)
    return sorted((part for part in parts if part.sum() >= min_area), key=lambda part: -part.sum())


def _shape_of(mask: np.ndarray) -> str:
    """The shape that, stretched to the same bounding box, covers the mask best (intersection over union)."""
    rows, columns = np.nonzero(mask)
    box = (columns.min(), rows.min(), columns.max(), rows.max())

    def overlap(shape: str) -> float:
        corners = np.array(outline(shape, 0, 0, 1))
        low, high = corners.min(axis=0), corners.max(axis=0)
        fitted = (corners - low) / (high - low) * [box[2] - box[0], box[3] - box[1]] + [box[0], box[1]]
        template = Image.new("1", mask.shape[::-1])
        ImageDraw.Draw(template).polygon([tuple(corner) for corner in fitted], 1)
        covered = np.asarray(template)
        return float((covered & mask).sum() / (covered | mask).sum())

    return max(SHAPES, key=overlap)


def judge(scene: Scene, pixels: np.ndarray) -> Verdict:
    """Compares a picture [h, w, 3] of bytes with the scene of its prompt."""
    background, seen = look(pixels)
    if len(seen) != len(scene.things):
        return Verdict(False, None if scene.relation is None else False, False)

    def agreement(order: list[Seen]) -> int:
        pairs = zip(scene.things, order, strict=True)
        return sum((thing.colour == it.colour) + (thing.shape == it.shape) for thing, it in pairs)

    # Objects are matched by colour and shape, so that two in swapped places count as misplaced. Two equal
    # ones cannot be told apart.
    orders = [seen, seen[::-1]]
    if scene.relation is not None:
        orders.sort(key=lambda order: not _stands(scene.relation, *order))
    found = max(orders, key=agreement)
    return Verdict(
        colour=background == scene.background
        and all(thing.colour == it.colour for thing, it in zip(scene.things, found, strict=True)),
        position=None if scene.relation is None else _stands(scene.relation, *found),
        shape=all(thing.shape == it.shape for thing, it in zip(scene.things, found, strict=True)),
    )


def _stands(relation: str, first: Seen, second: Seen) -> bool:
    """Whether the first object stands in this relation to the second, and mainly in this direction."""
    across, down = second.x - first.x, second.y - first.y
    along, aside = {
        "left of": (across, down),
        "right of": (-across, down),
        "above": (down, across),
        "below": (-down, across),
    }[relation]
    return along > abs(aside)


@dataclass(frozen=True, slots=True)
class Case:
    scene: Scene
    guidance_scale: float
    seed: int


def draw_cases(count: int, seed: int, guidance_scale: float | None = None) -> list[Case]:
    """Random prompts. guidance_scale: None draws 3 to 7"""
    rng = random.Random(seed)
    cases = []
    for _ in range(count):
        scene, drawn = random_scene(rng), rng.uniform(3, 7)
        cases.append(Case(scene, guidance_scale or drawn, rng.randrange(2**32)))
    return cases


def load_with(
    model: Path, files: list[Path], quantization: str
) -> tuple[LocalEngine, dict[LocalAdapter, float]]:
    """The engine, and the adapters at full scale."""
    targets = targets_of_model(ModelSource(str(model)))
    weights = [read_weights(file, digest_of(file), "unet", targets) for file in files]
    ranks = [max(len(factors.a) for factors in layers.values()) for layers in weights]
    engine = load_engine(
        str(model),
        max_images=_BATCH_SIZE,
        max_rank=sum(-(-rank // 16) * 16 for rank in ranks),
        quantization=quantization,
    )
    return engine, {
        engine.adapter(file.stem, layers): 1.0 for file, layers in zip(files, weights, strict=True)
    }


def paint(
    engine: LocalEngine,
    cases: list[Case],
    sampler: str,
    num_inference_steps: int,
    guidance_end: float = 1.0,
    adapters: Mapping[LocalAdapter, float] = MappingProxyType({}),
) -> list[np.ndarray]:
    """Draws with the project's own engine, which takes any mix of guidance scales in a batch."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(cases), _BATCH_SIZE):
        for case in cases[start : start + _BATCH_SIZE]:
            engine.add(
                case.scene.prompt(),
                seed=case.seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=case.guidance_scale,
                guidance_end=guidance_end,
                sampler=sampler,
                adapters=adapters,
            )
        pictures += engine.finish()
    return pictures


def sheet(pictures: list[np.ndarray], columns: int) -> Image.Image:
    side = pictures[0].shape[0]
    image = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for index, pixels in enumerate(pictures):
        image.paste(Image.fromarray(pixels), (index % columns * side, index // columns * side))
    return image


def is_in_style(pixels: np.ndarray, style: str) -> bool:
    """Whether all objects of a picture are outlines, or none is; and whether they stand between stripes."""
    background, seen = look(pixels)
    wanted = stripe_colour(background) if style == "striped" else background
    return _NAMES[_labels(pixels)[2]] == wanted and all(
        one.is_outlined == (style == "outlined") for one in seen
    )


def hides_in_stripes(scene: Scene) -> bool:
    return any(thing.colour == stripe_colour(scene.background) for thing in scene.things)


def share(verdicts: list[bool]) -> str:
    return f"{100 * sum(verdicts) / len(verdicts):.1f}%"


def shares(cases: list[Case], pictures: list[np.ndarray]) -> str:
    """Columns of a table: how many are right in colours, position and shapes."""
    verdicts = [judge(case.scene, pixels) for case, pixels in zip(cases, pictures, strict=True)]
    positions = [verdict.position for verdict in verdicts if verdict.position is not None]
    colours, shapes = [verdict.colour for verdict in verdicts], [verdict.shape for verdict in verdicts]
    return f"{share(colours)} | {share(positions)} | {share(shapes)}"


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    """The PSNR of two pictures of bytes; infinite for equal ones."""
    error = float(((left.astype(np.float64) - right.astype(np.float64)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compare_guidance_ends(
    engine: LocalEngine, cases: list[Case], sampler: str, steps: int, ends: list[float]
) -> None:
    """Prints a table. Its first end is what the others are compared with."""
    print("| guidance ends | CPU time | colours right | position right | shapes right | median PSNR |")
    print("|---:|---:|---:|---:|---:|---:|")
    first: tuple[float, list[np.ndarray]] | None = None
    for end in ends:
        started = time.process_time()
        pictures = paint(engine, cases, sampler, steps, end)
        took_s = time.process_time() - started
        first_s, first_pictures = first = first or (took_s, pictures)
        psnr = statistics.median(map(psnr_db, pictures, first_pictures))
        shown = "-" if math.isinf(psnr) else f"{psnr:.1f} dB"
        print(f"| {end:g} | {took_s / first_s:.2f} | {shares(cases, pictures)} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--style", choices=STYLES, help="default: outlined for `models/outlines`")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 12, 20, 50])
    parser.add_argument("--guidance-ends", type=float, nargs="+", help="fractions of the steps")
    parser.add_argument("--guidance", type=float, help="default: another from 3 to 7 for each prompt")
    parser.add_argument("--adapters", type=Path, nargs="+", default=[], help="files of LoRAs")
    parser.add_argument("--quantization", choices=["none", "int8", "fp8"], default="none")
    parser.add_argument("--sampler", default="DPM++ 2M")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--sheet", type=Path, help="write the first 24 pictures of the last step count here")
    parser.add_argument(
        "--failures", action="store_true", help="print what went wrong at the last step count"
    )
    args = parser.parse_args()
    style = args.style or ("outlined" if args.model.name == "outlines" else "filled")
    cases = draw_cases(args.prompts, args.seed, args.guidance)
    if style == "striped":
        cases = [case for case in cases if not hides_in_stripes(case.scene)]
    engine, adapters = load_with(args.model, args.adapters, args.quantization)
    print(f"{len(cases)} prompts, {args.sampler}, guidance {args.guidance or '3 to 7'}\n")
    if args.guidance_ends:
        compare_guidance_ends(engine, cases, args.sampler, args.steps[-1], args.guidance_ends)
        return
    print("| steps | colours right | position right | shapes right | style right |")
    print("|---:|---:|---:|---:|---:|")
    for steps in args.steps:
        pictures = paint(engine, cases, args.sampler, steps, adapters=adapters)
        styles = share([is_in_style(pixels, style) for pixels in pictures])
        print(f"| {steps} | {shares(cases, pictures)} | {styles} |", flush=True)
    if args.failures:
        for case, pixels in zip(cases, pictures, strict=True):
            verdict = judge(case.scene, pixels)
            if not (verdict.colour and verdict.shape and verdict.position is not False):
                print(f"{case.scene.prompt()}: {verdict}, saw {look(pixels)}")
    if args.sheet:
        sheet(pictures[:24], 8).save(args.sheet)


if __name__ == "__main__":
    main()
