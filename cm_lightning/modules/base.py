"""The base of all methods on images: a backbone conditioned on noise levels and classes, and sampling."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import jvp

from cm_lightning.backbones.attention import set_forward_mode
from cm_lightning.backbones.embedding import check_labels
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.noise import Source, unit_noise
from cm_lightning.core.objective import Objective, Tangent
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.domains import COUNT, FINITE, FRACTION, POSITIVE
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.modules.batch import images_and_labels
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.recording import describe, foreign_packages
from cm_lightning.run import find_checkpoint

Generators: TypeAlias = Source | Sequence[Source] | None


#: The tolerance within which levels that were rounded to single precision equal the originals.
_ROUNDING = 1e-5


def check_descending(sigmas: Sequence[float], option: str = "sigmas") -> None:
    """Raise ConfigError, which names the option, unless the noise levels are above 0 and descend."""
    levels = list(sigmas) if isinstance(sigmas, Iterable) and not isinstance(sigmas, str) else []
    descend = all(level in POSITIVE for level in levels) and all(high > low for high, low in pairwise(levels))
    if not levels or not descend:
        raise ConfigError(f"{option} must be positive, finite noise levels in descending order, got {sigmas!r}")


_O = TypeVar("_O", bound=Objective)


def ready(objective: _O, backbone: nn.Module) -> _O:
    """Switch the network's attention to a kernel that the objective can differentiate, and return the objective."""
    if objective.forward_mode:
        set_forward_mode(backbone, True)
    return objective


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Put the network in eval mode within the context, and back in its own mode after it."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class GenerativeModule(TrainedModule):
    """Base of the methods.

    Args:
        backbone: any network with ``forward(x, noise_label, class_label=None)``; it is class-conditional if it has an
            attribute ``num_classes`` above 0.
        image_shape: (C, H, W) of images; the shape of a sample for other data, such as (2,) for points in the plane.
        label_dropout: probability of training on a sample with the null class; guidance needs it.
        optimizer, lr_scheduler, start_from: see :class:`TrainedModule`.
    """

    #: Evaluations of the network for each sample, unless another number is given.
    default_steps = 1
    #: Noise labels that the network is given for each sample.
    noise_labels_given = 1
    #: The factor on images that were drawn in a number of steps, before they are clipped; 1 for other numbers.
    contrast: Mapping[int, float] = MappingProxyType({})

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        FRACTION.check(self, label_dropout=label_dropout)
        super().__init__(backbone, optimizer, lr_scheduler, start_from)
        check_labels(type(self).__name__, backbone, self.noise_labels_given)
        if image_shape is None:  # the command line takes it from a folder of images
            raise ConfigError("image_shape must be given: (C, H, W) of the data")
        COUNT.check_each(self, image_shape=image_shape)
        self.image_shape = tuple(image_shape)
        self.num_classes = int(getattr(backbone, "num_classes", 0))
        self.label_dropout = label_dropout
        if label_dropout and not self.num_classes:
            raise ConfigError("label_dropout needs a class-conditional backbone: set num_classes, or label_dropout 0")

    @abstractmethod
    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on images x (B, ...) and labels (B,), a scalar."""

    @abstractmethod
    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        """Images from unit noise z (B, ...) through the given noise levels."""

    @abstractmethod
    def default_sigmas(self, steps: int) -> list[float]:
        """The noise levels for a number of sampling steps."""

    def one_sample(self) -> tuple[Tensor, Tensor, Any]:
        labels = torch.zeros(1, dtype=torch.long) if self.num_classes else None
        return torch.zeros(1, *self.image_shape), torch.zeros(1, *[2] * (self.noise_labels_given == 2)), labels

    def forward_one(self) -> None:
        self.backbone(*self.one_sample())

    def pass_beside(self) -> None:
        objective = getattr(self, "objective", None)
        if isinstance(objective, Tangent) and objective.forward_mode:
            self.derivative_one()

    def derivative_one(self) -> None:
        """Take the forward-mode derivative of the network at one sample of zeros, on the device of new tensors."""
        x, t, labels = self.one_sample()
        jvp(lambda x, t: self.backbone(x, t, labels), (x, t), (x, t))

    def phase(self, clock: Clock) -> str:
        objective = getattr(self, "objective", None)
        return (isinstance(objective, Objective) and objective.phase(clock)) or super().phase(clock)

    def sample_arguments(self, run: Path) -> list[str] | None:
        try:
            find_checkpoint(run)
        except CheckpointError:
            return None
        trust = [f"--trust={package}" for package in foreign_packages(self.config or describe(self))]
        output = [] if len(self.image_shape) == 3 else ["--output", "samples.npz"]
        return ["--ckpt_path", str(run), *trust, *output]

    def shown(self) -> Mapping[str, Tensor]:
        objective = getattr(self, "objective", None)
        return objective.shown if isinstance(objective, Objective) else {}

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        x, labels = self._images_and_labels(batch, batch_idx)
        if labels is not None and self.label_dropout and self.training:
            dropped = torch.rand(labels.shape, device=x.device) < self.label_dropout
            labels = torch.where(dropped, self.num_classes, labels)
        return self.loss(x, labels, generator)

    def _images_and_labels(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        dtype = next(self.backbone.parameters()).dtype
        return images_and_labels(batch, self.image_shape, self.num_classes, batch_idx == 0, dtype)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draw as many samples as the batch has images, of the same classes."""
        x, labels = self._images_and_labels(batch, batch_idx)
        return self.sample(len(x), labels=labels, generator=torch.Generator().manual_seed(self._number(batch_idx)))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        labels: Tensor | Sequence[int] | int | None = None,
        generator: Generators = None,
        sigmas: Sequence[float] | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """Draw n images with the weights that the module holds.

        Args:
            n: number of images.
            steps: evaluations of the network (NFE); ``default_steps`` if None.
            labels: a class, or n of them; if None, the classes in turn, if the network has classes.
            generator: draws the noise; torch's global generator if None. With one generator for each image
                (:func:`cm_lightning.core.noise.generators`) an image does not depend on the others. A function of the
                shape may take the place of a generator (:func:`cm_lightning.core.editing.noise_at`).
            sigmas: noise levels, descending, in place of ``steps``.
            guidance: w of c + w (c - u), classifier-free guidance (Ho & Salimans 2022), for a network that was trained
                with ``label_dropout``. 0 means no guidance; any other value doubles the evaluations.

        Returns:
            (n, C, H, W), clipped to [-1, 1]; data of another rank, such as points, are not clipped.

        Raises:
            ConfigError: n or steps is below 1, the labels do not fit, or the noise levels do not descend or lie
                outside the range on which the network was trained.
        """
        COUNT.check(n=n)
        self.check_guidance(guidance)
        levels = self.sampling_levels(steps, sigmas)
        dtype = next(self.backbone.parameters()).dtype
        z = unit_noise([n, *self.image_shape], generator, self.device, dtype)
        classes = self.sample_labels(n, labels)
        with evaluated(self.backbone):
            x = self.generate(z, classes, levels, generator, guidance)
        return self.finished(x, len(levels))

    def finished(self, x: Tensor, steps: int) -> Tensor:
        """Samples x (B, ...) of a number of steps as they are returned: images with contrast, clipped to [-1, 1]."""
        return (self.contrast.get(steps, 1.0) * x).clamp(-1, 1) if len(self.image_shape) == 3 else x

    def check_guidance(self, guidance: float) -> None:
        """Raise ConfigError unless the network can be sampled with this guidance."""
        FINITE.check(guidance=guidance)
        if guidance and not self.num_classes:
            raise ConfigError("guidance needs a class-conditional network: leave it out")
        if guidance and not self.label_dropout:
            raise ConfigError("guidance needs a network that was trained with label_dropout: leave it out")

    def trained_levels(self) -> tuple[float, float]:
        """The lowest and the highest noise level at which the network was trained."""
        return 0.0, math.inf

    def sampling_levels(self, steps: int | None, sigmas: Sequence[float] | None) -> list[float]:
        """The noise levels that ``sample`` takes for these arguments. Raises the same ConfigError."""
        if sigmas is None:
            steps = self.default_steps if steps is None else steps
            COUNT.check(steps=steps)
            levels = self.default_sigmas(steps)
            check_descending(levels)
            return levels
        check_descending(sigmas)
        if steps not in (None, len(sigmas)):
            raise ConfigError(
                f"steps and sigmas cannot be combined: {steps} steps, but {len(sigmas)} levels; leave steps out"
            )
        levels = [float(sigma) for sigma in sigmas]
        low, high = self.trained_levels()
        if levels[-1] < low * (1 - _ROUNDING) or levels[0] > high * (1 + _ROUNDING):
            raise ConfigError(f"sigmas must lie in {low:g} ... {high:g}, where the network was trained; got {levels}")
        return levels

    def sample_labels(self, n: int, labels: Tensor | Sequence[int] | int | None) -> Tensor | None:
        """The class labels (n,) on the module's device; see :meth:`sample`."""
        if not self.num_classes:
            if labels is not None:
                raise ConfigError("labels were given, but the network is unconditional: leave them out")
            return None
        if labels is None:
            return torch.arange(n, device=self.device) % self.num_classes
        if isinstance(labels, (list, tuple)) and any(isinstance(label, bool) for label in labels):
            raise ConfigError(f"labels must be whole numbers, got {labels!r}")
        try:
            labels = torch.as_tensor(labels, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"labels must be whole numbers, got {labels!r}") from error
        if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
            raise ConfigError(f"labels must be whole numbers, got {labels.dtype}")
        labels = labels.long()
        if labels.numel() not in (1, n):
            raise ConfigError(f"{labels.numel()} labels were given for {n} samples: give one, or one for each")
        labels = labels.flatten().expand(n)
        if bool(((labels < 0) | (labels > self.num_classes)).any()):
            raise ConfigError(f"labels must lie in 0 ... {self.num_classes - 1} ({self.num_classes}: the null class)")
        return labels
