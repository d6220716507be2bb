"""What a picture's file says about how it was made: everything that is needed to make it again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from deployments.engine.adapters import AdapterRef
from deployments.engine.infotext import infotext
from deployments.engine.prompt_adapters import without_adapters
from deployments.engine.prompt_text import Reading
from serve.generation import GenerationRequest, HiresPass, StartPicture

# Parameters that are left out where they have their default values.
_ONLY_IF_UNUSUAL = {"eta", "guidance_start", "guidance_end", "guidance_rescale", "strength"}
_HASH_DIGITS = 10  # as Civitai shortens them
_IN_NO_TAG = str.maketrans("", "", ":,<>")
# A1111's names of the upscalers.
_UPSCALERS = {"latent": "Latent (bicubic)", "lanczos": "Lanczos"}


def image_metadata(request: GenerationRequest, seed: int) -> dict[str, str]:
    """Text chunks by their keywords. seed: of this image

    All adapters are in `loras`, so the prompt is without those that it named: a request with both chunks
    gives the same image. A1111 gets all of them as tags.
    """
    prompt, loras = _plain_prompt(request), _loras(request)
    unusual = {
        field.name: str(value)
        for field in fields(request)
        if field.name in _ONLY_IF_UNUSUAL and (value := getattr(request, field.name)) != field.default
    }
    return {
        "prompt": prompt,
        "negative_prompt": request.negative_prompt or "",
        "seed": str(seed),
        "sampler": request.sampler,
        "num_inference_steps": str(request.num_inference_steps),
        "guidance_scale": str(request.guidance_scale),
        **unusual,
        **_of_reading(request.reading),
        **_of_start(request.start),
        **_of_hires(request.hires),
        **_of_adapters(loras),
        "model": request.model,
        "parameters": infotext(
            replace(request, seed=seed),
            " ".join([prompt.strip(), *(one.tag for one in loras)]),
            request.negative_prompt,
            request.model,
            _denoising_settings(request) | _mask_settings(request.start) | _adapter_hashes(loras),
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
        "black_is_repainted": start.black_is_repainted or None,
        "mask_blur": start.mask_blur or None,
        "fills_mask": start.fills_mask or None,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _of_hires(hires: HiresPass | None) -> dict[str, str]:
    if hires is None:
        return {}
    names = ("scale", "upscaler", "strength", "num_inference_steps")
    return {f"hires_{name}": str(getattr(hires, name)) for name in names}


def _plain_prompt(request: GenerationRequest) -> str:
    """The prompt without the adapters that it names."""
    return without_adapters(request.prompt) if request.reading.syntax == "a1111" else request.prompt


@dataclass(frozen=True, slots=True)
class _Lora:
    """An adapter of a request. scale: in the U-Net, if it changes it, and else as text_scale"""

    adapter: AdapterRef
    scale: float
    text_scale: float

    @property
    def name(self) -> str:
        """A1111's, which knows no folders."""
        return self.adapter.name.rpartition("/")[2].removesuffix(".safetensors").translate(_IN_NO_TAG)

    @property
    def tag(self) -> str:
        if self.text_scale == self.scale:
            return f"<lora:{self.name}:{self.scale:g}>"
        return f"<lora:{self.name}:{self.text_scale:g}:{self.scale:g}>"


def _loras(request: GenerationRequest) -> list[_Lora]:
    unet, text = (
        {use.adapter: use.scale for use in uses} for uses in (request.adapters, request.text_adapters)
    )
    loras = []
    for adapter in unet | text:
        in_text = text.get(adapter, 0.0)
        scale = unet.get(adapter, 0.0) if adapter.unet_rank else in_text
        loras.append(_Lora(adapter, scale, in_text if adapter.text_rank else scale))
    return loras


def _of_adapters(loras: Sequence[_Lora]) -> dict[str, str]:
    """The adapters as the field `loras`, with the SHA-256 of their files."""
    bodies = []
    for one in loras:
        body: dict[str, str | float] = {"id": one.adapter.name, "scale": one.scale}
        if one.text_scale != one.scale:
            body["text_encoder_scale"] = one.text_scale
        bodies.append(body | {"sha256": one.adapter.digest})
    return {"loras": json.dumps(bodies, ensure_ascii=False)} if bodies else {}


def _adapter_hashes(loras: Sequence[_Lora]) -> dict[str, str]:
    """The beginnings of the files' SHA-256, by which Civitai finds adapters. A1111 hashes only the weights in
    a file, and goes by the name in the tag where it knows no such hash."""
    joined = ", ".join(f"{one.name}: {one.adapter.digest[:_HASH_DIGITS]}" for one in loras)
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


def _mask_settings(start: StartPicture | None) -> dict[str, str]:
    """By A1111's names; what is left out means what A1111 does by default."""
    if start is None or not start.has_mask:
        return {}
    given = {
        "Mask mode": "Inpaint not masked" if start.black_is_repainted else None,
        "Mask blur": start.mask_blur or None,
        "Masked content": "fill" if start.fills_mask else None,
        "Inpaint area": None if start.crop is None else "Only masked",
        "Masked area padding": start.padding_mask_crop,
    }
    return {name: str(value) for name, value in given.items() if value is not None}
