"""Streams of frames, each drawn anew: image to image on a video (StreamDiffusion, Kodaira et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.domains import FRACTION
from cm_lightning.serve.drawer import Drawer
from cm_lightning.serve.wish import Wish


@dataclass(frozen=True)
class Frame:
    """The picture of a frame.

    Args:
        pixels: (C, H, W) uint8.
        drawn: whether it was drawn; else it is the picture of an earlier frame, repeated.
        seconds: the time from the frame to its picture.
    """

    pixels: Tensor
    drawn: bool
    seconds: float


def redraw_frames(
    drawer: Drawer, frames: Iterable[Tensor], wish: Wish, steps: int | None = None, threshold: float = 1.0
) -> Iterator[Frame]:
    """Draw frames anew, one after the other, from the same noise, so that what rests in them rests in the pictures.

    A frame that resembles the last one that was drawn gets its picture. It is compared with that one, not with the one
    before it, so that a slow change is noticed in the end.

    Args:
        drawer: the model.
        frames: images (C, H, W) of its shape in [-1, 1].
        wish: the values that the pictures depend on.
        steps: the number of steps; the model's own if None.
        threshold: the cosine similarity, in [0, 1], above which a frame is not drawn; at 1 all are.

    Raises:
        ConfigError: the threshold is out of range, or the wish does not fit the model.
    """
    FRACTION.check(threshold=threshold)
    rest = iter(frames)
    for first in rest:
        _draw(drawer, wish, steps, first)  # the first picture takes longer than all others
        rest = chain([first], rest)
        break
    seen = pixels = None
    for frame in rest:
        start = time.perf_counter()
        drawn = seen is None or pixels is None or similarity(frame, seen) <= threshold
        if drawn:
            seen, pixels = frame, _draw(drawer, wish, steps, frame)
        assert pixels is not None
        yield Frame(pixels, drawn, time.perf_counter() - start)


def similarity(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two images, (C, H, W) each, at most 1."""
    cosine = nnf.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    return min(float(cosine), 1.0)


@torch.no_grad()
def _draw(drawer: Drawer, wish: Wish, steps: int | None, frame: Tensor) -> Tensor:
    return drawer.pixels(wish, steps, frame)
