"""Cost models of one H200, calculated: `python -m cluster.devices.h200` writes h200-*.json beside this file.

Nothing here was measured. The time of a row, an image or a text batch comes from its floating-point
operations, counted on the architectures beside this file, at 60% of the 790 TFLOP/s that dense bfloat16
products reach. Each forward also takes a fixed time, for launches and for the poor use of the device by few
rows. That time is an assumption, and so is the time of text encoding. So is how a model of a catalog is
loaded: its U-Net is in the host's memory as pages of its file, one thread reads it there, and it is copied
to the device over PCIe 5.0 at half of what pinned memory reaches. So is what adapters cost (README.md).
`midstep profile` on the device replaces
all of it.
"""

from pathlib import Path

from deployments.engine.adapters import rank_buckets
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.messages import LatentShape
from serve.config.model import CostModelFile

DEVICE = "modelled H200 (60% of 790 TFLOP/s), not measured"
TFLOP_PER_S = 0.6 * 790
HOST_GB_PER_S, TO_DEVICE_GB_PER_S = 10.0, 25.0
# The same padding as EngineConfig.for_device on CUDA.
ROW_COUNTS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MAX_TEXTS = 64
ADAPTED = tuple((rank, 1.15) for rank in rank_buckets(128))
FOLDER = Path(__file__).parent


def modelled(
    model: str,
    latent_shape: LatentShape,
    row_tflop: float,
    forward_s: float,
    image_tflop: float,
    encode_s: float,
    unet_gb: float,
) -> CostModelFile:
    """model: a folder beside this file

    row_tflop: per U-Net row; forward_s: fixed part of a forward; image_tflop: for decoding an image;
    encode_s: for a batch of up to MAX_TEXTS texts; unet_gb: the U-Net's weights in bfloat16
    """
    row_s, image_s = row_tflop / TFLOP_PER_S, image_tflop / TFLOP_PER_S
    forward = Curve(forward_s + row_s, 1, row_s)
    return CostModelFile(
        path=f"cluster/devices/{model}",
        dtype="bfloat16",
        device=DEVICE,
        cost_model=CostModel(
            encode=Curve(encode_s, MAX_TEXTS, 0.0),
            forward=StageCost(((latent_shape, forward),), padded_to=ROW_COUNTS, adapted=ADAPTED),
            decode=StageCost(((latent_shape, Curve(image_s, 1, image_s)),)),
            load_s=unet_gb / HOST_GB_PER_S + unet_gb / TO_DEVICE_GB_PER_S,
        ),
    )


FILES = {
    "h200-sd15.json": modelled("sd15", (64, 64), 0.803, 0.006, 2.515, 0.004, 1.719),
    "h200-sdxl.json": modelled("sdxl", (128, 128), 6.761, 0.008, 10.470, 0.010, 5.135),
}


def main() -> None:
    for name, file in FILES.items():
        (FOLDER / name).write_text(file.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
