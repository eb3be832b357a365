"""The coarsest features of a diffusers UNet: its encoder and middle block, without the decoder."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from cm_lightning.latent.base import UNet


def encoder_of(unet: UNet) -> Any:
    """A view of a UNet that ends after the middle block; it shares the modules, and returns (B, width, h, w)."""
    view = copy.copy(unet)
    left_out: dict[str, nn.Module | None] = {
        "up_blocks": nn.ModuleList(), "conv_norm_out": None, "conv_act": None, "conv_out": nn.Identity(),
    }  # fmt: skip
    view.__dict__["_modules"] = {**unet._modules, **left_out}
    return view


def features_width(unet: UNet) -> int:
    """Channels of the features of :func:`encoder_of`."""
    return int(unet.config["block_out_channels"][-1])
