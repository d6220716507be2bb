"""The diffusion engine: torch and diffusers only. No Ray, no pydantic, no HTTP; a plain script can drive it.

- messages: what goes in and comes out
- samplers: the supported samplers; sampler_table, sampler_compiler: diffusers schedulers as tables
- model_source: which model it is and what its files say of it; model_files: what is wrong with them
- models: loading a diffusers folder: family, device, dtype, attention; quantization: weights in fewer bits;
  cuda_driver: whether torch can use the NVIDIA driver
- prompts: text to embeddings; prompt_text: what is to be encoded
- prompt_syntax: weights in prompts; prompt_chunks: prompts of any length; embeddings: textual inversions
- conditions: a U-Net's inputs besides latents and timesteps
- cost: measured seconds per forward; engine_config: how an engine batches
- step_scheduler: which requests share the next forward
- engine: launches and finishes forwards (launched_forward); reports: what they did; denoising: the state of
  one request
- model_pool: which models are on the device and which is loaded next; unet_loader: gets them there;
  forward_costs: what forwards of other architectures than the measured one cost
- beginnings: the first latents, from noise or from a picture
- pictures: pictures to start from, encoded; fit_picture: brought to their size
- step_inputs: the tensors of one step; device_step: that step on a device; row_parts: on a CPU
- engine_thread: the thread that owns a device and runs the engine
- images: latents to pixels to PNG, WebP or JPEG; previews
- local_engine: all stages in one process, for a script; README.md has one

The modules that callers need (messages, model_source, prompt_text, samplers, cost, engine_config) import
neither torch nor diffusers, which take seconds, before they compile a sampler.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.engine.local_engine import LocalEngine


def load_engine(path: str, **options: Any) -> "LocalEngine":
    """Loads a model's stages into this process; see `local_engine.load_engine`."""
    # Imported here because every import from this package would load the models' code otherwise.
    from deployments.engine import local_engine  # noqa: PLC0415

    return local_engine.load_engine(path, **options)
