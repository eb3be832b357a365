"""Every network of the zoo at a tiny width, for 3 x 8 x 8 images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.dit import DiT
from cm_lightning.backbones.edm2 import EDM2
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.ncsnpp import NCSNpp
from cm_lightning.backbones.unet import UNet
from cm_lightning.backbones.unet2d import DiffusersUNet

SHAPE = (3, 8, 8)
SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,)}


def unet2d(num_classes: int = 0, dropout: float = 0.0, **options: Any) -> DiffusersUNet:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "dropout": dropout,
        "num_class_embeds": num_classes or None,
    }
    return DiffusersUNet(config, **options)


def mlp(dropout: float = 0.0, forward_mode: bool = False, **options: Any) -> ResidualMLP:
    return ResidualMLP(3 * 8 * 8, 16, 2, **options)


NETWORKS = {
    "ADM": lambda **options: ADM(**{**SMALL, "head_width": 8, **options}),
    "DDPMpp": lambda **options: DDPMpp(**{**SMALL, **options}),
    "DiT": lambda **options: DiT(**{"channels": 16, "blocks": 2, "head_width": 8, **options}),
    "DiffusersUNet": unet2d,
    "EDM2": lambda **options: EDM2(**{**SMALL, "head_width": 8, **options}),
    "NCSNpp": lambda **options: NCSNpp(**{**SMALL, **options}),
    "ResidualMLP": mlp,
    "UNet": lambda **options: UNet(**{**SMALL, "head_width": 8, **options}),
}


def awake(network: nn.Module) -> nn.Module:
    """The network with random weights everywhere, even where it is initialised to zero."""
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim else 1.0)
    return network
