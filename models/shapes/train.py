"""Trains the embedded model from scratch and writes it beside this file as a diffusers folder.

    make train          (or: python models/shapes/train.py)

There are four seeded stages: the VAE learns the pictures, the text encoder learns which object stands where,
every scene is encoded once, then the U-Net learns to denoise the latents (v-prediction). Finished stages stay
in the work folder, so that an interrupted run continues from its last checkpoint. It takes hours on two
cores.
"""

import argparse
import copy
import math
import random
import time
from collections.abc import Iterator
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
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pictures import draw_crops, draw_scenes, to_signal
from scenes import COLOURS, SHAPES, SIZES, Scene, random_scene
from transformers import CLIPTextModel, CLIPTokenizer

# In a batch of 32 rows, 22 are scenes with prompts and 10 repeat the first without prompts, for guidance.
NUM_SCENES, NUM_UNPROMPTED = 22, 10
MAX_GUIDANCE_SCALE = 8.0
DECIDED_TIMESTEP = 600  # below it there is so little noise that the scene shows without its prompt
GUIDED_WEIGHT = 0.3  # weight of the guided prediction's loss against the plain ones'


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then a half cosine to zero."""
    return peak * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))


def training_steps(optimizer: torch.optim.Optimizer, first: int, last: int, peak: float) -> Iterator[int]:
    """Counts steps, sets each one's learning rate and shows progress."""
    started = time.monotonic()
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, last, peak)
        yield step
        if step % 100 == 99:
            rate = (step + 1 - first) / (time.monotonic() - started)
            print(
                f"  step {step + 1}/{last}, {rate:.2f} steps/s, {(last - step) / rate / 60:.0f} min left",
                flush=True,
            )


def train_vae(steps: int, seed: int) -> AutoencoderKL:
    """Trains on crops first, and in the last quarter on whole pictures, for their statistics."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=0.01)
    losses = []
    for step in training_steps(optimizer, 0, steps, 2e-3):
        target = to_signal(draw_crops(32, rng) if step < 0.75 * steps else draw_scenes(12, rng)[0])
        with torch.autocast("cpu", torch.bfloat16):
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
def encode_scenes(vae: AutoencoderKL, count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Latents [count, 8, 16, 16] (unscaled means) and prompts of fresh scenes."""
    rng = random.Random(seed + 1)
    latents, prompts = [], []
    for _ in range(0, count, 128):
        pictures, said = draw_scenes(128, rng)
        with torch.autocast("cpu", torch.bfloat16):
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


def with_unprompted(rows: torch.Tensor) -> torch.Tensor:
    """A batch [NUM_SCENES, ...] followed by copies of its rows that are also seen without prompts."""
    return torch.cat([rows, rows[:NUM_UNPROMPTED]])


class Ema:
    """Exponential moving average of weights, slow once there is something worth keeping."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        mine = list(self.module.parameters())
        torch._foreach_lerp_(mine, list(module.parameters()), 1 - decay)


def train_denoiser(
    latents: torch.Tensor,
    prompts: list[str],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    steps: int,
    seed: int,
    checkpoint: Path,
) -> UNet2DConditionModel:
    """Trains on scaled latents [n, 8, 16, 16].

    The text encoder stays fixed, as in Stable Diffusion. Trained along from the first step, it forgot the
    positions before the U-Net could use them: after 10,000 steps positions were right only by chance.
    """
    torch.manual_seed(seed + 2)
    text_encoder.requires_grad_(False)
    unet = build_unet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0.01, betas=(0.9, 0.99))
    ema = Ema(unet)
    alphas_cumprod = build_scheduler().alphas_cumprod
    token_ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty_ids = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        unet.load_state_dict(saved["unet"])
        ema.module.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        torch.manual_seed(seed + 2 + first)
    losses = []
    for step in training_steps(optimizer, first, steps, 8e-4):
        chosen = torch.randint(len(prompts), (NUM_SCENES,))
        ids = torch.cat([token_ids[chosen], empty_ids.expand(NUM_UNPROMPTED, -1)])
        plain_loss, guided = denoising_losses(unet, text_encoder, alphas_cumprod, latents[chosen], ids)
        loss = plain_loss + GUIDED_WEIGHT * guided
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.update(unet, step)
        losses.append(plain_loss.item())
        if step % 100 == 99:
            print(f"  denoising loss {sum(losses[-100:]) / 100:.4f}", flush=True)
        if step % 500 == 499:
            parts = {"unet": unet, "ema": ema.module, "optimizer": optimizer}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_whole({**states, "step": step + 1}, checkpoint)
    return ema.module


def denoising_losses(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    alphas_cumprod: torch.Tensor,
    clean: torch.Tensor,
    ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the plain and of the guided predictions, at random timesteps.

    clean: latents [NUM_SCENES, 8, 16, 16]; ids: tokens [NUM_SCENES + NUM_UNPROMPTED, tokens]
    """
    # Logit-normal (Esser et al. 2024): mostly in the middle, where the scene is decided.
    timesteps = (len(alphas_cumprod) * torch.sigmoid(0.6 + 1.1 * torch.randn(NUM_SCENES))).long()
    alpha = alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    noise = torch.randn_like(clean)
    noisy = with_unprompted(alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
    target = alpha * noise - sigma * clean
    with torch.autocast("cpu", torch.bfloat16):
        prompt_embeds = text_encoder(ids).last_hidden_state
        prediction = unet(noisy, with_unprompted(timesteps), prompt_embeds).sample.float()
    guided = guided_loss(
        prediction[:NUM_UNPROMPTED],
        prediction[NUM_SCENES:],
        target[:NUM_UNPROMPTED],
        timesteps[:NUM_UNPROMPTED],
    )
    return F.mse_loss(prediction, with_unprompted(target)), guided


def guided_loss(
    conditional: torch.Tensor, unconditional: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The loss of the guided combination of both predictions [n, 8, 16, 16], at random scales, once the scene
    is decided.

    From there on both should be the same. Guidance multiplies their small difference, and at scale 7 that
    gave one picture in seven a wrong colour. Guidance before that point did no harm.
    """
    scales = 1 + (MAX_GUIDANCE_SCALE - 1) * torch.rand(len(target), 1, 1, 1)
    guided = unconditional + scales * (conditional - unconditional)
    squares = (guided - target).square().mean(dim=(1, 2, 3))
    return (squares * (timesteps < DECIDED_TIMESTEP)).mean()


def save_whole(value: object, path: Path) -> None:
    """Saves a value so that an interruption leaves the earlier file intact."""
    unfinished = path.with_suffix(".tmp")
    torch.save(value, unfinished)
    unfinished.replace(path)


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument(
        "--work", type=Path, default=Path("build/train"), help="folder of checkpoints; a later run continues"
    )
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--text-steps", type=int, default=2500)
    parser.add_argument("--denoiser-steps", type=int, default=10_000)
    parser.add_argument("--scenes", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

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
        save_whole(encode_scenes(vae, args.scenes, args.seed), latents_file)
    latents, prompts = torch.load(latents_file)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    print("4/4 the U-Net learns to denoise")
    unet = train_denoiser(
        latents * vae.config.scaling_factor,
        prompts,
        tokenizer,
        text_encoder,
        args.denoiser_steps,
        args.seed,
        args.work / "denoiser.pt",
    )
    save(vae, tokenizer, text_encoder, unet, args.output)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
