"""The diffusion engine: torch and diffusers only. No Ray, no pydantic, no HTTP; a plain script can drive it.

messages          what goes in and comes out
samplers          diffusers schedulers, compiled to tables
models            loading a diffusers folder: family, device, dtype, attention
prompts           text to embeddings
cost              how long a forward takes, measured
step_scheduler    which requests share the next forward
denoising         the engine: admit, forward, advance, retire
engine_thread     the thread that owns a device and runs the engine
images            latents to pixels to PNG, WebP or JPEG; previews
"""
