"""What a picture's file says about how it was made: everything that is needed to make it again."""

import json
from dataclasses import fields, replace

from deployments.engine.infotext import infotext
from deployments.engine.prompt_text import Reading
from serve.generation import GenerationRequest, HiresPass, StartPicture

# Parameters that are left out where they have their default values.
_ONLY_IF_UNUSUAL = {"eta", "guidance_start", "guidance_end", "guidance_rescale", "strength"}
_HASH_DIGITS = 10  # as A1111 and Civitai shorten them
_IN_NO_NAME = str.maketrans("", "", ":,")  # A1111 leaves them out too
# A1111's names of the upscalers.
_UPSCALERS = {"latent": "Latent (bicubic)", "lanczos": "Lanczos"}


def image_metadata(request: GenerationRequest, seed: int) -> dict[str, str]:
    """Text chunks by their keywords. seed: of this image"""
    unusual = {
        field.name: str(value)
        for field in fields(request)
        if field.name in _ONLY_IF_UNUSUAL and (value := getattr(request, field.name)) != field.default
    }
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or "",
        "seed": str(seed),
        "sampler": request.sampler,
        "num_inference_steps": str(request.num_inference_steps),
        "guidance_scale": str(request.guidance_scale),
        **unusual,
        **_of_reading(request.reading),
        **_of_start(request.start),
        **_of_hires(request.hires),
        **_of_adapters(request),
        "model": request.model,
        "parameters": infotext(
            replace(request, seed=seed),
            request.prompt,
            request.negative_prompt,
            request.model,
            _settings(request),
        ),
    }


def _of_reading(reading: Reading) -> dict[str, str]:
    """Only what differs from diffusers."""
    given = {
        "prompt_syntax": None if reading.syntax == "plain" else reading.syntax,
        "long_prompts": None if reading.max_chunks == 1 else "chunk",
        "clip_skip": reading.clip_skip,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _of_start(start: StartPicture | None) -> dict[str, str]:
    if start is None:
        return {}
    given = {
        "image_sha256": start.sha256,
        "mask_sha256": start.mask_sha256,
        "padding_mask_crop": start.padding_mask_crop,
        "preserve_unmasked": start.preserve_unmasked or None,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _of_hires(hires: HiresPass | None) -> dict[str, str]:
    if hires is None:
        return {}
    names = ("scale", "upscaler", "strength", "num_inference_steps")
    return {f"hires_{name}": str(getattr(hires, name)) for name in names}


def _of_adapters(request: GenerationRequest) -> dict[str, str]:
    """The adapters as the field `loras`, with the SHA-256 of their files."""
    unet, text = (
        {use.adapter: use.scale for use in uses} for uses in (request.adapters, request.text_adapters)
    )
    loras = []
    for adapter in unet | text:
        in_unet, in_text = unet.get(adapter, 0.0), text.get(adapter, 0.0)
        scale = in_unet if adapter.unet_rank else in_text
        lora: dict[str, str | float] = {"id": adapter.name, "scale": scale}
        if adapter.text_rank and in_text != scale:
            lora["text_encoder_scale"] = in_text
        loras.append(lora | {"sha256": adapter.digest})
    return {"loras": json.dumps(loras, ensure_ascii=False)} if loras else {}


def _settings(request: GenerationRequest) -> dict[str, str]:
    """A1111's settings of what is not in every request."""
    return _denoising_settings(request) | _adapter_hashes(request)


def _adapter_hashes(request: GenerationRequest) -> dict[str, str]:
    """Civitai and A1111 find adapters by them."""
    adapters = dict.fromkeys(use.adapter for use in (*request.adapters, *request.text_adapters))
    joined = ", ".join(f"{one.name.translate(_IN_NO_NAME)}: {one.digest[:_HASH_DIGITS]}" for one in adapters)
    return {"Lora hashes": joined} if joined else {}


def _denoising_settings(request: GenerationRequest) -> dict[str, str]:
    if request.hires is not None:
        return {
            "Denoising strength": str(request.hires.strength),
            "Hires upscale": str(request.hires.scale),
            "Hires steps": str(request.hires.num_inference_steps),
            "Hires upscaler": _UPSCALERS[request.hires.upscaler],
        }
    return {} if request.strength is None else {"Denoising strength": str(request.strength)}
