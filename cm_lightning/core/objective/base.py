"""The base of the losses, and the maps that they are losses of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from cm_lightning.core.coupling import Coupling
from cm_lightning.core.curriculum import Clock, Curriculum, Times
from cm_lightning.core.noise import unit_noise
from cm_lightning.core.parameterization import Parameterization
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.recording import Recorded

#: x_t (B, ...), t (B,), r (B,), condition -> the point at level r of the trajectory through x_t.
FlowMap: TypeAlias = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


class Differentiable(Protocol):
    """A map as :class:`Tangent` and :class:`SelfDistillation` need it, with the output F of its network."""

    parameterization: Parameterization

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor: ...

    def output(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor: ...

    def velocity(self, x: Tensor, t: Tensor, c: Any = None) -> Tensor: ...


class Objective(Recorded, nn.Module, ABC):
    """Base of the losses. It is a module because it may hold learned weights, a teacher, or the networks of a distance.

    After :meth:`loss`, ``shown`` holds further values that are worth logging, on the device. A loss that compares two
    ends or two velocities has ``raw`` there, see :meth:`show`.
    """

    curriculum: Curriculum
    trajectory: Trajectory
    #: Pairs the noise of a batch with its data; independent if None.
    coupling: Coupling | None = None
    #: Whether the loss takes the network's forward-mode derivative, which not every kernel has.
    forward_mode: bool = False
    #: Whether the loss takes gradients in the network's last layer, before those of the step, through the same graph.
    keeps_graph: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Tensor] = {}

    @abstractmethod
    def loss(
        self, map: Any, target: Any, x: Tensor, c: Any, clock: Clock, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss on a batch, a scalar.

        Args:
            map: the map that is trained, see :class:`~cm_lightning.core.parameterization.Map`.
            target: the map that takes the rest of the way; ``map`` itself without a target network.
            x: data (B, ...).
            c: condition, class labels (B,) or None.
            clock: the clock of the schedules.
            generator: draws levels and noise; torch's global one if None.
        """

    def phase(self, clock: Clock) -> str:
        """The name of this part of the run, in a word or two; empty where all parts are alike."""
        return self.curriculum.phase(clock)

    def show(self, difference: Tensor) -> None:
        """Keep the mean square of what the loss makes small (B, ...), without distance and weight, as ``raw``."""
        self.shown = {"raw": difference.detach().square().mean()}

    def draw(self, x: Tensor, c: Any, clock: Clock, generator: torch.Generator | None) -> tuple[Times, Tensor, Tensor]:
        """The levels of a batch x (B, ...) under the condition c, unit noise z, and the points x_t at t."""
        times = self.curriculum.draw(len(x), clock, x.device, generator)
        z = unit_noise(x.shape, generator, x.device, x.dtype)
        if self.coupling is not None:
            z = self.coupling(x, z, c)
        return times, z, self.trajectory.path.point(x, z, times.t)
