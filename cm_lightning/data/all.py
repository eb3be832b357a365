"""Imports every data module, so that the command line knows each by its short name."""

from cm_lightning.data.captioned_folder import CaptionedFolder
from cm_lightning.data.captioned_shards import CaptionedShards
from cm_lightning.data.captions import CaptionedFashionMNIST, CaptionedMNIST, CaptionedPairs
from cm_lightning.data.cifar import CIFAR10
from cm_lightning.data.folder import ImageFolder
from cm_lightning.data.imagenet import ImageNet64
from cm_lightning.data.mnist import MNIST, FashionMNIST
from cm_lightning.data.toy import Toy

__all__ = [
    "CIFAR10",
    "MNIST",
    "CaptionedFashionMNIST",
    "CaptionedFolder",
    "CaptionedMNIST",
    "CaptionedPairs",
    "CaptionedShards",
    "FashionMNIST",
    "ImageFolder",
    "ImageNet64",
    "Toy",
]
