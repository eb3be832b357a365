"""The first loss that is not finite, found without waiting for the device in any step."""

from __future__ import annotations

import torch
from torch import Tensor


class FirstFailure:
    """Keeps the number of the first loss that is not finite on the device of the losses."""

    def __init__(self) -> None:
        #: The number, a scalar; -1 as long as all losses are finite.
        self.number = torch.tensor(-1)

    def note(self, number: int, loss: Tensor) -> None:
        """Take a loss, a scalar, and its number, at least 0."""
        found = self.number.to(loss.device)
        self.number = torch.where((found < 0) & ~torch.isfinite(loss.detach()), number, found)
