"""The time that HTTP, Ray Serve and the hops between stages add to one image: medians, one client at a time.

    make serve                     in one terminal, then
    python -m benchmarks.http      in another

The same image is made over HTTP and by only the engine and decoder in this process, in turns.
"""

import argparse
import statistics
from pathlib import Path

import httpx
import torch

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS, SAMPLER, seconds
from deployments.engine import load_engine
from deployments.engine.images import encode_image
from deployments.engine.messages import ImageFormat


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours = load_engine(args.model, max_images=1)
    prompt = PROMPTS[0]

    def alone() -> None:
        ours.add(
            prompt,
            negative_prompt="",
            seed=1,
            sampler=SAMPLER,
            num_inference_steps=args.steps,
            guidance_scale=GUIDANCE_SCALE,
        )
        [pixels] = ours.finish()
        encode_image(pixels, ImageFormat(), {"prompt": prompt})

    with httpx.Client(base_url=args.url, timeout=120) as client:

        def over_http() -> None:
            body = {
                "prompt": prompt,
                "negative_prompt": "",
                "seed": 1,
                "sampler": SAMPLER,
                "num_inference_steps": args.steps,
                "guidance_scale": GUIDANCE_SCALE,
                "response_format": "b64_json",
            }
            client.post("/v1/images/generations", json=body).raise_for_status()

        pairs = [(seconds(over_http), seconds(alone)) for _ in range(args.repeats + 3)][3:]
    http_ms, alone_ms = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    added_ms = 1000 * statistics.median(http - own for http, own in pairs)
    print(f"over HTTP {http_ms:.0f} ms, engine and decoder alone {alone_ms:.0f} ms, added {added_ms:.0f} ms")


if __name__ == "__main__":
    main()
