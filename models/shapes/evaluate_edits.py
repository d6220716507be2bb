"""Measures how often the embedded model repaints a masked object as the prompt says, from the pixels.

    python models/shapes/evaluate_edits.py            100 edits at 20 steps
    python models/shapes/evaluate_edits.py --sheet F  also draws the first edits: picture, mask, result

Each edit starts from a drawn scene of two objects. A box around the second one is masked, and the prompt says
another object in its place.
"""

import argparse
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from evaluate import judge, share, sheet
from PIL import Image
from scenes import (
    COLOURS,
    IMAGE_SIZE,
    RADII_TOGETHER,
    SHAPES,
    Placed,
    Scene,
    Thing,
    draw,
    place,
    random_scene,
)

from deployments.engine import load_engine
from deployments.engine.fit_picture import fit_picture
from deployments.engine.local_engine import LocalEngine
from deployments.engine.pictures import laid_around

_BATCH_SIZE = 16
_GAP = 4  # pixels around each panel of the sheet
_HALF_SIDE = RADII_TOGETHER["large"] + 6  # pixels: room for any object


@dataclass(frozen=True, slots=True)
class Edit:
    """mask: white where the picture is repainted; scene: what the whole picture should show afterwards"""

    picture: Image.Image
    mask: Image.Image
    scene: Scene
    guidance_scale: float
    seed: int


def draw_edits(count: int, seed: int) -> list[Edit]:
    """Random edits with guidance 3 to 7. The new object differs from the old one in colour and shape."""
    rng = random.Random(seed)
    return [_draw_edit(rng) for _ in range(count)]


def _draw_edit(rng: random.Random) -> Edit:
    while (before := random_scene(rng)).relation is None:
        pass
    kept, old = place(before, rng)
    colours = [colour for colour in COLOURS if colour not in (before.background, old.thing.colour)]
    shapes = [shape for shape in SHAPES if shape != old.thing.shape]
    new = Thing(rng.choice(colours), rng.choice(shapes), None)
    return Edit(
        picture=draw(before.background, (kept, old)),
        mask=box_around(old),
        scene=replace(before, things=(kept.thing, new)),
        guidance_scale=rng.uniform(3, 7),
        seed=rng.randrange(2**32),
    )


def box_around(placed: Placed) -> Image.Image:
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    x, y = round(placed.x), round(placed.y)
    mask.paste(255, (x - _HALF_SIDE, y - _HALF_SIDE, x + _HALF_SIDE, y + _HALF_SIDE))
    return mask


def paint(engine: LocalEngine, edits: list[Edit], sampler: str, num_inference_steps: int) -> list[np.ndarray]:
    pictures: list[np.ndarray] = []
    for start in range(0, len(edits), _BATCH_SIZE):
        for edit in edits[start : start + _BATCH_SIZE]:
            engine.add(
                edit.scene.prompt(),
                image=edit.picture,
                mask_image=edit.mask,
                strength=1.0,
                seed=edit.seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=edit.guidance_scale,
                sampler=sampler,
            )
        pictures += engine.finish()
    return pictures


def largest_change(edit: Edit, pixels: np.ndarray) -> int:
    """In grey levels, where the mask keeps the picture, which is laid around (`preserve_unmasked`)."""
    height, width = pixels.shape[:2]
    whole = laid_around(pixels, fit_picture(edit.picture, edit.mask, height, width))
    changes = np.abs(whole.astype(int) - np.asarray(edit.picture))
    return int(changes[np.asarray(edit.mask) == 0].max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="DPM++ 2M")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--sheet", type=Path, help="write the first 4 edits here")
    args = parser.parse_args()
    edits = draw_edits(args.edits, args.seed)
    engine = load_engine(str(args.model), max_images=_BATCH_SIZE)
    pictures = paint(engine, edits, args.sampler, args.steps)
    verdicts = [judge(edit.scene, pixels) for edit, pixels in zip(edits, pictures, strict=True)]
    print(f"{args.edits} edits, {args.sampler}, {args.steps} steps, guidance 3 to 7\n")
    print("| colours right | position right | shapes right | all right |")
    print("|---:|---:|---:|---:|")
    columns = (
        [verdict.colour for verdict in verdicts],
        [bool(verdict.position) for verdict in verdicts],
        [verdict.shape for verdict in verdicts],
        [verdict.colour and bool(verdict.position) and verdict.shape for verdict in verdicts],
    )
    print(f"| {' | '.join(map(share, columns))} |")
    changes = [largest_change(edit, pixels) for edit, pixels in zip(edits, pictures, strict=True)]
    print(f"\nthe largest change outside of a mask, with preserve_unmasked: {max(changes)} grey levels")
    if args.sheet:
        panels = [
            np.pad(np.asarray(panel), ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
            for edit, pixels in zip(edits[:4], pictures, strict=False)
            for panel in (edit.picture, edit.mask.convert("RGB"), pixels)
        ]
        sheet(panels, 6).save(args.sheet)


if __name__ == "__main__":
    main()
