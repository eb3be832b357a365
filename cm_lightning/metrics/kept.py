"""Features that are stored to be compared one by one, for a part of the images if there are many."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

#: The largest number of features that are compared: memory for their products grows with its square.
LIMIT = 5000
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number: multiples of it spread evenly


class KeptFeatures:
    """Features of at most ``limit`` images, chosen by their numbers, so they are the same for any number of ranks.

    Args:
        rank: rank of this process; its images are numbered rank, rank + ranks, rank + 2 ranks, ...
        ranks: number of processes.
        limit: the largest number of images that are kept over all ranks.
    """

    def __init__(self, rank: int = 0, ranks: int = 1, limit: int = LIMIT) -> None:
        self.rank, self.ranks, self.limit = rank, ranks, limit
        self.seen = 0
        self.keys: Tensor = torch.empty(0, dtype=torch.int64)
        self.features: Tensor = torch.empty(0, 0)

    def add(self, features: Tensor) -> None:
        """Add the features (B, D) of the next images of this rank."""
        numbers = self.rank + self.ranks * torch.arange(self.seen, self.seen + len(features), device=features.device)
        self.seen += len(features)
        kept = self.features.to(features.device).reshape(-1, features.shape[1])
        self._keep(torch.cat([self.keys.to(features.device), numbers * _GOLDEN]), torch.cat([kept, features.float()]))

    def _keep(self, keys: Tensor, features: Tensor) -> None:
        order = keys.argsort()[: self.limit]
        self.keys, self.features = keys[order], features[order]

    def of_all_ranks(self, width: int, device: torch.device) -> KeptFeatures:
        """The features kept by all ranks together, the same on each; all must call it, even without images."""
        keys, features = self.keys.to(device), self.features.to(device).reshape(-1, width)
        together = KeptFeatures(limit=self.limit)
        if self.ranks > 1:
            keys, features = (torch.cat(gather_all_tensors(tensor)) for tensor in (keys, features))
        together._keep(keys, features)
        return together
