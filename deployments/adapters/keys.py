"""Divides a file's keys into the layer's name and the role of the tensor for it."""

from __future__ import annotations

import re

# The role of a tensor by the end of its key, behind a dot; what is before is the layer's name. `lora_A` may
# have PEFT's name of the adapter behind it.
_ENDS: dict[str, str] = {
    "down": r"(?:lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.\w+)?)\.weight",
    "up": r"(?:lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.\w+)?)\.weight",
    "mid": r"lora_mid\.weight",
    "alpha": r"alpha",
    "dora_scale": r"dora_scale",
    "magnitude": r"lora_magnitude_vector(?:\.\w+)?",
    "set_weight": r"set_weight",
} | {
    name: name
    for name in (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        *("diff", "diff_b", "w_norm", "b_norm"),
    )
}
_KEY = re.compile(rf"(.+?)\.(?:{'|'.join(f'(?P<{role}>{end})' for role, end in _ENDS.items())})")
# As diffusers wrote attention before its version 0.22: `to_q_lora.down.weight`.
_OLD_KEY = re.compile(r"(.+)_lora\.(down|up)\.weight")


def divide(key: str) -> tuple[str, str] | None:
    """The layer's name and the role. None for a key that ends as no adapter's does."""
    if found := _KEY.fullmatch(key):
        return found[1], str(found.lastgroup)
    if found := _OLD_KEY.fullmatch(key):
        return found[1], found[2]
    return None
