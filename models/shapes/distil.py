"""Trains an adapter with which the embedded model draws in four steps without guidance.

    python models/shapes/distil.py      writes models/shapes/adapters/lcm.safetensors

As a latent consistency model (Luo et al. 2023) it says at once, at the few timesteps that the sampler "LCM"
uses, where its latents should arrive. It learns this on its own latents: it draws pictures of random prompts,
and of several drawn scenes of a prompt the one nearest to the noisy latents is the target. A guided teacher
has to find such targets in many steps, and drew wrong shapes in one of five; here the world itself is known.
An interrupted run continues from its last checkpoint.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from architecture import build_scheduler
from denoising import save_whole, train_unet
from diffusers import AutoencoderKL, UNet2DConditionModel
from low_rank import add_adapter, save_adapter
from pictures import to_signal, to_tensor
from scenes import draw, place, random_scene
from transformers import CLIPTextModel, CLIPTokenizer

MODEL = Path(__file__).parent
BATCH_SIZE = 16
NUM_CANDIDATES = 5  # drawn scenes of a prompt: sizes and positions that it leaves open
CHAINS = (4, 4, 2, 4, 8)  # step counts of successive batches' pictures
HUBER = 0.1  # deviations beyond it count by their size, not their square: blur pays less


@torch.no_grad()
def draw_candidates(count: int, seed: int, scaling_factor: float) -> tuple[torch.Tensor, list[str]]:
    """Scaled latents [count, NUM_CANDIDATES, 8, 16, 16] of several scenes of each prompt, and the prompts."""
    vae = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32)
    rng = random.Random(seed + 4)
    latents, prompts = [], []
    for index in range(count):
        scene = random_scene(rng)
        pictures = [draw(scene.background, place(scene, rng)) for _ in range(NUM_CANDIDATES)]
        latents.append(vae.encode(to_signal(to_tensor(pictures))).latent_dist.mean * scaling_factor)
        prompts.append(scene.prompt())
        if index % 100 == 99:
            print(f"  {index + 1} prompts", flush=True)
    return torch.stack(latents), prompts


def timesteps_of(num_inference_steps: int) -> list[int]:
    """The timesteps of the sampler "LCM": 50 evenly spaced ones, of which evenly many are left out."""
    every = list(range(19, 1000, 20))[::-1]
    return [every[index * len(every) // num_inference_steps] for index in range(num_inference_steps)]


@dataclass(frozen=True, slots=True)
class States:
    """Latents that the student met, and where they should arrive.

    latents, targets: [n, 8, 16, 16]; timesteps: [n]; prompt_embeds: [n, tokens, width]
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    prompt_embeds: torch.Tensor
    targets: torch.Tensor


class Distillation:
    """The prompts that the student learns from, with their scenes."""

    def __init__(self, latents: torch.Tensor, prompt_embeds: torch.Tensor) -> None:
        self.latents = latents  # [prompts, NUM_CANDIDATES, 8, 16, 16]
        self.prompt_embeds = prompt_embeds  # [prompts, tokens, width]
        self.alphas_cumprod = build_scheduler().alphas_cumprod

    def alpha_sigma(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the picture and of the noise in latents at these timesteps, each [n, 1, 1, 1]."""
        alphas_cumprod = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    @torch.no_grad()
    def met(self, student: UNet2DConditionModel, timesteps: list[int]) -> States:
        """The states of pictures that the student draws at these timesteps, as the sampler "LCM" does it."""
        chosen = torch.randint(len(self.latents), (BATCH_SIZE // len(timesteps),))
        embeds, candidates = self.prompt_embeds[chosen], self.latents[chosen]
        latents = torch.randn_like(candidates[:, 0])
        met, targets = [], []
        for index, timestep in enumerate(timesteps):
            now = torch.full_like(chosen, timestep)
            alpha, sigma = self.alpha_sigma(now)
            met.append(latents)
            targets.append(nearest(latents / alpha, candidates))
            if index + 1 < len(timesteps):
                clean = alpha * latents - sigma * predict(student, latents, now, embeds)
                # No candidate stands exactly where the student drew, so half go on from sharp targets.
                clean[::2] = targets[-1][::2]
                alpha, sigma = self.alpha_sigma(torch.full_like(chosen, timesteps[index + 1]))
                latents = alpha * clean + sigma * torch.randn_like(clean)
        # Noise alone says nothing of the picture: its target is where the next step should arrive.
        return States(
            torch.cat(met),
            torch.tensor(timesteps).repeat_interleave(len(chosen)),
            embeds.repeat(len(timesteps), 1, 1),
            torch.cat([targets[1], *targets[1:]]),
        )

    def loss(self, student: UNet2DConditionModel, states: States) -> torch.Tensor:
        """Pseudo-Huber loss of the velocity."""
        alpha, sigma = self.alpha_sigma(states.timesteps)
        wanted = (alpha * states.latents - states.targets) / sigma
        velocity = predict(student, states.latents, states.timesteps, states.prompt_embeds)
        return (((velocity - wanted).square() + HUBER**2).sqrt() - HUBER).mean()


def nearest(latents: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """The nearest of the candidates [n, several, 8, 16, 16] to each of the latents [n, 8, 16, 16]."""
    distances = (candidates - latents[:, None]).square().sum(dim=(2, 3, 4))
    return candidates[torch.arange(len(latents)), distances.argmin(dim=1)]


def predict(
    unet: UNet2DConditionModel, latents: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor
) -> torch.Tensor:
    """The velocity [n, 8, 16, 16]."""
    velocity: torch.Tensor = unet(
        latents.contiguous(memory_format=torch.channels_last), timesteps, embeds
    ).sample
    return velocity


def prepare(args: argparse.Namespace) -> Distillation:
    file = args.work / f"candidates-{args.prompts}-{args.seed}.pt"
    if not file.exists():
        print("1/2 encoding the scenes", flush=True)
        factor = AutoencoderKL.load_config(MODEL / "vae")["scaling_factor"]
        save_whole(draw_candidates(args.prompts, args.seed, factor), file)
    latents, prompts = torch.load(file)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = torch.cat([text_encoder(part).last_hidden_state for part in ids.split(64)])
    return Distillation(latents, embeds)


def distil(args: argparse.Namespace) -> None:
    distillation = prepare(args)
    print("2/2 the adapter learns to draw in few steps", flush=True)
    torch.manual_seed(args.seed)
    student = UNet2DConditionModel.from_pretrained(MODEL / "unet", torch_dtype=torch.float32)
    student = student.to(memory_format=torch.channels_last)
    add_adapter(student)

    def loss_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        states = distillation.met(student, timesteps_of(CHAINS[step % len(CHAINS)]))
        loss = distillation.loss(student, states)
        return loss, loss

    learned = train_unet(student, loss_of, args.steps, 2e-3, args.seed + 5, args.work / "denoiser-lcm.pt")
    save_adapter(learned, args.output)
    print(f"written to {args.output}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=MODEL / "adapters" / "lcm.safetensors")
    parser.add_argument(
        "--work", type=Path, default=Path("build/train"), help="folder of checkpoints; a later run continues"
    )
    parser.add_argument("--prompts", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    distil(args)


if __name__ == "__main__":
    main()
