"""Streams of frames, each redrawn: image to image on a video (StreamDiffusion, Kodaira et al. 2023)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.core.stream_batch import StreamBatch
from cm_lightning.domains import FRACTION
from cm_lightning.errors import ConfigError
from cm_lightning.serve.drawer import Drawer
from cm_lightning.serve.wish import Wish

#: A frame (C, H, W) in [-1, 1], or None for a gap -> the picture (C, H, W) uint8 that comes out, or None.
_Push: TypeAlias = Callable[[Tensor | None], Tensor | None]


@dataclass(frozen=True)
class Frame:
    """The picture of a frame.

    Args:
        pixels: (C, H, W) uint8.
        drawn: whether it was drawn; else it is the picture of an earlier frame, repeated.
        seconds: the time of drawing from the frame to its picture; with batched steps also that of the frames between.
        at: the time of drawing from the first frame to this picture, in seconds.
    """

    pixels: Tensor
    drawn: bool
    seconds: float
    at: float


def redraw_frames(
    drawer: Drawer,
    frames: Iterable[Tensor],
    wish: Wish,
    steps: int | None = None,
    threshold: float = 1.0,
    batch_steps: bool = False,
) -> Iterator[Frame]:
    """Redraw frames, one after the other, from the same noise, so that what rests in them rests in the pictures.

    A frame that resembles the last one that was drawn gets its picture. It is compared with that one, not with the one
    before it, so that a slow change is noticed in the end.

    Args:
        drawer: the model.
        frames: images (C, H, W) of its shape in [-1, 1].
        wish: the values that the pictures depend on.
        steps: the number of steps; the model's own if None.
        threshold: the cosine similarity, in [0, 1], above which a frame is not drawn; at 1 all are.
        batch_steps: whether N successive frames, each at another of N steps, share each pass of the network. The
            pictures are the same up to rounding, and each comes N - 1 frames after its frame.

    Raises:
        ConfigError: the threshold is out of range, the wish does not fit the model, or its steps cannot be batched.
    """
    FRACTION.check(threshold=threshold)
    push, delay = _line(drawer, wish, steps, batch_steps)
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        return
    for frame in [*[first] * (delay + 1), *[None] * delay]:
        push(frame)  # the first pictures take longer than all others
    yield from _through(push, delay, chain([first], rest), threshold)


def _through(push: _Push, delay: int, frames: Iterable[Tensor], threshold: float) -> Iterator[Frame]:
    """The pictures of frames that are pushed through, in their order; after the last one, gaps bring out the rest."""
    seen = pixels = None
    clock, entered = 0.0, deque[tuple[bool, float]]()
    for i, frame in enumerate(chain(frames, [None] * delay)):
        start = time.perf_counter()
        drawn = frame is not None and (seen is None or similarity(frame, seen) <= threshold)
        seen = frame if drawn else seen
        finished = push(frame if drawn else None)
        pixels = pixels if finished is None else finished
        entered.append((drawn, clock))
        clock += time.perf_counter() - start
        if i >= delay:
            drawn, since = entered.popleft()
            assert pixels is not None
            yield Frame(pixels, drawn, clock - since, clock)


def _line(drawer: Drawer, wish: Wish, steps: int | None, batch_steps: bool) -> tuple[_Push, int]:
    """What frames are pushed into, and after how many more of them the picture of a frame comes out."""
    if not batch_steps:
        return torch.no_grad()(lambda frame: None if frame is None else drawer.pixels(wish, steps, frame)), 0
    batch = StreamBatch(drawer.stages(wish, steps))
    if not batch.delay:
        raise ConfigError(
            f"batch_steps: {drawer.name} redraws a frame in one step here, so there are none to batch: "
            "leave it out, or ask for more steps"
        )
    return batch.push, batch.delay


def similarity(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two images, (C, H, W) each, at most 1."""
    cosine = nnf.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    return min(float(cosine), 1.0)
