"""Imports every module and backbone, so that the command line knows each by its short name."""

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.unet import UNet
from cm_lightning.modules.training import ConsistencyTraining

__all__ = ["ConsistencyTraining", "ResidualMLP", "UNet"]
