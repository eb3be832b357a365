"""The Eulerian loss of flow maps: the end of a trajectory is the same from all of its points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.objective import Differentiable, SelfDistillation
from cm_lightning.core.random import Replay


class Eulerian(SelfDistillation):
    """dX/dt along the trajectory must vanish: partial_t X + (grad_x X) v = 0 (Boffi et al. 2025, ESD).

    The gradient passes through the derivative in t alone, as in the published runs: the other term, a derivative of the
    network in its image, is the target's own.
    """

    def difference(
        self, map: Differentiable, target: Differentiable, x_t: Tensor, t: Tensor, r: Tensor, c: Any = None
    ) -> Tensor:
        """dX(x_t, t, r)/dt + sg (grad_x X) v(x_t, t), (B, ...)."""
        same_dropout = Replay(x_t.device)
        _, along_t = self.along(lambda t: map(x_t, t, r, c), t, torch.ones_like(t))
        with torch.no_grad(), same_dropout:
            velocity = target.velocity(x_t, t, c).to(x_t.dtype)
        with torch.no_grad(), same_dropout:
            _, along_x = self.along(lambda x: target(x, t, r, c), x_t, velocity)
        return along_t + along_x
