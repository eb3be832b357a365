"""A module that a checkpoint must never import."""

from cm_lightning.backbones.mlp import ResidualMLP as Net

__all__ = ["Net"]
