"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from cm_lightning.data.base import GenerativeDataModule, InMemory, MirroredInMemory
from cm_lightning.errors import DataError


class CIFAR10(GenerativeDataModule):
    """50,000 training and 10,000 test images of 3 x 32 x 32 in ten classes, held in memory.

    Args:
        root: folder that holds (or gets) ``cifar-10-batches-py``; its files are checked against their published
            checksums.
        download: whether to download them if missing.
        flip: whether to train on the images and their mirror images.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    image_shape = (3, 32, 32)

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        flip: bool = True,
        batch_size: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.download, self.flip = Path(root), download, flip

    def prepare_data(self) -> None:
        if self.download:
            try:
                datasets.CIFAR10(str(self.root), download=True)
            except Exception as error:
                raise DataError(
                    f"CIFAR-10 could not be downloaded to {self.root} ({error}): unpack cifar-10-python.tar.gz there "
                    "and set --data.download=false"
                ) from error

    def load(self, split: str) -> InMemory:
        try:
            files = datasets.CIFAR10(str(self.root), train=split == "train")
        except Exception as error:
            raise DataError(
                f"CIFAR-10 is missing or incomplete in {self.root}: set --data.root to the folder of "
                "cifar-10-batches-py, or --data.download=true"
            ) from error
        pixels = torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous()
        return InMemory(pixels, torch.tensor(files.targets))

    def training_set(self) -> InMemory | MirroredInMemory:
        images = self.split("train")
        assert isinstance(images, InMemory)
        return MirroredInMemory(images) if self.flip else images
