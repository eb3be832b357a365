"""Editing images with a trained module: completing them from a known part, redrawing, denoising, interpolating."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cm_lightning.core.editing import Known, edit, redraw, slerp
from cm_lightning.core.noise import generators, unit_noise
from cm_lightning.core.sampler import ConsistencyFunction
from cm_lightning.domains import COUNT, FRACTION, POSITIVE, SEED
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import GenerativeModule, evaluated
from cm_lightning.modules.endpoint import Endpoint, Noised, endpoint

#: Noise levels for redrawing an image: those that CM uses for strokes.
REDRAW_SIGMAS = (5.38, 2.24)


@dataclass(frozen=True)
class _Batch:
    """A batch of results: their numbers, f under their classes, and noise from their own generators."""

    rows: list[int]
    f: ConsistencyFunction
    noised: Noised


class Editor:
    """Edits images of a module's shape with the weights that it holds.

    A consistency function, a flow map and the generator of DMD2 take one evaluation for each level. A diffusion model,
    whose ODE is solved down from each level, takes many, and a student of several stages takes as many as it has steps
    below the level.

    Args:
        module: any model on images. A one-step generator can only :meth:`interpolate` and :meth:`vary`: nothing of an
            image is left at the noise level at which it was trained.
        n: number of results.
        labels: classes, repeated in turn. If None, a network with classes draws without a class if it was trained with
            ``label_dropout``, and otherwise draws all classes in turn.
        steps: number of noise levels; each method has its own default.
        sigmas: noise levels, descending, in place of ``steps``; for a flow map, its times.
        guidance: as in :meth:`GenerativeModule.sample`.
        seed: seed of the noise; a result depends only on it and on the result's number.
        batch_size: number of images drawn at a time.

    Raises:
        ConfigError: a value is out of range, or does not fit the module.
    """

    def __init__(
        self,
        module: GenerativeModule,
        n: int = 1,
        labels: Sequence[int] | None = None,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: float = 0.0,
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        COUNT.check(n=n, batch_size=batch_size)
        SEED.check(seed=seed)
        if len(module.image_shape) != 3:
            raise ConfigError(f"editing needs a module of images, but this one draws {module.image_shape}")
        module.check_guidance(guidance)
        self.module = module
        self.n, self.steps, self.sigmas, self.guidance = n, steps, sigmas, guidance
        self.seed, self.batch_size = seed, batch_size
        if labels is None and module.label_dropout:
            labels = [module.num_classes]  # the null class
        self.labels = module.sample_labels(n, labels and [labels[i % len(labels)] for i in range(n)])

    @cached_property
    def end(self) -> Endpoint:
        """The map to the end points of the module's trajectories, without which it can only vary samples."""
        return endpoint(self.module)

    def fill(self, known: Known) -> Tensor:
        """Complete an image of which a part is known (CM, Algorithm 4).

        Args:
            known: the part: :class:`Pixels`, :class:`Brightness` or :class:`PatchMeans` of a batch of one image.

        Returns:
            (n, C, H, W) in [-1, 1], with exactly that part.
        """
        levels = self._levels(lambda: self.end.levels(self.end.levels_of_edit))
        return self._draw(lambda batch: edit(batch.f, known, levels, batch.noised))

    def redraw(self, image: Tensor) -> Tensor:
        """Draw variations of an image, or an image from strokes (SDEdit).

        Args:
            image: (C, H, W) in [-1, 1].

        Returns:
            (n, C, H, W) in [-1, 1].
        """
        levels, start = self._redraw_levels(), self._own(image)
        return self._draw(lambda batch: redraw(batch.f, start, levels, batch.noised))

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Go from one image to another: both, and mixtures of them, are redrawn with the same noise.

        Args:
            first: (C, H, W) in [-1, 1].
            second: (C, H, W) in [-1, 1].

        Returns:
            (n, C, H, W) in [-1, 1].
        """
        levels, a, b = self._redraw_levels(), self._own(first), self._own(second)
        starts = torch.lerp(a, b, torch.linspace(0, 1, self.n)[:, None, None, None].to(a))
        return self._draw(lambda batch: redraw(batch.f, starts[batch.rows], levels, batch.noised), streams=[0] * self.n)

    def denoise(self, image: Tensor, sigma: float) -> Tensor:
        """Remove Gaussian noise of a known strength.

        Args:
            image: (C, H, W), the clean image plus the noise; its values may lie outside [-1, 1].
            sigma: standard deviation of the noise, on the scale of [-1, 1].

        Returns:
            (n, C, H, W) in [-1, 1]: the clean image, for each of the n labels.
        """
        POSITIVE.check(sigma=sigma)
        (level,) = self.module.sampling_levels(None, [self.end.level(sigma)])
        x = self.end.point(self._own(image), level)

        def end(batch: _Batch) -> Tensor:
            return batch.f(x.expand(len(batch.rows), -1, -1, -1), x.new_full((len(batch.rows),), level))

        return self._draw(end)

    def interpolate(self, seeds: Sequence[int]) -> Tensor:
        """Go from the sample of one seed to that of the next along an arc of their noise.

        Args:
            seeds: at least two; in one step the first and the last result are the first samples that ``sample`` draws
                with these.

        Returns:
            (n, C, H, W) in [-1, 1].
        """
        if len(seeds) < 2:
            raise ConfigError(f"at least two seeds are needed, got {list(seeds)}")
        SEED.check_each(seeds=seeds)
        place = torch.linspace(0, len(seeds) - 1, self.n, dtype=torch.float64)
        first = place.long().clamp(max=len(seeds) - 2)
        z = torch.cat([self._unit(generators(seed, [0])) for seed in seeds])
        return self._sample(slerp(z[first], z[first + 1], place - first), seeds[0])

    def vary(self, amount: float) -> Tensor:
        """Draw variations of the sample of the seed, by moving its noise towards that of other samples.

        Args:
            amount: how far it is moved, in [0, 1]: at 0 nothing changes, and at 1 nothing of the sample remains.

        Returns:
            (n, C, H, W) in [-1, 1], of which the first is the sample itself.
        """
        FRACTION.check(amount=amount)
        z = self._unit(generators(self.seed, range(self.n)))
        return self._sample(slerp(z[:1].expand_as(z), z, torch.full((self.n,), amount)), self.seed)

    @torch.no_grad()
    def _sample(self, z: Tensor, seed: int) -> Tensor:
        """Samples from unit noise z (n, C, H, W); noise that is added in later steps is the same for all."""
        levels = self.module.sampling_levels(self.steps, self.sigmas)
        results = []
        for rows in self._rows():
            noise = generators(seed, [0] * len(rows))
            self._unit(noise)  # skips the noise of the start, which later steps must not draw again
            with evaluated(self.module.backbone):
                x = self.module.generate(z[rows], self._labels(rows), levels, noise, self.guidance)
            results.append(self.module.finished(x, len(levels)))
        return torch.cat(results)

    @torch.no_grad()
    def _draw(self, make: Callable[[_Batch], Tensor], streams: Sequence[int] | None = None) -> Tensor:
        """Draw in batches.

        Args:
            make: draws one batch.
            streams: numbers of the generators of the results; a different one for each if None.
        """
        results = []
        for rows in self._rows():
            noise = generators(self.seed, rows if streams is None else [streams[i] for i in rows])
            f = self.end.function(self._labels(rows), self.guidance)
            with evaluated(self.module.backbone):
                results.append(make(_Batch(rows, f, self.end.noised(self._noise_of(noise)))).clamp(-1, 1))
        return torch.cat(results)

    def _noise_of(self, noise: list[torch.Generator]) -> Callable[[Tensor], Tensor]:
        return lambda x: self._unit(noise)  # x may be one image for all of them

    def _unit(self, noise: list[torch.Generator]) -> Tensor:
        like = self._like()
        return unit_noise([len(noise), *self.module.image_shape], noise, like.device, like.dtype)

    @property
    def device(self) -> torch.device:
        """The device of the module, on which the known part of an image must be."""
        return self._like().device

    def _like(self) -> Tensor:
        return next(self.module.backbone.parameters())

    def _own(self, image: Tensor) -> Tensor:
        """The image as a batch of one, on the module's device."""
        if tuple(image.shape) != self.module.image_shape:
            raise ConfigError(f"the image must have the shape {self.module.image_shape}, got {tuple(image.shape)}")
        return image[None].to(self._like())

    def _rows(self) -> Iterable[list[int]]:
        return (list(range(self.n))[first : first + self.batch_size] for first in range(0, self.n, self.batch_size))

    def _labels(self, rows: list[int]) -> Tensor | None:
        return None if self.labels is None else self.labels[rows]

    def _levels(self, default: Callable[[], Sequence[float]]) -> list[float]:
        if self.sigmas is not None:
            return self.module.sampling_levels(self.steps, self.sigmas)
        return list(default()) if self.steps is None else self.end.levels(self.steps)

    def _redraw_levels(self) -> list[float]:
        return self._levels(lambda: self.end.levels_near(REDRAW_SIGMAS))
