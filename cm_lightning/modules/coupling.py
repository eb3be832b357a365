"""Which noise of a batch goes with which of its images."""

from __future__ import annotations

import torch
from torch import Tensor

from cm_lightning.recording import Recorded


class OptimalTransport(Recorded):
    """The pairing of a batch's noise and data with the least sum of squared distances, within each class.

    Trajectories then cross less, so there is less to average over, and a model of few steps learns sooner (Pooladian
    et al. 2023; Tong et al. 2024). Within a class every image is as likely as before, and so is every noise: samples of
    a class still start from plain Gaussian noise. Labels are paired at random, so the more samples of a class a batch
    has, the more it helps. Each rank pairs its own batch.
    """

    def __call__(self, x: Tensor, z: Tensor, c: Tensor | None) -> Tensor:
        """Data (B, ...), noise (B, ...), classes (B,) or None -> the noise in the order of the data."""
        from scipy.optimize import linear_sum_assignment  # half a second, which sampling does not need

        cost = torch.cdist(x.flatten(1).float(), z.flatten(1).float()).square().double()
        if c is not None:  # a noise vector keeps the class of its place: no other class is worth its price
            cost = cost + (len(x) * cost.max() + 1) * (c[:, None] != c[None, :])
        _, order = linear_sum_assignment(cost.nan_to_num().cpu().numpy())  # that data are finite, the loss checks
        return z[torch.from_numpy(order).to(z.device)]
