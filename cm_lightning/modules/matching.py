"""Distribution matching distillation (DMD2, Yin et al. 2024b), in pixels or latents."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from cm_lightning.activations import repeated
from cm_lightning.core.adversarial import (
    DIVERGENCES,
    discriminator_loss,
    generator_loss,
    matching_loss,
    matching_weight,
)
from cm_lightning.core.held import Held
from cm_lightning.core.noise import expand, unit_noise
from cm_lightning.core.path import Path
from cm_lightning.core.turns import Turns
from cm_lightning.core.weighting import edm_weight
from cm_lightning.errors import ConfigError
from cm_lightning.modules.critic import Losses, WithCritic
from cm_lightning.modules.discriminator import Head

#: The share of the grid that the generator's gradient leaves out at each end (DMD, section 3.2).
_MARGIN = 0.02

Divergence: TypeAlias = Literal["reverse_kl", "forward_kl", "jensen_shannon", "hellinger"]


class FakeScore(nn.Module):
    """A denoiser of the generator's samples, and a discriminator's head on its coarsest features.

    Args:
        network: the denoiser's network; it starts as the teacher.
        width: channels of its features.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.head = network.requires_grad_(True), Head(width)


class DistributionMatching(WithCritic):
    """A generator whose samples become those of the teacher in distribution, not one by one.

    Noise is added to a sample, and two networks denoise it: the teacher, a denoiser of the data, and the fake score, a
    denoiser of the samples. The difference of their estimates is the gradient of the KL divergence between samples and
    data (:func:`matching_loss`). The fake score follows the generator by denoising its samples, and also learns to tell
    samples from data.

    A generator of several steps is trained on its inputs in sampling: the points of its own trajectory.
    """

    critic: FakeScore
    path: Path
    #: Levels of the fake score, (M,), descending.
    grid: Tensor
    sigma_data: float

    def hold_matching(
        self,
        path: Path,
        grid: Tensor,
        sigma_data: float,
        critic: FakeScore,
        gan_weight: float,
        critic_gan_weight: float,
        divergence: Divergence,
        turns: Turns | None,
        critic_lr: float | None,
    ) -> None:
        """Keep the parts of the method.

        Args:
            path: the path of the noise.
            grid: levels at which samples are compared, (M,), descending.
            sigma_data: standard deviation of the data, for the weight of the fake score's loss.
            critic: the fake score.
            gan_weight: weight of the adversarial loss of the generator; with 0 the data are not needed.
            critic_gan_weight: weight of the adversarial loss of the fake score.
            divergence: the divergence between samples and data, a name of ``DIVERGENCES``.
            turns: which network trains at a step; the generator at every fifth if None.
            critic_lr: see :class:`WithCritic`.

        Raises:
            ConfigError: the divergence does not exist, or needs a discriminator where none is trained.
        """
        if divergence not in DIVERGENCES:
            raise ConfigError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
        if divergence != "reverse_kl" and not gan_weight:
            raise ConfigError(f"divergence {divergence} needs the discriminator's logits: set gan_weight above 0")
        self.divergence = divergence
        self.path, self.grid, self.sigma_data = path, grid, sigma_data
        self.gan_weight, self.critic_gan_weight = gan_weight, critic_gan_weight
        self.hold_critic(critic, turns or Turns(5), critic_lr)

    @abstractmethod
    def samples(self, z: Tensor, c: Any, steps: int, generator: torch.Generator | None) -> Tensor:
        """Samples from unit noise z (B, ...) in ``steps`` of the generator's steps, the last of them with gradients."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the generator."""

    @abstractmethod
    def real(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        """The teacher's estimate of the clean image at x_t (B, ...), t (B,)."""

    @abstractmethod
    def fake(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        """The estimate of the fake score."""

    @abstractmethod
    def features(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        """The coarsest features of the fake score's network."""

    def forward_one(self) -> None:
        super().forward_one()  # type: ignore[safe-super]
        self.fake(*self.one_sample())
        if self.gan_weight:
            with repeated(3):  # a sample in the generator's loss; in the critic's an image, too
                self.features(*self.one_sample())

    def losses(self, x: Tensor, c: Any, generator: torch.Generator | None = None) -> Losses:
        """The losses on data x (B, ...), which only the adversarial part uses, and their conditions c."""
        turn = self._acting()
        drawn = torch.randint(self.steps, (1,), generator=generator, device=generator.device if generator else "cpu")
        z = unit_noise(x.shape, generator, x.device, x.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and turn.generator):
            samples = self.samples(z, c, 1 + int(drawn), generator)
        return Losses(
            self._generator_loss(samples, c, generator) if turn.generator else None,
            self._critic_loss(x, samples.detach(), c, generator) if turn.critic else None,
        )

    def _generator_loss(self, samples: Tensor, c: Any, generator: torch.Generator | None) -> Tensor:
        with torch.no_grad():
            x_t, t, _ = self._noised(samples, generator, _MARGIN)
            real, fake, weight = self.real(x_t, t, c), self.fake(x_t, t, c), None
            if self.divergence != "reverse_kl":
                weight = matching_weight(self.critic.head(self.features(x_t, t, c)), self.divergence)
        loss = matching_loss(samples, real, fake, weight)
        if not self.gan_weight:
            return loss
        with Held(self.critic.parameters()):
            return loss + self.gan_weight * generator_loss(self._logits(samples, c, generator))

    def _critic_loss(self, x: Tensor, samples: Tensor, c: Any, generator: torch.Generator | None) -> Tensor:
        x_t, t, sigma = self._noised(samples, generator)
        weight = edm_weight(sigma, self.sigma_data)
        loss = (expand(weight, x) * (self.fake(x_t, t, c) - samples).square()).mean()
        if not self.gan_weight:
            return loss
        real, fake = self._logits(x, c, generator), self._logits(samples, c, generator)
        self.watch(real, fake, x, samples)
        return loss + self.critic_gan_weight * discriminator_loss(real, fake)

    def _logits(self, x: Tensor, c: Any, generator: torch.Generator | None) -> Tensor:
        x_t, t, _ = self._noised(x, generator)
        logits: Tensor = self.critic.head(self.features(x_t, t, c))
        return logits

    def _noised(
        self, x: Tensor, generator: torch.Generator | None, margin: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points at levels drawn from the grid, without a margin at each end; the levels, and those in units of VE."""
        cut = round(margin * len(self.grid))
        number = torch.randint(cut, len(self.grid) - cut, (len(x),), device=x.device, generator=generator)
        t = self.grid.to(x.device)[number]
        alpha, sigma = self.path.scales(t)
        return self.path.point(x, unit_noise(x.shape, generator, x.device, x.dtype), t), t, sigma / alpha
