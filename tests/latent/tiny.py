"""Pipelines of the structures of Stable Diffusion and SDXL, with random weights and a few hundred thousand parameters.

The down- and upsamplers, the shortcuts, the projections and the number of transformer layers are where the real ones
have them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16
LENGTH = 12
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDXL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "addition_embed_type": "text_time",
    "use_linear_projection": True,
}


def tokenizer() -> CLIPTokenizer:
    tokens = ["<|startoftext|>", "<|endoftext|>", "!", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)


def text_config(projection: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer()), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=projection, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def unet(**options: Any) -> UNet2DConditionModel:
    defaults = {
        "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8,
        "attention_head_dim": 2, "cross_attention_dim": WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**defaults, **options})


def tiny_sd(v_prediction: bool = False) -> StableDiffusionPipeline:
    """SD 1.5, or with v-prediction SD 2.1, which has linear projections too."""
    torch.manual_seed(0)
    prediction = "v_prediction" if v_prediction else "epsilon"
    return quiet(
        StableDiffusionPipeline(
            vae=autoencoder(), text_encoder=CLIPTextModel(text_config()), tokenizer=tokenizer(),
            unet=unet(use_linear_projection=v_prediction),
            scheduler=DDIMScheduler(**NOISE, clip_sample=False, steps_offset=1, prediction_type=prediction),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )
    )  # fmt: skip


def tiny_sdxl(layers: int = 2) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    second = tokenizer()
    second.pad_token = "!"
    return quiet(
        StableDiffusionXLPipeline(
            vae=autoencoder(), text_encoder=CLIPTextModel(text_config()), tokenizer=tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(8)), tokenizer_2=second,
            unet=unet(
                **SDXL_BLOCKS, layers_per_block=layers, cross_attention_dim=2 * WIDTH, addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=8 + 6 * 4,
            ),
            scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        )
    )  # fmt: skip


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
