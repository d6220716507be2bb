"""What it costs to start from a picture, and what that costs others: medians of pairs, taken in turns.

    make serve                     in one terminal, then
    python -m benchmarks.pictures  in another

First one client at a time: requests with a new picture each, against requests from a prompt alone with as
many steps; and what encoding such a picture takes the VAE alone, on one thread. Then requests from a prompt
while others are served all the time: all from pictures, or all from prompts, with equal denoising.
"""

import argparse
import asyncio
import base64
import io
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.engine import seconds
from deployments.engine import load_engine
from deployments.engine.fit_picture import fit_picture
from deployments.engine.pictures import prepare_picture

PROMPT = "a green circle left of a red star on a blue background"
STEPS, STRENGTH = 25, 0.8
FROM_PROMPT = {"prompt": PROMPT, "num_inference_steps": int(STEPS * STRENGTH)}
FROM_PICTURE = {"prompt": PROMPT, "num_inference_steps": STEPS, "strength": STRENGTH}
SIDE = 128


def new_picture(number: int) -> Image.Image:
    colours = np.random.default_rng(number).random((8, 8, 3)) * 255
    return Image.fromarray(colours.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def vae_s(model: str, repeats: int) -> float:
    """Seconds that the VAE takes to encode a picture alone."""
    torch.set_num_threads(1)
    ours = load_engine(model, max_images=1)
    prepared = prepare_picture(fit_picture(new_picture(0), None, SIDE, SIDE), SIDE, SIDE)
    return statistics.median(seconds(lambda: ours.pictures.encode([prepared])) for _ in range(repeats))


async def added_s(client: httpx.AsyncClient, repeats: int) -> tuple[float, float]:
    """Medians: seconds of a request from a prompt, and how many more one from a picture takes."""
    pairs = []
    for number in range(repeats + 3):
        from_prompt = await answered_s(client, "generations", FROM_PROMPT)
        given = FROM_PICTURE | {"image": data_url(new_picture(number))}
        pairs.append((from_prompt, await answered_s(client, "edits", given)))
    pairs = pairs[3:]
    return statistics.median(one for one, _ in pairs), statistics.median(two - one for one, two in pairs)


async def beside_s(client: httpx.AsyncClient, path: str, others: int, requests: int) -> list[float]:
    """Seconds of requests from a prompt, one at a time, while `others` clients ask for something else."""
    async with asking(client, path, others):
        await asyncio.sleep(1)
        return [await answered_s(client, "generations", FROM_PROMPT) for _ in range(requests)]


@asynccontextmanager
async def asking(client: httpx.AsyncClient, path: str, others: int) -> AsyncIterator[None]:
    numbers = iter(range(10**6, 10**9))

    async def ask() -> None:
        while True:
            given: dict[str, Any] = FROM_PROMPT
            if path == "edits":
                given = FROM_PICTURE | {"image": data_url(new_picture(next(numbers)))}
            await answered_s(client, path, given)

    tasks = [asyncio.create_task(ask()) for _ in range(others)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answered_s(client: httpx.AsyncClient, path: str, given: dict[str, Any]) -> float:
    started = time.perf_counter()
    answer = await client.post(f"/v1/images/{path}", json=given | {"response_format": "b64_json"})
    answer.raise_for_status()
    return time.perf_counter() - started


async def measure(args: argparse.Namespace) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=args.url, timeout=300) as client:
        prompt_s, more_s = await added_s(client, args.repeats)
        by_path: dict[str, list[float]] = {"generations": [], "edits": []}
        ratios = []
        for _ in range(args.rounds):
            for path in by_path:
                by_path[path] += await beside_s(client, path, args.others, args.requests)
            medians = [statistics.median(times[-args.requests :]) for times in by_path.values()]
            ratios.append(medians[1] / medians[0])
    encode_s = vae_s(args.model, args.repeats)
    return {
        "from_prompt_ms": 1000 * prompt_s,
        "picture_adds_ms": 1000 * more_s,
        "vae_alone_ms": 1000 * encode_s,
        "beyond_the_vae_ms": 1000 * (more_s - encode_s),
        "beside_prompts_ms": 1000 * statistics.median(by_path["generations"]),
        "beside_pictures_ms": 1000 * statistics.median(by_path["edits"]),
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5, help="of both kinds of company, in turns")
    parser.add_argument("--requests", type=int, default=12, help="of a round and kind")
    parser.add_argument("--others", type=int, default=3, help="clients that keep the server busy")
    parser.add_argument("--output", type=Path, help="write the figures here too, as JSON")
    args = parser.parse_args()
    figures = {name: round(value, 3) for name, value in asyncio.run(measure(args)).items()}
    print(json.dumps(figures, indent=2))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
