"""The names of a UNet's layers in the Kohya format.

There are two dialects. Both start with ``lora_unet_`` and join the path of the layer with underscores. For SD 1.x and
2.x, and for every model in the LCM-LoRA training scripts of diffusers, the path is that of the layer in diffusers. For
SDXL the Kohya trainer uses the path in Stability's code, ``input_blocks.4.1`` for ``down_blocks.1.attentions.0``.
ComfyUI reads every layer by both names. AUTOMATIC1111 translates the first kind by the layout of SD 1.x, and so misses
one of SDXL's layers, the upsampler of the first upward block; with the second kind it finds all layers.

This follows the sources of the two programs (``unet_to_diffusers``, ``convert_diffusers_name_to_compvis``); it was not
tested with them, nor with the published LCM-LoRA files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PREFIX = "lora_unet_"

_SDXL_BLOCKS = (
    ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
)
_BLOCK = re.compile(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)")
_PLACE = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}
_LAYER = {
    "resnets": {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def is_sdxl(config: Mapping[str, Any]) -> bool:
    """Whether a UNet of this configuration has the blocks of SDXL, to which Stability's names apply."""
    blocks = (list(config["down_block_types"]), list(config["up_block_types"]))
    return blocks == _SDXL_BLOCKS and config["layers_per_block"] == 2


def diffusers_key(layer: str) -> str:
    """Map ``down_blocks.0.resnets.1.conv1`` to ``lora_unet_down_blocks_0_resnets_1_conv1``."""
    return PREFIX + layer.replace(".", "_")


def stability_key(layer: str) -> str:
    """Map ``down_blocks.0.resnets.1.conv1`` to ``lora_unet_input_blocks_2_0_in_layers_2``, for SDXL's blocks."""
    return PREFIX + stability_path(layer).replace(".", "_")


def stability_path(layer: str) -> str:
    """Map ``down_blocks.0.resnets.1.conv1`` to ``input_blocks.2.0.in_layers.2``, for SDXL's blocks."""
    if match := _MIDDLE.fullmatch(layer):
        kind, index, rest = match.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_rename(kind, rest)}"
    if match := _BLOCK.fullmatch(layer):
        side, level, kind, index, rest = match.groups()
        last = kind in ("downsamplers", "upsamplers")
        within = 3 * int(level) + (2 if last else int(index))
        # input_blocks.0 is the first convolution
        block = f"input_blocks.{within + 1}" if side == "down" else f"output_blocks.{within}"
        return f"{block}.{_PLACE[kind]}.{_rename(kind, rest)}"
    return _OUTSIDE.get(layer, layer)


def _rename(kind: str, layer: str) -> str:
    return _LAYER.get(kind, {}).get(layer, layer)
