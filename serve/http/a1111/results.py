"""What a request answers: its images, also half-finished ones, and A1111's text about them."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deployments.engine.infotext import program_version
from deployments.engine.messages import EncodedImage
from serve.calls.image_metadata import image_metadata
from serve.generation import GenerationRequest, ImagePreview
from serve.http.a1111.bodies import CommonBody
from serve.http.a1111.running import Run, timestamp
from serve.http.a1111.samplers import sampler_name
from serve.http.a1111.settings import clip_stop_of
from serve.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Result:
    """An image, and its text as A1111 writes it (`infotexts`)."""

    image: EncodedImage
    infotext: str


def results_of(run: Run) -> list[Result]:
    """The finished images, and of a run that was stopped what there is of the others. In the order of their
    seeds. Half-finished ones take a while."""
    request = run.request
    made = {
        index: Result(one.image, image_metadata(request, one.seed)["parameters"])
        for index, one in run.done.items()
    }
    # The preview of a crop is a part that nothing lays into its picture.
    if not (request.start and request.start.crop):
        made |= {index: _half_finished(request, one) for index, one in run.unfinished.items()}
    return [made[index] for index in sorted(made)]


def base64_of(image: EncodedImage) -> str:
    return base64.b64encode(image.data).decode("ascii")


def info_of(body: CommonBody, run: Run, results: Sequence[Result], model: ServedModel) -> str:
    """The answer's `info`: JSON by A1111's names."""
    request = run.request
    seeds = [request.seed + index for index in range(request.num_images)]
    strength = request.strength if request.hires is None else request.hires.strength
    info = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(seeds),
        "negative_prompt": request.negative_prompt or "",
        "all_negative_prompts": [request.negative_prompt or ""] * len(seeds),
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": sampler_name(request.sampler),
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.id,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [one.infotext for one in results],
        "styles": [],
        "job_timestamp": timestamp(run.began_at),
        "clip_skip": clip_stop_of(request.reading.clip_skip, model),
        "is_using_inpainting_conditioning": model.info.needs_mask,
        "version": program_version(),
    }
    if run.is_interrupted or run.is_skipped:
        info["interrupted"] = True
    return json.dumps(info)


def _half_finished(request: GenerationRequest, preview: ImagePreview) -> Result:
    """A preview as a file like that of a finished image. Its texts say that it is none."""
    # When it is called, because importing torch takes seconds.
    from deployments.engine.images import encode_image  # noqa: PLC0415

    height, width = request.output_size
    image = Image.open(io.BytesIO(preview.image.data)).convert("RGB")
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    stopped = f"{preview.step} of {request.steps_per_image} steps"
    metadata = image_metadata(request, request.seed + preview.image_index)
    metadata |= {"interrupted": stopped, "parameters": f"{metadata['parameters']}, Interrupted: {stopped}"}
    return Result(encode_image(np.asarray(image), request.image_format, metadata), metadata["parameters"])
