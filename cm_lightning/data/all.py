"""Imports every data module, so that the command line knows each by its short name."""

from cm_lightning.data.folder import ImageFolder
from cm_lightning.data.mnist import MNIST, FashionMNIST
from cm_lightning.data.toy import Toy

__all__ = ["MNIST", "FashionMNIST", "ImageFolder", "Toy"]
