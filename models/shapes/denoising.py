"""Training of the embedded model's U-Net: the losses, the averaged weights and the loop."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from architecture import build_scheduler
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

# In a batch of 32 rows, 22 are scenes with prompts and 10 repeat the first without prompts, for guidance.
NUM_SCENES, NUM_UNPROMPTED = 22, 10
MAX_GUIDANCE_SCALE = 8.0
DECIDED_TIMESTEP = 600  # below it there is so little noise that the scene shows without its prompt
GUIDED_WEIGHT = 0.3  # weight of the guided prediction's loss against the plain ones'


def fast_precision() -> torch.autocast:
    """bfloat16 where the CPU has it. Where it is emulated, it takes 25 times as long as float32."""
    has_it = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=has_it)


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


def with_unprompted(rows: torch.Tensor, num_unprompted: int) -> torch.Tensor:
    """A batch followed by copies of its first rows, which are also seen without prompts."""
    return torch.cat([rows, rows[:num_unprompted]])


class Ema:
    """Exponential moving average of weights, slow once there is something worth keeping."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        mine = list(self.module.parameters())
        torch._foreach_lerp_(mine, list(module.parameters()), 1 - decay)


Loss = Callable[[int], tuple[torch.Tensor, torch.Tensor]]  # of a step: what is minimised, and what is shown


def train_unet(
    unet: UNet2DConditionModel, loss_of: Loss, steps: int, peak: float, seed: int, checkpoint: Path
) -> UNet2DConditionModel:
    """Trains those weights that require gradients, and returns the average of the weights.

    peak: learning rate; checkpoint: a file, from which an interrupted training continues
    """
    torch.manual_seed(seed)
    learned = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, weight_decay=0.01, betas=(0.9, 0.99))
    ema = Ema(unet)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        unet.load_state_dict(saved["unet"])
        ema.module.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        torch.manual_seed(seed + first)
    losses = []
    for step in training_steps(optimizer, first, steps, peak):
        loss, shown = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        ema.update(unet, step)
        losses.append(shown.item())
        if step % 100 == 99:
            print(f"  loss {sum(losses[-100:]) / 100:.4f}", flush=True)
            parts = {"unet": unet, "ema": ema.module, "optimizer": optimizer}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_whole({**states, "step": step + 1}, checkpoint)
    return ema.module


def train_denoiser(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    prompts: list[str],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    steps: int,
    peak: float,
    seed: int,
    checkpoint: Path,
    num_scenes: int = NUM_SCENES,
    num_unprompted: int = NUM_UNPROMPTED,
) -> UNet2DConditionModel:
    """Trains on scaled latents [n, 8, 16, 16], and returns the average of the weights. peak: learning rate

    The text encoder stays fixed, as in Stable Diffusion. Trained along from the first step, it forgot the
    positions before the U-Net could use them: after 10,000 steps positions were right only by chance.
    """
    text_encoder.requires_grad_(False)
    unet = unet.to(memory_format=torch.channels_last)
    alphas_cumprod = build_scheduler().alphas_cumprod
    token_ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty_ids = tokenizer([""], padding="max_length", return_tensors="pt").input_ids

    def loss_of(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(prompts), (num_scenes,))
        ids = torch.cat([token_ids[chosen], empty_ids.expand(num_unprompted, -1)])
        plain_loss, guided = denoising_losses(unet, text_encoder, alphas_cumprod, latents[chosen], ids)
        return plain_loss + GUIDED_WEIGHT * guided, plain_loss

    return train_unet(unet, loss_of, steps, peak, seed + 2, checkpoint)


def denoising_losses(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    alphas_cumprod: torch.Tensor,
    clean: torch.Tensor,
    ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the plain and of the guided predictions, at random timesteps.

    clean: latents [scenes, 8, 16, 16]; ids: tokens [scenes + those also without prompts, tokens]
    """
    num_scenes, num_unprompted = len(clean), len(ids) - len(clean)
    # Logit-normal (Esser et al. 2024): mostly in the middle, where the scene is decided.
    timesteps = (len(alphas_cumprod) * torch.sigmoid(0.6 + 1.1 * torch.randn(num_scenes))).long()
    alpha = alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    noise = torch.randn_like(clean)
    noisy = with_unprompted(alpha * clean + sigma * noise, num_unprompted).contiguous(
        memory_format=torch.channels_last
    )
    target = alpha * noise - sigma * clean
    with fast_precision():
        prompt_embeds = text_encoder(ids).last_hidden_state
        prediction = unet(noisy, with_unprompted(timesteps, num_unprompted), prompt_embeds).sample.float()
    guided = guided_loss(
        prediction[:num_unprompted],
        prediction[num_scenes:],
        target[:num_unprompted],
        timesteps[:num_unprompted],
    )
    return F.mse_loss(prediction, with_unprompted(target, num_unprompted)), guided


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
