"""Consistency models on PyTorch Lightning: images in one forward pass.

The names below are imported when first used, so that ``cm_lightning.core`` needs nothing but torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cm_lightning.errors import ConfigError
from cm_lightning.extras import advice

__version__ = "0.1.0"

_HOME = {
    "AutoencoderModule": "modules.autoencoder",
    "ContrastiveModule": "modules.contrastive",
    "LatentConsistencyDistillation": "modules.latent_consistency",
    "LatentDiffusionModule": "modules.latent_diffusion",
    "LoRA": "latent.student",
    "PretrainedBase": "latent.base",
    "SmallBase": "latent.small",
    "TextToImageBase": "latent.base",
    "WholeUNet": "latent.student",
    "Export": "callbacks.export",
    "PromptGrid": "callbacks.prompt_grid",
    "CaptionedFashionMNIST": "data.captions",
    "CaptionedMNIST": "data.captions",
    "CaptionedPairs": "data.captions",
    "Quality": "callbacks.quality",
    "EMA": "callbacks.ema",
    "RunProgress": "callbacks.progress",
    "SampleGrid": "callbacks.sample_grid",
    "SaveLast": "callbacks.save_last",
    "Throughput": "callbacks.throughput",
    "Backbone": "backbones.protocol",
    "ADM": "backbones.adm",
    "DDPMpp": "backbones.ddpmpp",
    "DiT": "backbones.dit",
    "DiffusersUNet": "backbones.unet2d",
    "EDM2": "backbones.edm2",
    "NCSNpp": "backbones.ncsnpp",
    "ResidualMLP": "backbones.mlp",
    "UNet": "backbones.unet",
    "ConsistencyDistillation": "modules.distillation",
    "ConsistencyTraining": "modules.training",
    "DiffusionModule": "modules.diffusion",
    "DINOv2": "metrics.features",
    "TorchvisionFeatures": "metrics.features",
    "Inception": "metrics.extractor",
    "MnistJudge": "metrics.extractor",
    "load_module": "modules.loading",
    "load_trained": "modules.loading",
    "CIFAR10": "data.cifar",
    "CaptionedFolder": "data.captioned_folder",
    "CaptionedShards": "data.captioned_shards",
    "FashionMNIST": "data.mnist",
    "ImageFolder": "data.folder",
    "ImageNet64": "data.imagenet",
    "MNIST": "data.mnist",
    "Toy": "data.toy",
}

__all__ = list(_HOME)

if TYPE_CHECKING:
    from cm_lightning.backbones.adm import ADM as ADM
    from cm_lightning.backbones.ddpmpp import DDPMpp as DDPMpp
    from cm_lightning.backbones.dit import DiT as DiT
    from cm_lightning.backbones.edm2 import EDM2 as EDM2
    from cm_lightning.backbones.mlp import ResidualMLP as ResidualMLP
    from cm_lightning.backbones.ncsnpp import NCSNpp as NCSNpp
    from cm_lightning.backbones.protocol import Backbone as Backbone
    from cm_lightning.backbones.unet import UNet as UNet
    from cm_lightning.backbones.unet2d import DiffusersUNet as DiffusersUNet
    from cm_lightning.callbacks.ema import EMA as EMA
    from cm_lightning.callbacks.progress import RunProgress as RunProgress
    from cm_lightning.callbacks.quality import Quality as Quality
    from cm_lightning.callbacks.sample_grid import SampleGrid as SampleGrid
    from cm_lightning.callbacks.save_last import SaveLast as SaveLast
    from cm_lightning.callbacks.throughput import Throughput as Throughput
    from cm_lightning.data.captioned_folder import CaptionedFolder as CaptionedFolder
    from cm_lightning.data.captioned_shards import CaptionedShards as CaptionedShards
    from cm_lightning.data.cifar import CIFAR10 as CIFAR10
    from cm_lightning.data.folder import ImageFolder as ImageFolder
    from cm_lightning.data.imagenet import ImageNet64 as ImageNet64
    from cm_lightning.data.mnist import MNIST as MNIST
    from cm_lightning.data.mnist import FashionMNIST as FashionMNIST
    from cm_lightning.data.toy import Toy as Toy
    from cm_lightning.metrics.extractor import Inception as Inception
    from cm_lightning.metrics.extractor import MnistJudge as MnistJudge
    from cm_lightning.metrics.features import DINOv2 as DINOv2
    from cm_lightning.metrics.features import TorchvisionFeatures as TorchvisionFeatures
    from cm_lightning.modules.diffusion import DiffusionModule as DiffusionModule
    from cm_lightning.modules.distillation import ConsistencyDistillation as ConsistencyDistillation
    from cm_lightning.modules.loading import load_module as load_module
    from cm_lightning.modules.training import ConsistencyTraining as ConsistencyTraining


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cm_lightning' has no attribute {name!r}")
    try:
        return getattr(import_module(f"cm_lightning.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (line := advice(error)) is None:
            raise
        raise ConfigError(f"{name}: {line}") from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
