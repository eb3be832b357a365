"""What batched denoising steps save: the processor's time for a frame without ``--batch_steps`` and with it.

``python experiments/use/batched.py`` takes the options of ``cm-lightning stream``. It draws each frame of a folder
alone and then in a batch of steps, and prints the medians of both times and their ratio. It counts the seconds in
which the processor works for it, so that other programs disturb it little; in one thread, with nothing else running,
these are the seconds that pass.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from cm_lightning.commands.drawers import load_drawers
from cm_lightning.commands.stream import parser, read_frames, wish
from cm_lightning.core.stream_batch import StreamBatch
from cm_lightning.light import light_lightning
from cm_lightning.serve.wish import fitted


def main() -> None:
    """Measure."""
    args = parser().parse_args(sys.argv[1:])
    light_lightning()
    (model,) = load_drawers(args)
    asked = wish(args)
    batch = StreamBatch(model.stages(asked, args.steps))
    frames = [fitted(read(), model.shape) for read in read_frames(args.input)]
    for frame in frames:
        batch.push(frame)  # fills it, and warms up
    alone, together = [], []
    for frame in frames:
        alone.append(_seconds(partial(model.pixels, asked, args.steps, frame)))
        together.append(_seconds(partial(batch.push, frame)))
    one, other = statistics.median(alone), statistics.median(together)
    print(
        f"{batch.delay + 1} steps: {1e3 * one:.1f} ms for a frame alone ({1 / one:.3g} frames per second), "
        f"{1e3 * other:.1f} ms batched ({1 / other:.3g}), ratio {one / other:.2f}"
    )


@torch.no_grad()
def _seconds(draw: Callable[[], object]) -> float:
    start = time.process_time()
    draw()
    return time.process_time() - start


if __name__ == "__main__":
    main()
