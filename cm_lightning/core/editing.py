"""Editing without training: the known part of an image is put back at each noise level (CM, Algorithm 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.core.noise import Source, expand, generators, unit_noise
from cm_lightning.core.sampler import ConsistencyFunction, denoise_and_noise
from cm_lightning.domains import at_least
from cm_lightning.errors import ConfigError

#: Weights of red, green and blue in the brightness of a pixel; their sum is 1, so that of a grey pixel is its value.
BRIGHTNESS = tuple(weight / 0.9999 for weight in (0.2989, 0.5870, 0.1140))


class Known(ABC):
    """The known part of images (B, C, H, W) in [-1, 1]."""

    #: Where editing starts: the known part, completed to images (B, C, H, W) in the simplest way.
    start: Tensor

    @abstractmethod
    def put_back(self, x: Tensor) -> Tensor:
        """The images with the known part that are nearest to x (B, C, H, W)."""

    @abstractmethod
    def in_range(self, x: Tensor) -> Tensor:
        """Images near x (B, C, H, W) that have the known part exactly and lie in [-1, 1]."""


class Pixels(Known):
    """All pixels where a mask is false: inpainting and outpainting.

    Args:
        images: (B, C, H, W) in [-1, 1].
        mask: bool, broadcast to the images; true where they are edited.

    Raises:
        ConfigError: the mask is not boolean, so its meaning would be a guess.
    """

    def __init__(self, images: Tensor, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise ConfigError(f"the mask must be boolean, true where edited, got {mask.dtype}: give mask > 0")
        self.images, self.mask = images, mask
        self.start = torch.where(mask, 0.0, images)

    def put_back(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, self.images)

    def in_range(self, x: Tensor) -> Tensor:
        return self.put_back(x.clamp(-1, 1))


class Brightness(Known):
    """The brightness of each pixel: colourisation.

    The component along :data:`BRIGHTNESS` is known, and the two orthogonal to it are not. A pixel that would leave
    [-1, 1] becomes paler, which keeps its brightness; cutting off its channels would not.

    Args:
        grey: (B, 1, H, W) in [-1, 1].
    """

    def __init__(self, grey: Tensor) -> None:
        self.grey = grey
        self.weights = grey.new_tensor(BRIGHTNESS)[:, None, None]
        self.start = grey.expand(-1, 3, -1, -1)

    def put_back(self, x: Tensor) -> Tensor:
        missing = self.grey - brightness(x)
        return x + self.weights / self.weights.square().sum() * missing

    def in_range(self, x: Tensor) -> Tensor:
        colour = self.put_back(x.clamp(-1, 1)) - self.grey
        return self.grey + _scale_into_range(self.grey, colour).amin(1, keepdim=True) * colour


class PatchMeans(Known):
    """The mean of each patch of p x p pixels: super-resolution.

    A patch that would leave [-1, 1] loses contrast, which keeps its mean.

    Args:
        small: (B, C, H / p, W / p) in [-1, 1], the means.
        p: side of a patch in pixels, at least 2.
    """

    def __init__(self, small: Tensor, p: int) -> None:
        at_least(2).check(p=p)
        self.small, self.p = small, p
        self.start = self._spread(small)

    def put_back(self, x: Tensor) -> Tensor:
        return x + self._spread(self.small - nnf.avg_pool2d(x, self.p))

    def in_range(self, x: Tensor) -> Tensor:
        detail = self.put_back(x.clamp(-1, 1)) - self.start
        scale = -nnf.max_pool2d(-_scale_into_range(self.start, detail), self.p)
        return self.start + self._spread(scale) * detail

    def _spread(self, means: Tensor) -> Tensor:
        return means.repeat_interleave(self.p, -2).repeat_interleave(self.p, -1)


def _scale_into_range(centre: Tensor, offset: Tensor) -> Tensor:
    """The largest factor s in [0, 1] for which centre + s offset lies in [-1, 1], for each value."""
    room = 1 - centre * offset.sign()
    return torch.where(offset.abs() > room, room / offset.abs(), 1.0)


def brightness(images: Tensor) -> Tensor:
    """The brightness (B, 1, H, W) of colour images (B, 3, H, W)."""
    return (images.new_tensor(BRIGHTNESS)[:, None, None] * images).sum(1, keepdim=True)


def edit(
    f: ConsistencyFunction, known: Known, levels: Sequence[float], noised: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """Draw images that have the known part (CM, Algorithm 4): it is put back after each evaluation.

    Args:
        f: the consistency function; it is called len(levels) times.
        known: the known part.
        levels: noise levels, descending.
        noised: maps end points x (B, ...) and a level to points at that level, under fresh noise.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    x = denoise_and_noise(lambda x, t: known.put_back(f(x, t)), noised(known.start, levels[0]), levels, noised)
    return known.in_range(x)


def redraw(
    f: ConsistencyFunction, images: Tensor, levels: Sequence[float], noised: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """Redraw images from noisy copies of the given ones (SDEdit, Meng et al. 2021): strokes become images.

    The higher the first level, the less of the given images remains. The arguments are those of :func:`edit`.
    """
    return denoise_and_noise(f, noised(images, levels[0]), levels, noised)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Go from a to b along the arc between them, which keeps the norm of noise; a straight line would shorten it.

    Args:
        a: noise (B, ...).
        b: noise (B, ...).
        share: (B,), 0 for a and 1 for b.

    Raises:
        ConfigError: a vector is 0, so the angle is undefined.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    if not bool((norms > 0).all()):
        raise ConfigError("slerp: a vector is 0 and does not have a direction: draw it from noise")
    angle = ((flat_a * flat_b).sum(1) / norms).clamp(-1, 1).acos()
    share = share.to(angle)
    # for parallel vectors the arc is the line
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    to_a = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    to_b = torch.where(straight, share, (share * angle).sin() / sine)
    return (expand(to_a, a) * a + expand(to_b, b) * b).to(a.dtype)


def noise_at(seed: float, sample: int = 0) -> Source:
    """A source of noise that moves smoothly with the seed.

    Args:
        seed: at least 0. A whole one gives the noise of that seed; between two of them all that is drawn lies on the
            arc between their noise.
        sample: the sample's number under the seed.
    """
    low = int(seed)
    (first,), (second,) = generators(low, [sample]), generators(low + 1, [sample])
    if seed == low:
        return first

    def draw(shape: Sequence[int]) -> Tensor:
        share = torch.full((shape[0],), seed - low, dtype=torch.float64)
        return slerp(unit_noise(shape, first), unit_noise(shape, second), share)

    return draw
