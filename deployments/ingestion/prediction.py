"""What a U-Net predicts and the noise that it was trained for, from what its file and its entry say."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.tensor_files.headers import Header

# diffusers' schedulers that can rescale their betas to zero terminal SNR. Another is replaced by DDIM's,
# whose schedule of betas is the same.
_CAN_RESCALE = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
_METADATA = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def refuse_edm(header: Header) -> None:
    """Raises IngestionError for EDM's noise (Playground 2.5, CosXL), for which no sampler here is made."""
    for name in header.tensors:
        if name.startswith("edm_"):
            raise IngestionError(
                f"{header.path} has noise of EDM's kind (its tensor {name}), as Playground 2.5 and CosXL "
                "have, which is not served"
            )


def marked_prediction(header: Header) -> str | None:
    """What the file itself says: its marks first, then its metadata."""
    if "v_pred" in header.tensors:
        return "v_prediction"
    said = header.metadata.get("modelspec.prediction_type", "").strip().lower().replace("-", "_")
    return _METADATA.get(said)


def scheduler_config(
    model: ModelToIngest, base: Mapping[str, Any], marked: str | None, marks: Collection[str] = ()
) -> dict[str, Any]:
    """The scheduler's configuration.

    base: of the folder or the architecture; marked: the prediction that the file names; marks: of its tensors
    """
    config = {key: value for key, value in base.items() if key != "_diffusers_version"}
    config["prediction_type"] = (
        marked or base.get("prediction_type", "epsilon")
        if model.prediction_type == "auto"
        else model.prediction_type
    )
    is_auto = model.zero_terminal_snr == "auto"
    is_asked = "ztsnr" in marks if is_auto else model.zero_terminal_snr
    if is_asked:
        # The first step begins at the last timestep (arXiv:2305.08891, section 3.3).
        config["timestep_spacing"] = "trailing"
    # A folder's scheduler that rescales by itself has the spacing that it was made with.
    if is_asked or (is_auto and base.get("rescale_betas_zero_snr", False)):
        config["rescale_betas_zero_snr"] = True
        if config.get("_class_name") not in _CAN_RESCALE:
            config["_class_name"] = "DDIMScheduler"
    else:
        config.pop("rescale_betas_zero_snr", None)
    return config
