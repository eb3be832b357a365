"""Imports every module and backbone, so that the command line knows each by its short name."""

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.unet import UNet
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.lpips import LPIPS
from cm_lightning.modules.training import ConsistencyTraining

__all__ = ["LPIPS", "ConsistencyDistillation", "ConsistencyTraining", "DiffusionModule", "ResidualMLP", "UNet"]
