"""Shares of pixels by brightness, which do not need a classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm_lightning.metrics.measure import Measure, shared_mean


class PixelShares(Measure):
    """The shares of mid-grey pixels (-0.5 < v < 0.5) and of black ones (v < -0.98) in grey samples.

    They are logged as ``mid_grey`` and ``black``, for grey images only. Speckle and blur show as too much
    mid-grey and too little black. Neither higher nor lower is better: good samples have the shares of real images.
    """

    name = "pixel_shares"

    def start(self, across_ranks: bool = True) -> None:
        self._means = {name: shared_mean(across_ranks) for name in ("mid_grey", "black")}
        self.reset()

    def to(self, device: torch.device) -> None:
        device = torch.device("cpu") if device.type == "mps" else device
        self._means = {name: mean.to(device) for name, mean in self._means.items()}

    def reset(self) -> None:
        for mean in self._means.values():
            mean.reset()
            mean.update(torch.empty(0))  # even a rank without images must take part

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        if images.shape[1] != 1:
            return
        pixels = images.float().flatten(1)
        self._means["mid_grey"].update((pixels.abs() < 0.5).float().mean(1))
        self._means["black"].update((pixels < -0.98).float().mean(1))

    def compute(self) -> dict[str, float]:
        shares = {name: float(mean.compute()) for name, mean in self._means.items()}
        return {name: share for name, share in shares.items() if not math.isnan(share)}
