"""Checkpoints of jobs in the object store, so that a job outlives its runner in mid-image too."""

import torch
from safetensors.torch import load, save

from deployments.engine.messages import Checkpoint


def checkpoint_key(job_id: str, image_index: int) -> str:
    return f"checkpoints/{job_id}/{image_index}"


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """A safetensors file: unlike a pickle it is safe to read, whoever may write to the store."""
    progress = torch.tensor([checkpoint.step, checkpoint.call])
    return save({"state": checkpoint.state, "progress": progress})


def from_bytes(data: bytes) -> Checkpoint:
    """Raises safetensors.SafetensorError for what is no checkpoint."""
    tensors = load(data)
    step, call = tensors["progress"].tolist()
    return Checkpoint("", step, call, tensors["state"])
