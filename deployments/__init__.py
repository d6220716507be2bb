"""The stages as Ray Serve deployments: thin classes around `deployments.engine`."""

import gc
import logging

# diffusers imports xformers in every process, which then logs that its kernels do not load beside this torch.
# `engine.models` says so where `attention: xformers` asks for them. It imports torchao too where that is
# installed, which logs what it does not need.
for _name in ("xformers", "torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# Half a million objects come with torch, diffusers and Ray, and stay. Python would look among them for
# garbage whenever there are 700 new ones, and that takes a quarter of the time of those imports.
gc.set_threshold(50_000, 10, 10)
