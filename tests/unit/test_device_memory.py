"""The counted memory of stages, against counts by hand."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from cluster.cli import main
from cluster.memory import Counted, fullest_gpu, memory_tables
from deployments import device_memory
from deployments.device_memory import ImageRoom, StageMemory, VaeMemory, image_room
from deployments.engine.model_source import ModelSource, Placement, load_model_info
from deployments.ingestion.recognition import CONFIGS
from serve.config.app import AppConfig

GIB, MIB = 2**30, 2**20
BFLOAT16, FLOAT32 = 2, 4  # bytes
# As published.
UNET = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}
TEXT = {"sd15": 123_060_480, "sd21": 340_387_840, "sdxl": 123_060_480 + 694_659_840}
VAE = 83_653_863
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
FAMILIES = [*SIDES]
# A row's activations are largest in the feed-forward layer of the last transformers in the largest latents
# that have any. All values are of one channel count C at T tokens. GEGLU has 8 C, the half of it behind the
# GELU 4 C and the product 4 C. Beside it are the transformer's input, its projection, its hidden states, the
# last attention and the norm (5 C), the block's input of twice the channels (2 C), and the skip connections:
# three (3 C), but in SDXL two, one of half of the channels, and three of the latents' size.
ROW = {
    "sd15": (16 + 5 + 2 + 3) * 320 * 64**2 * BFLOAT16,
    "sd21": (16 + 5 + 2 + 3) * 320 * 96**2 * BFLOAT16,
    "sdxl": ((16 + 5 + 2 + 2) * 640 + 320) * 64**2 * BFLOAT16 + 3 * 320 * 128**2 * BFLOAT16,
}
# A VAE takes most in the first convolution of its last block: the block's input, the activated one, cuDNN's
# copy of that in its own memory format, of 256 channels each, and the output of 128.
PER_PIXEL = 3 * 256 + 128


def config_of(path: Path | str, **sections: dict[str, object]) -> AppConfig:
    model = {"path": str(path), "device": "cuda"} | sections.pop("model", {})
    return AppConfig.model_validate({"model": model, **sections})


@cache
def counted_of(family: str) -> Counted:
    """A model whose folder has no weights."""
    return Counted.of(config_of(CONFIGS / family))


def row_counts(most: int) -> list[int]:
    return [count for count in (1, 2, 4, 6, 8, 12, 16, 24, 32) if count <= most]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_of_stages_is_within_a_tenth_of_counts_by_hand(family: str) -> None:
    counted, side = counted_of(family), SIDES[family]
    rows = 16 if family == "sdxl" else 32
    about = {"rel": 0.1}
    assert counted.encoder.weights == pytest.approx(BFLOAT16 * TEXT[family], rel=0.01)
    denoiser = counted.denoiser
    assert denoiser.weights == BFLOAT16 * UNET[family]
    assert denoiser.activations == pytest.approx(rows * ROW[family], **about)
    states = 4 * (side // 8) ** 2 * FLOAT32  # of the latents
    embeds = 77 * (2048 if family == "sdxl" else 1024 if family == "sd21" else 768) * BFLOAT16
    held = sum(row_counts(rows)) * (8 * states + embeds)  # 5 states, noise, and 2 outputs
    assert denoiser.graphs == pytest.approx(rows * ROW[family] + held, **about)
    assert denoiser.adapters == 0
    assert counted.vae.weights == BFLOAT16 * VAE
    shape = (side // 8, side // 8)
    assert counted.vae.images(1, shape) == pytest.approx(PER_PIXEL * side**2 * BFLOAT16, **about)


def test_sdxl_in_three_processes_is_what_it_is_known_to_be() -> None:
    """In GiB: U-Net 4.8, 2.5 for 16 rows, 0.16 of buffers of 7 graphs; an image 1.9, in float32 3.75."""
    counted = counted_of("sdxl")
    assert counted.denoiser.weights / GIB == pytest.approx(4.8, rel=0.02)
    assert counted.denoiser.activations / GIB == pytest.approx(16 * 0.154, rel=0.02)
    assert (counted.denoiser.graphs - counted.denoiser.activations) / GIB == pytest.approx(0.16, rel=0.1)
    assert counted.vae.images(4, (128, 128)) / GIB == pytest.approx(7.5, rel=0.1)
    four = sum(one.total for one in counted.stages(ImageRoom(4)).values())
    assert 18 <= four / GIB <= 21
    in_float16 = VaeMemory.of(ModelSource(str(CONFIGS / "sdxl")), torch.float16)
    assert in_float16.weights == FLOAT32 * VAE
    assert in_float16.images(4, (128, 128)) / GIB == pytest.approx(15, rel=0.1)
    of_sd15 = VaeMemory.of(ModelSource(str(CONFIGS / "sd15")), torch.float16)
    assert of_sd15.weights == BFLOAT16 * VAE, "only SDXL's is in float32"


def test_more_models_adapters_and_sizes_take_more(tmp_path: Path) -> None:
    def counted(**sections: dict[str, object]) -> Counted:
        return Counted.of(config_of("models/shapes", **sections))

    for name in ("second", "third"):
        (tmp_path / f"{name}.yaml").write_text("source: models/outlines\n")
    one = counted()
    many = counted(catalog={"folder": str(tmp_path)}, denoiser={"max_models": 2}, decoder={"max_models": 1})
    assert many.denoiser.weights == 2 * one.denoiser.weights
    assert many.denoiser.graphs == 2 * one.denoiser.graphs
    assert many.denoiser.activations == one.denoiser.activations, "one runs at a time"
    assert many.encoder.weights == 3 * one.encoder.weights, "there are no more, though 4 may be"
    assert many.decoder(ImageRoom(1)).weights == one.decoder(ImageRoom(1)).weights
    adapted = counted(adapters={"folder": "adapters", "max_rank": 64, "gpu_gib": 2})
    assert adapted.denoiser.adapters > 2 * GIB
    assert adapted.denoiser.graphs > one.denoiser.graphs
    assert adapted.encoder.adapters > 0
    sizes = counted(model={"sizes": ["256x256"]})
    assert sizes.denoiser.graphs > 3 * one.denoiser.graphs, "32 rows of either size"


def test_the_largest_image_is_as_large_as_the_limits_allow() -> None:
    config = config_of(CONFIGS / "sd15", limits={"max_height": 512, "max_pixels": 512 * 900})
    assert config.largest_shape(load_model_info(config.model.source())) == (64, 112)


def test_a_decoder_takes_as_many_images_of_a_size_as_have_room() -> None:
    vae = VaeMemory(weights=100 * MIB, per_latent=100_000)
    room = vae.room(512 * MIB + 3 * 100 * MIB + 3.5 * 100_000 * 64 * 64, most=8, num_models=3)
    assert room.images((64, 64)) == 3
    assert room.images((32, 64)) == 7
    assert room.images((32, 32)) == 8, "no more than the most"
    assert room.images((512, 512)) == 1, "never none: what does not fit alone is refused when it fails"


@pytest.mark.parametrize(
    ("free_gib", "share", "dtype", "images"),
    [
        (24, 0.16, "bfloat16", 1),
        (80, 0.16, "bfloat16", 4),
        (24, 1.0, "bfloat16", 4),
        (24, 0.5, "float16", 3),
        (5, 1.0, "bfloat16", 2),
        (1, 1.0, "bfloat16", 1),
        (24, None, "bfloat16", 4),
    ],
)
def test_the_images_of_a_call_follow_from_the_free_memory_of_the_gpu_and_the_share(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, share: float | None, dtype: str, images: int
) -> None:
    total = max(free_gib, 24) * GIB
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gib * GIB, total))
    source = ModelSource(str(CONFIGS / "sdxl"))
    assert image_room(source, Placement("cuda", dtype), share, 4, 1).images((128, 128)) == images


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_elsewhere_memory_limits_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "VaeMemory", None)
    assert image_room(ModelSource("nowhere"), Placement(device), 0.16, 4, 1) == ImageRoom(4)


def test_the_fullest_gpu_has_what_needs_most_of_all_that_its_shares_allow() -> None:
    stages = {
        "encoder": StageMemory(1, 0),
        "denoiser": StageMemory(8 * GIB, 0),
        "decoder": StageMemory(GIB, 0),
    }

    def fullest(**sections: dict[str, object]) -> dict[str, int]:
        config = AppConfig.model_validate({"model": {"device": "cuda"}, **sections})
        together, num_bytes = fullest_gpu(config, stages)
        assert num_bytes == sum(count * stages[name].total for name, count in together.items())
        return together

    assert fullest() == {"encoder": 1, "denoiser": 1, "decoder": 1}
    two = {"max_replicas": 2}
    assert fullest(encoder=two, denoiser=two, decoder=two) == {"encoder": 2, "denoiser": 1, "decoder": 2}
    whole = {"num_gpus": 1}
    assert fullest(denoiser=whole) == {"encoder": 0, "denoiser": 1, "decoder": 0}
    halves = two | {"num_gpus": 0.5}
    assert fullest(denoiser=halves) == {"encoder": 0, "denoiser": 2, "decoder": 0}


def test_notes_say_what_the_tables_assume(tmp_path: Path) -> None:
    (tmp_path / "second.yaml").write_text("source: models/outlines\n")

    def notes(path: Path | str, **sections: dict[str, object]) -> list[str]:
        return memory_tables(config_of(path, **sections)).rpartition("141 GB")[2].splitlines()[1:]

    sdxl, catalog = CONFIGS / "sdxl", {"folder": str(tmp_path)}
    assert notes("models/shapes") == []
    assert notes("models/shapes", catalog=catalog)[1:] == [
        "each model of the catalog counts as if it were as large as shapes"
    ]
    [_, in_float16] = notes(sdxl)
    assert "this VAE in float32: its weights and images then take twice the memory" in in_float16
    assert notes(sdxl, model={"dtype": "bfloat16"}) == []


def test_the_table_says_which_gpus_have_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = {
        "model": {
            "id": "sdxl",
            "path": "cluster/devices/sdxl",
            "device": "simulated",
            "dtype": "float16",
            "cost_model": "cluster/devices/h200-sdxl.json",
        },
        "decoder": {"max_batch_size": 4},
    }
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"applications": [application]}))
    assert main(["check", "--memory", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("sdxl in float16, in GiB, counted from its configuration and not measured:")
    denoiser = next(line for line in lines[begin:] if line.startswith("denoiser"))
    assert denoiser.split()[1] == "4.78"
    assert "the fullest GPU has 1 encoder, 1 denoiser, 1 decoder; a GB is 0.93 GiB:" in lines
    verdicts = {
        line.split(" GB")[0]: line.split()[-1] for line in lines if " GB " in line and line[0].isdigit()
    }
    assert verdicts == {"16": "no", "24": "no", "48": "yes", "80": "yes", "141": "yes"}
