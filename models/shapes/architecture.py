"""The parts of the embedded model before they are trained."""

import json

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from scenes import COLOURS, IMAGE_SIZE, RELATIONS, SHAPES, SIZES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 128
LATENT_CHANNELS = 8  # with four, as in Stable Diffusion, such a small VAE blurs the corners of small stars
MAX_TOKENS = 77  # the same in every Stable Diffusion text encoder


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE, with a vocabulary learned from the scenes' words; any text encodes."""
    words = [*COLOURS, *SHAPES, *SIZES, *RELATIONS, "a an on background"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(words, trainer)
    learned = json.loads(learner.to_str())["model"]
    # A byte that ends a word is a token of its own in CLIP's alphabet.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(byte + "</w>" for byte in alphabet)])
    tokens.update(dict.fromkeys(learned["vocab"]))
    tokens.update(dict.fromkeys(["<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge) for merge in learned["merges"]],
        model_max_length=MAX_TOKENS,
    )


def build_vae() -> AutoencoderKL:
    """Eight pixels per latent in each direction, as in Stable Diffusion: 128x128 becomes [8, 16, 16]."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160),
        # Attention at 8x8 only: enough to place objects, and a third of the time of attention at 16x16.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers takes this as the number of heads
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """The noise schedule of all samplers. It ends at so little signal that no background colour leaks."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
