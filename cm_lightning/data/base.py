"""The base of the data modules: loaders, exact resume, and the images that quality is measured against."""

from __future__ import annotations

import os
import signal
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cm_lightning.data.stream import Stream
from cm_lightning.domains import COUNT, NATURAL, SEED
from cm_lightning.errors import ConfigError
from cm_lightning.images import to_unit_range
from cm_lightning.steps import steps_taken


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """Samples that fit into memory, fetched in batches.

    Args:
        samples: (N, ...), floats in [-1, 1] or uint8 pixels, which are scaled to that range when they are fetched.
        labels: (N,) int64.
    """

    def __init__(self, samples: Tensor, labels: Tensor) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        samples = self.samples[index]
        return (to_unit_range(samples) if samples.dtype == torch.uint8 else samples), self.labels[index]

    __getitems__ = __getitem__


class Mirrored(Dataset[tuple[Tensor, Any]]):
    """A data set followed by its horizontally mirrored images: EDM's augmentation without random draws.

    The position in the run's order decides whether an image is mirrored, so a resumed run sees the same images.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.dataset[index % len(self.dataset)]
        return (image if index < len(self.dataset) else image.flip(-1)), label


class MirroredInMemory(Mirrored):
    """A :class:`Mirrored` data set that fetches batches."""

    dataset: InMemory

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        images, labels = self.dataset[index % len(self.dataset)]
        mirrored = (index >= len(self.dataset)).view(-1, *[1] * (images.ndim - 1))
        return torch.where(mirrored, images.flip(-1), images), labels


class Headroom(InMemory):
    """Images whose black and white lie beyond [-1, 1] by ``headroom``; the values between do not change.

    A saturated pixel means "at least as dark as this". Samples are clamped to [-1, 1], so errors of a network that
    learned the wider range are invisible where the image is black or white.
    """

    def __init__(self, images: InMemory, headroom: float) -> None:
        super().__init__(images.samples, images.labels)
        self.headroom = headroom

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        images, labels = super().__getitem__(index)
        return images + self.headroom * images.trunc(), labels

    __getitems__ = __getitem__


class ResumableLoader(DataLoader[Any]):
    """A loader that Lightning treats as resumable: its position follows from the trainer's step, so it stores none."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def _begin_worker(number: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes of a run: the training process ends the loaders."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    if int(os.environ.get("PL_SEED_WORKERS", "0")):
        pl_worker_init_function(number)


class GenerativeDataModule(L.LightningDataModule):
    """Base of the data modules: batches are (samples in [-1, 1], labels or captions).

    Args:
        batch_size: size of the batch of all ranks together, a multiple of their number.
        num_workers: loader processes; 0 loads in the training process.
        seed: seed of the order of the images.
    """

    image_shape: tuple[int, ...]
    #: What the images show, ``digits`` or ``clothes``, if a classifier that measures them ships.
    subject: str | None = None

    def __init__(self, batch_size: int = 128, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        COUNT.check(self, batch_size=batch_size)
        NATURAL.check(self, num_workers=num_workers)
        SEED.check(self, seed=seed)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._splits: dict[str, Dataset[Any]] = {}
        #: (step, images): the images that the run had trained on at a step where the size of its steps changed.
        self._origin = (0, 0)
        #: Data sets that the loaders of ``train`` and ``val`` use in place of the images, such as their latents.
        self.encoded: dict[str, Dataset[Any]] = {}

    @abstractmethod
    def load(self, split: str) -> Dataset[Any]:
        """Load the images of ``train`` or ``val``. Raises DataError if they are missing or damaged."""

    def split(self, name: str) -> Dataset[Any]:
        """``train`` or ``val``, loaded once."""
        if name not in self._splits:
            self._splits[name] = self.load(name)
        return self._splits[name]

    def training_set(self) -> Dataset[Any]:
        """The data set for training: the split ``train``, or an augmentation of it."""
        return self.split("train")

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        share = share_of_rank(self.batch_size, ranks)
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        if trainer:
            self._require_whole_steps(trainer)
        step, images = self._origin
        dataset: Any = self.encoded.get("train") or self.training_set()
        stream = Stream(
            dataset,
            share,
            self.seed,
            rank,
            ranks,
            start=lambda: (steps_taken(trainer) - step) * accumulate if trainer else 0,
            multiple=accumulate,
            offset=images,
        )
        return self._loader(dataset, share, stream)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step(), "images": self._images()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the images of the run that is resumed, regardless of its batch size."""
        self._origin = (state_dict["step"], state_dict["images"])

    def _step(self) -> int:
        return steps_taken(self.trainer) if self.trainer else 0

    def _images(self) -> int:
        """The number of images that the run has trained on."""
        step, images = self._origin
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        return images + (self._step() - step) * accumulate * self.batch_size

    def images_of_step(self, step: int) -> list[int]:
        """The numbers of the images, in the training set, that all ranks train on in a step (from 0)."""
        trainer = self.trainer
        ranks, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer else (1, 1)
        origin, images = self._origin
        share, first, dataset = self.batch_size // ranks, (step - origin) * accumulate, self.training_set()
        streams = [
            Stream(dataset, share, self.seed, rank, ranks, lambda: first, accumulate, images)  # type: ignore[arg-type]
            for rank in range(ranks)
        ]
        return [image for stream in streams for image in islice(stream, accumulate * share)]

    def _require_whole_steps(self, trainer: L.Trainer) -> None:
        """Refuse epochs that end within a step: Lightning steps after an epoch's last batch in any case."""
        for option in ("overfit_batches", "limit_train_batches"):
            limit, accumulate = getattr(trainer, option), trainer.accumulate_grad_batches
            whole = limit % accumulate == 0 if isinstance(limit, int) else limit in (0.0, 1.0)
            if accumulate > 1 and not whole:
                raise ConfigError(
                    f"trainer.{option} {limit} would end epochs within a step of {accumulate} batches: "
                    f"make it a multiple of trainer.accumulate_grad_batches, {accumulate}"
                )

    def val_dataloader(self) -> DataLoader[Any]:
        ranks = self.trainer.world_size if self.trainer else 1
        return self._loader(self.encoded.get("val") or self.split("val"), max(1, self.batch_size // ranks))

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def in_order(self, split: str, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Any]]:
        """Batches of every ``ranks``-th image of a split, starting at number ``rank``, without augmentation."""
        images: Any = self.split(split)
        yield from self._loader(Subset(images, range(rank, len(images), ranks)), 500)

    def _loader(self, dataset: Dataset[Any], batch_size: int, sampler: Stream | None = None) -> DataLoader[Any]:
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_already_a_batch if _comes_in_batches(dataset) else None,
            worker_init_fn=_begin_worker,
            persistent_workers=self.num_workers > 0,  # short epochs must not start new processes each time
            # a separate generator: if starting a loader advanced the global one, a resumed run would differ
            generator=torch.Generator().manual_seed(self.seed),
        )


def share_of_rank(batch_size: int, ranks: int) -> int:
    """The images of a rank, of a batch of all ranks together. Raises ConfigError if ranks would differ."""
    if batch_size % ranks:
        raise ConfigError(f"data.batch_size {batch_size} is that of all ranks together: make it a multiple of {ranks}")
    return batch_size // ranks


def _comes_in_batches(dataset: Dataset[Any]) -> bool:
    return isinstance(dataset.dataset if isinstance(dataset, Subset) else dataset, (InMemory, MirroredInMemory))


def _already_a_batch(batch: Any) -> Any:
    return batch
