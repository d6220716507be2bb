"""Keys of earlier versions, each with its replacement."""

from collections.abc import Iterator

_STAGES = ("encoder", "denoiser", "decoder", "ingress")
_AUTOSCALED = ("encoder", "denoiser", "decoder")


def _now(key: str) -> str:
    return f"is now {key}"


def _fixed(value: str) -> str:
    return f"is not a key any more, delete it: it is {value}"


def _of_every_stage() -> Iterator[tuple[str, str]]:
    for stage in _STAGES:
        for bound in ("min_replicas", "max_replicas"):
            yield f"{stage}.autoscaling.{bound}", _now(f"{stage}.{bound}")
        yield f"{stage}.autoscaling.metrics_interval_s", _fixed("5 s")
        yield f"{stage}.autoscaling.look_back_period_s", _fixed("15 s")
        yield f"{stage}.autoscaling.upscale_delay_s", _fixed("5 s")
        yield f"{stage}.max_surge_percent", _fixed("100 for the ingress and 0 for the other stages")
    for stage in _AUTOSCALED:
        yield f"{stage}.drain_timeout_s", _fixed("120 s")
    for stage in ("encoder", "decoder"):
        yield f"{stage}.max_ongoing_requests", _fixed("worked out from the size of a batch")
        yield f"{stage}.batch_wait_timeout_s", _fixed("5 ms")
    for bound in ("min_replicas", "max_replicas"):
        yield f"autoscaling.{bound}", f"is a key of each stage, as denoiser.{bound}"


OLD_KEYS = dict(_of_every_stage()) | {
    "model.compile_cache": _fixed("the folder `compiled` in jobs.data_folder"),
    "encoder.max_batch_size": _fixed("8"),
    "encoder.cache_size": _fixed("256 texts"),
    "denoiser.max_batch_size": _fixed("8, or denoiser.max_ongoing_requests where that is less"),
    "denoiser.row_counts": _fixed("worked out from denoiser.max_rows and the device"),
    "denoiser.deterministic_rows": _fixed("8, or denoiser.max_rows where that is less"),
    "denoiser.checkpoint_interval_s": _fixed("2 s"),
    "decoder.max_hold_s": _fixed("0.2 s"),
    "ingress.max_ongoing_requests": _fixed("2048, or twice limits.max_queue where that is more"),
    "ingress.autoscaling.target_ongoing_requests": _fixed("64"),
    "ingress.autoscaling.downscale_delay_s": _now("autoscaling.downscale_delay_s"),
    "limits.min_size": _fixed("64 pixels"),
    "limits.max_prompt_length": _fixed("4000 characters"),
    "limits.max_deadline_s": _fixed("3600 s"),
    "jobs.max_attempts": _fixed("3"),
    "jobs.lease_s": _fixed("15 s"),
    "jobs.poll_interval_s": _fixed("2 s"),
    "jobs.forget_after_s": _fixed("30 days, or jobs.retention_s where that is more"),
}
