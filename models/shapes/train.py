"""Trains the embedded model from scratch and writes it beside this file as a diffusers folder.

    make train                                          (or: python models/shapes/train.py)
    python models/shapes/train.py --style outlined      fine-tunes its U-Net and writes `models/outlines`
    python models/shapes/train.py --style striped       trains an adapter, `adapters/stripes.safetensors`

There are four seeded stages: the VAE learns the pictures, the text encoder learns which object stands where,
every scene is encoded once, then the U-Net learns to denoise the latents (v-prediction). Finished stages stay
in the work folder, so that an interrupted run continues from its last checkpoint. It takes hours on two
cores.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from architecture import (
    MAX_TOKENS,
    TEXT_WIDTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from denoising import fast_precision, save_whole, train_denoiser, training_steps
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from low_rank import add_adapter, save_adapter
from pictures import draw_crops, draw_scenes, to_signal
from scenes import COLOURS, SHAPES, SIZES, STYLES, Scene, random_scene
from transformers import CLIPTextModel, CLIPTokenizer


def train_vae(steps: int, seed: int) -> AutoencoderKL:
    """Trains on crops first, and in the last quarter on whole pictures, for their statistics."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=0.01)
    losses = []
    for step in training_steps(optimizer, 0, steps, 2e-3):
        target = to_signal(draw_crops(32, rng) if step < 0.75 * steps else draw_scenes(12, rng)[0])
        with fast_precision():
            posterior = vae.encode(target).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        # A KL weight that only bounds the latents: a larger one leaves them too noisy for sharp corners.
        loss = F.l1_loss(decoded, target) + F.mse_loss(decoded, target) + 5e-9 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"  vae loss {sum(losses[-100:]) / 100:.4f}", flush=True)
    return vae


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int, seed: int, style: str) -> tuple[torch.Tensor, list[str]]:
    """Latents [count, 8, 16, 16] (unscaled means) and prompts of fresh scenes."""
    rng = random.Random(seed + 1)
    latents, prompts = [], []
    for _ in range(0, count, 128):
        pictures, said = draw_scenes(128, rng, style)
        with fast_precision():
            latents.append(vae.encode(to_signal(pictures)).latent_dist.mean.float())
        prompts += said
    return torch.cat(latents), prompts


PLACES = ("left of", "right of", "above", "below", None)  # where an object may stand; None is the middle
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ANSWERS = [len(COLOURS)] + [1 + len(COLOURS), 1 + len(SHAPES), 1 + len(SIZES)] * len(PLACES)


def answers(scene: Scene) -> list[int]:
    """The background's colour, and for every place its object's colour, shape and size (0: nothing)."""
    standing = {scene.relation: scene.things[0]}
    if scene.relation is not None:
        standing[OPPOSITE[scene.relation]] = scene.things[1]
    labels = [list(COLOURS).index(scene.background)]
    for place_name in PLACES:
        thing = standing.get(place_name)
        labels += (
            [0, 0, 0]
            if thing is None
            else [
                1 + list(COLOURS).index(thing.colour),
                1 + SHAPES.index(thing.shape),
                0 if thing.size is None else 1 + SIZES.index(thing.size),
            ]
        )
    return labels


def train_text_encoder(tokenizer: CLIPTokenizer, steps: int, batch_size: int, seed: int) -> CLIPTextModel:
    """Learns to answer which object stands where, from any token behind a prompt's end.

    The U-Net alone soon teaches it colours, but not left and right in 6,000 steps: its causal attention must
    carry both objects past the words for their relation, and denoising rewards that late.
    """
    torch.manual_seed(seed + 3)
    rng = random.Random(seed + 3)
    text_encoder = build_text_encoder(tokenizer)
    head = torch.nn.Linear(TEXT_WIDTH, sum(ANSWERS))
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *head.parameters()], weight_decay=0.01)
    for step in training_steps(optimizer, 0, steps, 1e-3):
        scenes = [random_scene(rng) for _ in range(batch_size)]
        encoded = tokenizer([scene.prompt() for scene in scenes], padding="max_length", return_tensors="pt")
        hidden = text_encoder(encoded.input_ids).last_hidden_state  # [batch, tokens, width]
        first_end = (encoded.input_ids == tokenizer.eos_token_id).int().argmax(dim=1)
        chosen = first_end + (torch.rand(batch_size) ** 2 * (MAX_TOKENS - first_end)).long()
        logits = head(hidden[torch.arange(batch_size), chosen]).split(ANSWERS, dim=1)
        labels = torch.tensor([answers(scene) for scene in scenes])
        losses = [F.cross_entropy(logit, labels[:, index]) for index, logit in enumerate(logits)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            right = torch.stack([logit.argmax(dim=1) for logit in logits], dim=1) == labels
            share = right.all(dim=1).float().mean()
            print(f"  text loss {loss.item():.3f}, {share:.0%} all right", flush=True)
    return text_encoder


def save(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    output: Path,
) -> None:
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(output)


def learn_style(
    args: argparse.Namespace, style: str, unet: UNet2DConditionModel, peak: float
) -> UNet2DConditionModel:
    """Only the U-Net learns the style, all of it or its adapter. peak: learning rate"""
    start = Path(__file__).parent
    vae = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32)
    latents_file = args.work / f"latents-{style}-{args.scenes}-{args.seed}.pt"
    if not latents_file.exists():
        print("1/2 encoding the scenes", flush=True)
        save_whole(encode_scenes(vae, args.scenes, args.seed, style), latents_file)
    latents, prompts = torch.load(latents_file)
    print("2/2 the U-Net learns the style")
    return train_denoiser(
        unet,
        latents * vae.config.scaling_factor,
        prompts,
        CLIPTokenizer.from_pretrained(start / "tokenizer"),
        CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32),
        args.denoiser_steps,
        peak,
        args.seed,
        args.work / f"denoiser-{style}.pt",
        num_scenes=10,  # half of the batch is enough for what it knows but for the style
        num_unprompted=5,
    )


def fine_tune(args: argparse.Namespace) -> None:
    """Writes a model whose other files are copies of the embedded one's: servers keep them once."""
    start = Path(__file__).parent
    output = args.output or start.parent / "outlines"
    unet = UNet2DConditionModel.from_pretrained((args.start or start) / "unet", torch_dtype=torch.float32)
    unet = learn_style(args, "outlined", unet, 2e-4)
    for part in ("scheduler", "text_encoder", "tokenizer", "vae"):
        shutil.copytree(start / part, output / part, dirs_exist_ok=True)
    shutil.copy(start / "model_index.json", output)
    # Half the bits of a float16's fraction are noise to git's compression, and eight are enough.
    unet.to(torch.bfloat16).save_pretrained(output / "unet")
    config = output / "unet" / "config.json"
    said = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(said, indent=2) + "\n")  # without a path of this machine
    print(f"written to {output}")


def train_adapter(args: argparse.Namespace) -> None:
    """Writes an adapter for the embedded model."""
    start = Path(__file__).parent
    output = args.output or start / "adapters" / "stripes.safetensors"
    torch.manual_seed(args.seed)
    unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    add_adapter(unet)
    save_adapter(learn_style(args, "striped", unet, 1e-3), output)
    print(f"written to {output}")


def train(args: argparse.Namespace) -> None:
    vae_folder, text_folder = args.work / "vae", args.work / "text_encoder"
    latents_file = args.work / f"latents-{args.scenes}-{args.seed}.pt"
    if vae_folder.exists():
        vae = AutoencoderKL.from_pretrained(vae_folder)
    else:
        print("1/4 the VAE learns the pictures")
        vae = train_vae(args.vae_steps, args.seed)
        vae.save_pretrained(vae_folder)
    tokenizer = build_tokenizer()
    if text_folder.exists():
        text_encoder = CLIPTextModel.from_pretrained(text_folder)
    else:
        print("2/4 the text encoder learns what stands where")
        text_encoder = train_text_encoder(tokenizer, args.text_steps, 64, args.seed)
        text_encoder.save_pretrained(text_folder)
    if not latents_file.exists():
        print("3/4 encoding the scenes", flush=True)
        save_whole(encode_scenes(vae, args.scenes, args.seed, "filled"), latents_file)
    latents, prompts = torch.load(latents_file)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    print("4/4 the U-Net learns to denoise")
    unet = train_denoiser(
        build_unet(),
        latents * vae.config.scaling_factor,
        prompts,
        tokenizer,
        text_encoder,
        args.denoiser_steps,
        8e-4,
        args.seed,
        args.work / "denoiser.pt",
    )
    output = args.output or Path(__file__).parent
    save(vae, tokenizer, text_encoder, unet, output)
    print(f"written to {output}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--style", choices=STYLES, default="filled")
    parser.add_argument("--output", type=Path, help="default: the style's model or adapter")
    parser.add_argument(
        "--start", type=Path, help="model to learn outlines from; default: the one beside this script"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/train"), help="folder of checkpoints; a later run continues"
    )
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--text-steps", type=int, default=2500)
    parser.add_argument(
        "--denoiser-steps", type=int, help="default: 10,000; to learn a style 1,200, as an adapter 900"
    )
    parser.add_argument("--scenes", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    default_steps = {"filled": 10_000, "outlined": 1_200, "striped": 900}
    args.denoiser_steps = args.denoiser_steps or default_steps[args.style]
    args.work.mkdir(parents=True, exist_ok=True)
    {"filled": train, "outlined": fine_tune, "striped": train_adapter}[args.style](args)


if __name__ == "__main__":
    main()
