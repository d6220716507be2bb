"""The diffusion engine: torch and diffusers only. No Ray, no pydantic, no HTTP; a plain script can drive it.

- messages: what goes in and comes out
- samplers: diffusers schedulers, compiled to tables
- models: loading a diffusers folder: family, device, dtype, attention
- prompts: text to embeddings
- cost: how long a forward takes, measured
- step_scheduler: which requests share the next forward
- denoising: the engine: admit, launch, finish
- engine_thread: the thread that owns a device and runs the engine
- images: latents to pixels to PNG, WebP or JPEG; previews
"""

import logging

from transformers.utils import logging as transformers_logging

# Importing diffusers makes these libraries tell every process, a replica each, that xformers has no CUDA here
# and that torchvision is not installed, and draw progress bars into its log. What of it matters is checked in
# `models`. So this stands before diffusers is imported.
# What the engine uses of diffusers it names where it uses it, as in `diffusers.AutoencoderKL`: that loads no
# more, and ingress and runner, which use none of its models, start a second earlier.
logging.getLogger("xformers").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
