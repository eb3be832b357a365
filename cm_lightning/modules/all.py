"""Imports every module and backbone, so that the command line knows each by its short name."""

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.dit import DiT
from cm_lightning.backbones.edm2 import EDM2
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.ncsnpp import NCSNpp
from cm_lightning.backbones.unet import UNet
from cm_lightning.backbones.unet2d import DiffusersUNet
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.lpips import LPIPS
from cm_lightning.modules.training import ConsistencyTraining

__all__ = [
    "ADM",
    "EDM2",
    "LPIPS",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "DDPMpp",
    "DiT",
    "DiffusersUNet",
    "DiffusionModule",
    "NCSNpp",
    "ResidualMLP",
    "UNet",
]
