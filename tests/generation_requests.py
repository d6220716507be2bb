"""Accepted requests, as tests need them."""

from typing import Any

from deployments.engine.messages import ImageFormat
from serve.generation import GenerationRequest


def generation_request(request_id: str = "id", **changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {
        "model": "shapes",
        "prompt": "a red star",
        "negative_prompt": None,
        "height": 128,
        "width": 128,
        "num_inference_steps": 10,
        "num_model_calls": 10,
        "guidance_scale": 5.0,
        "sampler": "DDIM",
        "seed": 7,
        "num_images": 1,
        "deterministic": False,
        "image_format": ImageFormat(),
    } | changes
    fields.setdefault("latent_shape", (fields["height"] // 8, fields["width"] // 8))
    return GenerationRequest(request_id=request_id, **fields)
