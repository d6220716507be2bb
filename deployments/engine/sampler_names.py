"""Other programs' names for samplers: A1111, k-diffusion, ComfyUI, InvokeAI, Replicate and diffusers.

A name means a sampler here only if both have the same update rule and the same noise levels. Names of
unsupported rules are listed with their nearest samplers, for the refusal.
"""

import re
from collections.abc import Mapping

_PREFIXES = re.compile(r"^(?:sample[ _-])?(?:k[ _-])?")  # k-diffusion's: sample_euler, k_euler
_SEPARATORS = re.compile(r"[\s_-]")

# By the sampler's own name. They are compared by `plain`, so "dpmpp_2m" is "DPM++ 2M" already.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "DDIM eta 1": ("ddim eta",),
    "Euler a": ("euler_ancestral",),
    "DPM++ 2M": ("DPMSolver++",),
    "DPM++ 2M Karras": ("dpmpp_2m_k", "KarrasDPM"),
    "DPM++ 2M SDE": ("dpmpp_2m_sde_gpu", "sde-dpmsolver++"),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde_gpu_karras", "dpmpp_2m_sde_k"),
    "UniPC": ("unipc order 2",),
    "UniPC 3": ("uni_pc_bh2", "unipc order 3"),  # ComfyUI's is of order 3
    "KDPM2": ("DPM2",),
    "PLMS": ("PNDM",),
}

# Other update rules or other noise levels, with the nearest samplers.
NEAREST: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("LMS", "LMSDiscreteScheduler"): ("PLMS", "DEIS"),
    ("LMS Karras", "lms_k"): ("DPM++ 2M Karras", "PLMS"),
    ("DPM++ SDE", "dpmpp_sde", "dpmpp_sde_gpu", "DPMSolverSDEScheduler"): ("DPM++ 2M SDE", "Euler a"),
    ("DPM++ SDE Karras", "dpmpp_sde_k"): ("DPM++ 2M SDE Karras",),
    ("DPM++ 2S a", "dpmpp_2s_ancestral"): ("Euler a", "DPM++ 2M SDE"),
    ("DPM++ 2S a Karras",): ("DPM++ 2M SDE Karras", "Euler a"),
    ("DPM++ 2S", "dpmpp_2s", "DPMSolverSinglestepScheduler"): ("DPM++ 2M", "KDPM2"),
    ("DPM++ 2S Karras", "dpmpp_2s_k"): ("DPM++ 2M Karras",),
    ("DPM++ 3M SDE", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"): ("DPM++ 2M SDE", "DPM++ 3M"),
    ("DPM++ 3M SDE Karras",): ("DPM++ 2M SDE Karras",),
    ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun"): ("DPM++ 2M SDE",),
    ("DPM++ 2M SDE Heun Karras",): ("DPM++ 2M SDE Karras",),
    ("DPM++ 2M v2", "DPM++ 2Mv2", "dpm++2mv2"): ("DPM++ 2M",),
    ("DPM2 a", "dpm_2_ancestral", "kdpm_2_a", "KDPM2AncestralDiscreteScheduler"): ("KDPM2", "Euler a"),
    ("DPM2 a Karras",): ("KDPM2", "Euler a"),
    ("DPM fast", "DPM adaptive", "dpmsolver", "dpm"): ("DPM++ 2M", "UniPC"),
    ("Restart", "heunpp2"): ("Heun",),
    ("EDMEulerScheduler", "euler_cfg_pp"): ("Euler",),
    ("euler_ancestral_cfg_pp",): ("Euler a",),
    ("DDIM CFG++", "ddim_cfg_pp", "DDIM trailing"): ("DDIM",),
    ("EDMDPMSolverMultistepScheduler", "dpmpp_2m_cfg_pp", "res_multistep"): ("DPM++ 2M",),
    ("IPNDM", "ipndm_v", "IPNDMScheduler"): ("PLMS", "DEIS"),
    ("DDPMParallelScheduler", "SASolverScheduler", "er_sde", "seeds_2", "seeds_3"): ("DDPM", "DPM++ 2M SDE"),
    ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"): ("Euler", "Heun"),
}

# A1111's names of noise levels, which it once wrote after the sampler's name.
_NOISE_LEVELS = ("karras", "polyexponential", "exponential", "k")


def plain(name: str) -> str:
    """A name without parts that do not distinguish samplers: case, spaces, `_` and `-`, k-diffusion's
    prefixes, and diffusers' suffix `Scheduler`."""
    kept = _SEPARATORS.sub("", _PREFIXES.sub("", name.strip().lower()))
    return kept.replace("+", "p").removesuffix("scheduler")


_NEAREST_BY_NAME = {plain(name): nearest for names, nearest in NEAREST.items() for name in names}


def nearest_offered(name: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """The samplers nearest to one that other programs use but that is not offered here; none for an unknown
    name.

    known: the offered samplers by their plain names
    """
    wanted = plain(name)
    if wanted in _NEAREST_BY_NAME:
        return _NEAREST_BY_NAME[wanted]
    for levels in _NOISE_LEVELS:
        rule = wanted.removesuffix(levels)
        if rule != wanted and rule in known:
            return (known[rule], "DPM++ 2M Karras") if levels in ("karras", "k") else (known[rule],)
    return ()
