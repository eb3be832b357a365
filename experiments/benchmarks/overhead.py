"""The overhead of the Trainer: a full step of ECT on digits against a bare PyTorch loop of the same mathematics.

    python experiments/benchmarks/overhead.py            the ratio at the size of the recipe
    python experiments/benchmarks/overhead.py --small    a network so small that little else is left to time

The full step has the averaged weights, logging and the progress bar; the bare loop does not. Bare steps are
timed before and after the run, in the same process, so that changes in the speed of the machine affect both equally.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cm_lightning.cli import main
from cm_lightning.core.curriculum import Clock
from cm_lightning.modules.training import ConsistencyTraining

CONFIG = Path(__file__).parents[1] / "mnist" / "compare" / "ect.yaml"
WARM = 10  # steps before the clock starts


class Stopwatch(Callback):
    """Times the steps of the run, and bare steps before and after it."""

    bare: list[float]
    full: list[float]

    def __init__(self, steps: int = 100) -> None:
        self.steps = steps
        Stopwatch.bare, Stopwatch.full = [], []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bare_steps(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM:
            self._since = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.full.append((time.perf_counter() - self._since) / (trainer.global_step - WARM))
        self._bare_steps(trainer, pl_module)

    def _bare_steps(self, trainer: L.Trainer, m: Any) -> None:
        assert isinstance(m, ConsistencyTraining)
        assert m.optimizer is not None
        optimizer = m.optimizer(m.backbone.parameters())
        batches = iter(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        m.backbone.train()
        f = m.map()

        def train(step: int) -> None:  # a function, so that nothing of a step outlives it
            x, labels = next(batches)
            loss = m.objective.loss(f, f, x, labels, Clock(step, self.steps))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(m.backbone.parameters(), 1.0)
            optimizer.step()

        for _ in range(WARM):
            train(0)
        since = time.perf_counter()
        for step in range(self.steps):
            train(step)
        self.bare.append((time.perf_counter() - since) / self.steps)


def run(steps: int, small: bool) -> None:
    """Time ``steps`` steps of each kind and print the ratio."""
    size = ["--model.backbone.channels=8", "--data.batch_size=2"] if small else []
    total = steps + WARM
    with tempfile.TemporaryDirectory() as folder:
        main([
            "fit", f"--config={CONFIG}", f"--trainer.max_steps={total}", f"--trainer.val_check_interval={10 * total}",
            "--trainer.limit_val_batches=0", f"--trainer.logger.save_dir={folder}", "--model.curriculum.fraction=0",
            "--trainer.callbacks+=__main__.Stopwatch", f"--trainer.callbacks.steps={steps}", *size,
        ])  # fmt: skip
    bare = sum(Stopwatch.bare) / len(Stopwatch.bare)
    (full,) = Stopwatch.full
    before, after = (1000 * seconds for seconds in Stopwatch.bare)
    print(f"bare loop {before:.1f} ms before and {after:.1f} ms after, full step {1000 * full:.1f} ms per step")
    print(f"ratio full / bare: {full / bare:.3f}, difference {1000 * (full - bare):.1f} ms per step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="steps of each kind; at most those of an epoch less ten")
    parser.add_argument("--small", action="store_true", help="8 channels, 2 images per step")
    arguments = parser.parse_args()
    sys.argv[1:] = []
    run(arguments.steps, arguments.small)
