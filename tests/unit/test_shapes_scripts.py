"""The scripts beside the embedded model still run and train what they should."""

from pathlib import Path

import torch

from deployments.engine import load_engine
from tests.shapes import denoising, evaluate, train
from tests.tiny_models import SHAPES_MODEL


def test_evaluate_paints_pictures() -> None:
    cases = evaluate.draw_cases(2, seed=1)
    pictures = evaluate.paint(load_engine(str(SHAPES_MODEL)), cases, "DPM++ 2M", 2)
    assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 2


def test_the_last_stage_trains_the_unet_alone_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    tokenizer = train.build_tokenizer()
    text_encoder = train.build_text_encoder(tokenizer)
    before = {name: value.clone() for name, value in text_encoder.state_dict().items()}
    checkpoint = tmp_path / "denoiser.pt"
    latents, prompts = torch.randn(4, 8, 16, 16), ["a red star on a blue background"] * 4
    torch.manual_seed(2)
    start = train.build_unet()
    fresh = {name: value.clone() for name, value in start.state_dict().items()}
    arguments = (start, latents, prompts, tokenizer, text_encoder)
    trained = denoising.train_denoiser(*arguments, steps=2, peak=8e-4, seed=0, checkpoint=checkpoint)
    assert any(not torch.equal(value, fresh[name]) for name, value in trained.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in text_encoder.state_dict().items())

    model = train.build_unet()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    parts = {"unet": model.state_dict(), "ema": model.state_dict(), "optimizer": optimizer.state_dict()}
    denoising.save_whole({**parts, "step": 2}, checkpoint)
    resumed = denoising.train_denoiser(*arguments, steps=2, peak=8e-4, seed=0, checkpoint=checkpoint)
    assert all(torch.equal(value, parts["ema"][name]) for name, value in resumed.state_dict().items())
