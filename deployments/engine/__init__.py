"""The diffusion engine: torch and diffusers only. No Ray, no pydantic, no HTTP; a plain script can drive it.

- messages: what goes in and comes out
- samplers: the supported samplers; sampler_table, sampler_compiler: diffusers schedulers as tables
- models: loading a diffusers folder: family, device, dtype, attention
- prompts: text to embeddings
- conditions: a U-Net's inputs besides latents and timesteps
- cost: measured seconds per forward; engine_config: how an engine batches
- step_scheduler: which requests share the next forward
- engine: launches and finishes forwards; denoising: the state of one request
- step_inputs: the tensors of one step; device_step: that step on a device; row_parts: on a CPU
- engine_thread: the thread that owns a device and runs the engine
- images: latents to pixels to PNG, WebP or JPEG; previews
- local_engine: all stages in one process, for a script; README.md has one
"""

import logging
from typing import TYPE_CHECKING, Any

from transformers.utils import logging as transformers_logging

# Importing diffusers makes these libraries log in every process, so once per replica, that xformers has no
# CUDA here and that torchvision is not installed. They also draw progress bars into the log. `models` checks
# what matters of this. So these lines must run before diffusers is imported.
# The engine names diffusers' classes where it uses them, as in `diffusers.AutoencoderKL`. diffusers then
# loads nothing else, and the ingress and the runner, which use none of its models, start a second earlier.
logging.getLogger("xformers").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

if TYPE_CHECKING:
    from deployments.engine.local_engine import LocalEngine


def load_engine(path: str, **options: Any) -> "LocalEngine":
    """Loads a model's stages into this process; see `local_engine.load_engine`."""
    # Imported here because every import from this package would load the models' code otherwise.
    from deployments.engine import local_engine  # noqa: PLC0415

    return local_engine.load_engine(path, **options)
