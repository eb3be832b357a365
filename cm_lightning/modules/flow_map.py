"""The base of flow maps X(x, t, r): two times, and sampling along a grid of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.guidance import guided_jump
from cm_lightning.core.noise import expand, unit_noise
from cm_lightning.core.objective import Objective
from cm_lightning.core.parameterization import AverageVelocity, Map
from cm_lightning.core.sampler import Renewal, follow
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.domains import COUNT
from cm_lightning.modules.base import GenerativeModule, Generators, ready
from cm_lightning.modules.consistency import checked_levels
from cm_lightning.modules.target import TargetNetwork


class FlowMapModule(GenerativeModule):
    """A network that maps a point at t of a trajectory to its point at any r <= t, on the linear path.

    A level is t in (0, 1], where 1 is pure noise. It takes the place of sigma = t / (1 - t) of the other modules in
    ``sample``, in ``sampling_sigmas``, and in what is printed.

    Args:
        backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from: see :class:`GenerativeModule`. The
            network takes two noise labels (B, 2): its ``noise_embedding`` is a
            :class:`~cm_lightning.backbones.embedding.TwoTimesEmbedding`.
        objective: the loss.
        parameterization: makes the flow map from the network.
        sampling_sigmas: levels for a number of steps, ``{2: [1.0, 0.5]}``; for other numbers they are evenly spaced.
        target_rate: mu(k) of a target network, a running average of the student that supplies the loss's targets; if
            None, the student itself does.
    """

    objective: Objective
    target: nn.Module | None
    noise_labels_given = 2
    #: The share of the noise that is redrawn between two jumps, in [0, 1]; see :class:`Renewal`.
    gamma = 0.0

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None,
        objective: Objective,
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
        target_rate: TargetRate | None = None,
    ) -> None:
        levels = checked_levels(sampling_sigmas or {})
        super().__init__(backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from)
        self.objective = ready(objective, backbone)
        self.parameterization = parameterization or AverageVelocity()
        self.target_network = TargetNetwork(backbone, target_rate, objective.curriculum) if target_rate else None
        self.target = self.target_network.network if self.target_network else None
        self.followers = (self.target_network,) if self.target_network else ()
        self.sampling_sigmas = levels

    def map(self, network: nn.Module | None = None) -> Map:
        """The flow map of a network (the backbone if None), in the form that the objective expects."""
        return Map(self.parameterization, network or self.backbone)

    def target_map(self) -> Map:
        """The flow map of the target network, or of the backbone if there is none."""
        return self.map(self.target)

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        map = self.map()
        return self.objective.loss(map, self.target_map() if self.target else map, x, labels, self.clock, generator)

    def progress(self, clock: Clock) -> dict[str, float]:
        mu = {"mu": self.target_network.mu(clock)} if self.target_network else {}
        return self.objective.curriculum.progress(clock) | mu

    def flow_map(self, x: Tensor, t: Tensor, r: Tensor, labels: Tensor | None = None) -> Tensor:
        """X(x, t, r) with the weights that the module holds: (B, ...), (B,), (B,), (B,) or None -> (B, ...)."""
        return self.map()(x, t, r, labels)

    def consistency_function(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """X at r = 0 for x = x_0 + sigma z, a consistency function: (B, ...), (B,), (B,) or None -> (B, ...)."""
        path = self.objective.trajectory.path
        t = path.level(sigma)
        return self.flow_map(expand(path.scales(t)[0], x) * x, t, torch.zeros_like(t), labels)

    def one_step(self, z: Tensor, labels: Tensor | None, network: nn.Module | None = None) -> Tensor:
        """Images from unit noise z (B, ...) in one evaluation of a network, the backbone if None."""
        t = torch.ones_like(z.flatten(1)[:, 0])
        return self.map(network)(z, t, torch.zeros_like(t), labels)

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        def fresh(x: Tensor) -> Tensor:
            return unit_noise(x.shape, generator, x.device, x.dtype)

        path = self.objective.trajectory.path
        _, sigma = path.scales(z.new_tensor(sigmas[0]))
        to = guided_jump(self.flow_map, labels, self.num_classes, guidance)
        return follow(to, sigma * z, [*sigmas, 0.0], Renewal(self.gamma, path, renoise=fresh))

    def trained_levels(self) -> tuple[float, float]:
        return 0.0, 1.0

    def default_sigmas(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        return self.sampling_sigmas.get(steps) or [1 - i / steps for i in range(steps)]
