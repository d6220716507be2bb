"""The stages as Ray Serve deployments: thin classes around `deployments.engine`."""

import gc
import logging

# diffusers imports xformers in every process, which then logs that its kernels do not load beside this torch.
# `engine.models` says so where `attention: xformers` asks for them.
logging.getLogger("xformers").setLevel(logging.ERROR)

# Half a million objects come with torch, diffusers and Ray, and stay. Python would look among them for
# garbage whenever there are 700 new ones, and that takes a quarter of the time of those imports.
gc.set_threshold(50_000, 10, 10)
