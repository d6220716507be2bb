"""Hooks for schemathesis, which reads them by SCHEMATHESIS_HOOKS: accepted requests take one step."""

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Changes only acceptable requests, which stay acceptable. Wrong ones are sent unchanged."""
    body = case.body
    if not isinstance(body, dict):
        return
    wanted = body["input"] if isinstance(body.get("input"), dict) else body
    for name in ("num_inference_steps", "n", "num_outputs", "steps", "batch_size", "n_iter"):
        if isinstance(given := wanted.get(name), int) and given > 1:
            wanted[name] = 1
    if isinstance(given := wanted.get("deadline_s"), float) and 0 < given <= 3600:
        wanted["deadline_s"] = 600.0  # that a slow machine is late is no fault of its answer, which is 504
    if case.path.endswith(("/txt2img", "/img2img")):
        wanted.setdefault("steps", 1)
    elif isinstance(wanted.get("prompt"), str):
        wanted.setdefault("num_inference_steps", 1)
