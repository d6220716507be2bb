"""Checkpoints of jobs in the object store, so that a job survives its runner's death in mid-image too."""

from safetensors import SafetensorError

from deployments.engine.messages import Checkpoint


class UnusableCheckpointError(ValueError):
    """The image starts from the beginning; the message says why."""


def checkpoint_key(job_id: str, image_index: int) -> str:
    return f"checkpoints/{job_id}/{image_index}"


def to_bytes(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    """A safetensors file. Unlike a pickle it is safe to read, whoever may write to the store.

    fingerprint: hexadecimal, from deployments.engine.fingerprint
    """
    import torch  # noqa: PLC0415 - runners are there sooner without it
    from safetensors.torch import save  # noqa: PLC0415

    progress = torch.tensor([checkpoint.step, checkpoint.call, checkpoint.in_pass])
    made_by = torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)
    return save({"state": checkpoint.state, "progress": progress, "fingerprint": made_by})


def from_bytes(data: bytes, fingerprint: str) -> Checkpoint:
    """Raises UnusableCheckpointError if it is not a checkpoint, or if its fingerprint differs."""
    from safetensors.torch import load  # noqa: PLC0415

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UnusableCheckpointError(f"it cannot be read: {error}") from error
    made_by = tensors.get("fingerprint")
    if made_by is None or bytes(made_by.tolist()).hex() != fingerprint:
        raise UnusableCheckpointError("it was made with other weights or by another version of the engine")
    step, call, *passes = tensors["progress"].tolist()  # older versions had one pass only
    return Checkpoint("", step, call, tensors["state"], *passes)
