"""The order of training images: batch k is a pure function of (seed, k, rank), so a run resumes exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized

import torch
from torch.utils.data import DistributedSampler


class Stream(DistributedSampler[int]):
    """An endless shuffled stream over a data set; an epoch is one pass, and no image is lost or padded.

    It is a DistributedSampler only in name, because Lightning does not replace those; each rank takes its own part of
    every batch.

    Args:
        dataset: anything with a length.
        batch_size: size of the batch of one rank.
        seed: seed of the shuffles.
        rank: rank of this process.
        world_size: number of processes.
        start: returns the number of batches that this run has trained on; called when an iteration starts.
        multiple: batches in an optimizer step; an epoch is a multiple of it, so it ends between two steps.
        offset: images of all ranks before batch 0, where a run that is resumed with another batch size starts.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: Callable[[], int] = lambda: 0,
        multiple: int = 1,
        offset: int = 0,
    ) -> None:
        self.size, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.multiple, self.offset = multiple, offset

    def __len__(self) -> int:
        """The number of images of one rank in an epoch: about one pass, in whole batches and steps, at least one."""
        batches = max(1, self.size // (self.batch_size * self.world_size))
        return -(-batches // self.multiple) * self.multiple * self.batch_size

    def __iter__(self) -> Iterator[int]:
        shuffle, order = -1, torch.empty(0)
        batch = self.start()
        for k in range(batch, batch + len(self) // self.batch_size):
            first = self.offset + (k * self.world_size + self.rank) * self.batch_size
            for position in range(first, first + self.batch_size):
                if position // self.size != shuffle:
                    shuffle = position // self.size
                    generator = torch.Generator().manual_seed(self.seed + shuffle)
                    order = torch.randperm(self.size, generator=generator)
                yield int(order[position % self.size])

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the position determines the order."""
