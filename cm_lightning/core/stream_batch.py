"""Batched denoising steps: the frames of a stream, each at another step, share the passes of the network.

With N steps for each frame, N frames are in flight at successive noise levels. A new frame costs one pass over a batch
of N in place of N passes over one: the stream batch of StreamDiffusion (Kodaira et al. 2023, section 3.1). A picture
comes N - 1 frames after its frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm_lightning.core.sampler import ConsistencyFunction, denoise_and_noise


@dataclass(frozen=True)
class Stages:
    """The steps by which an image is redrawn. All images get the same noise, which may differ between levels.

    Args:
        start: maps an image (C, H, W) to its point (1, ...) at the first level.
        f: the consistency function; the samples of a batch may be at different levels.
        levels: descending; integers are timesteps, passed on as int64.
        noised: maps an end point x (1, ...) and a level to the point at that level, under the noise of the level.
        finished: maps an end point (1, ...) to the picture (C, H, W).
    """

    start: Callable[[Tensor], Tensor]
    f: ConsistencyFunction
    levels: Sequence[float]
    noised: Callable[[Tensor, float], Tensor]
    finished: Callable[[Tensor], Tensor]

    def redraw(self, image: Tensor) -> Tensor:
        """Take all steps of an image (C, H, W) and return its picture (C, H, W)."""
        return self.finished(denoise_and_noise(self.f, self.start(image), self.levels, self.noised))


class StreamBatch:
    """The frames in flight, of which each has the picture that :meth:`Stages.redraw` draws.

    Args:
        stages: the N steps.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self._points: list[Tensor | None] = [None] * self.delay  # those that wait for all steps but the first

    @property
    def delay(self) -> int:
        """The number of pushes from that of a frame to that which returns its picture."""
        return len(self.stages.levels) - 1

    @torch.no_grad()
    def push(self, frame: Tensor | None) -> Tensor | None:
        """Take one step of every frame in flight, in one pass of the network.

        Args:
            frame: an image (C, H, W) that takes its first step; None for a gap, in which the others go on.

        Returns:
            The picture (C, H, W) of the frame that takes its last step; None if that place holds a gap.
        """
        first = None if frame is None else self.stages.start(frame)
        *ends, last = self._ends([first, *self._points])
        self._points = [
            None if end is None else self.stages.noised(end, level)
            for end, level in zip(ends, self.stages.levels[1:], strict=True)
        ]
        return None if last is None else self.stages.finished(last)

    def _ends(self, points: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The values of f at the points of all levels; gaps are passed over."""
        present = [(point, level) for point, level in zip(points, self.stages.levels, strict=True) if point is not None]
        if not present:
            return list(points)
        x = torch.cat([point for point, _ in present])
        levels = [level for _, level in present]
        dtype = torch.long if isinstance(levels[0], int) else x.dtype
        ends = iter(self.stages.f(x, torch.tensor(levels, dtype=dtype, device=x.device)).unsqueeze(1))
        return [None if point is None else next(ends) for point in points]
