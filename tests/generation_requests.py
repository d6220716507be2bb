"""Accepted requests, the denoising of their images, and a model that they are for, for tests."""

from typing import Any

from deployments.engine.messages import DenoiseRequest, ImageFormat, PromptEmbeds, TokenCount
from deployments.engine.model_source import ModelRef, ModelSource
from serve.generation import GenerationRequest

SOME_MODEL = ModelRef(ModelSource("nowhere"), "digest", "text", "unet", "vae")


def generation_request(request_id: str = "id", **changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {
        "model": "shapes",
        "prompt": "a red star",
        "negative_prompt": None,
        "height": 128,
        "width": 128,
        "num_inference_steps": 10,
        "num_calls": 10,
        "guidance_scale": 5.0,
        "sampler": "DDIM",
        "seed": 7,
        "num_images": 1,
        "deterministic": False,
        "image_format": ImageFormat(),
    } | changes
    fields.setdefault("latent_shape", (fields["height"] // 8, fields["width"] // 8))
    return GenerationRequest(request_id=request_id, **fields)


def denoise_request(
    request_id: str = "id", embeds: PromptEmbeds | None = None, steps: int = 10, **changes: Any
) -> DenoiseRequest:
    """embeds: None for placeholder embeddings of a guided prompt"""
    nothing: Any = object()
    fields: dict[str, Any] = {
        "height": 128,
        "width": 128,
        "sampler": "DPM++ 2M",
        "num_inference_steps": steps,
        "num_calls": steps,
        "guidance_scale": 5.0,
        "seed": 1,
    } | changes
    fields.setdefault("latent_shape", (fields["height"] // 8, fields["width"] // 8))
    return DenoiseRequest(
        request_id,
        embeds or PromptEmbeds(nothing, nothing, nothing, nothing, TokenCount(0, 0), TokenCount(0, 0)),
        **fields,
    )
