"""The cost of each part of a training step of the main recipe, as a share of the step.

    python experiments/benchmarks/parts.py [--config experiments/mnist/compare/ect.yaml] [--rounds 30]

The parts are timed one by one in the process of the recipe, in interleaved rounds, and compared with a whole step. What
the sum lacks is the work between them: casts, scalings and the weights of the loss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cm_lightning.callbacks.ema import EMA
from cm_lightning.cli import main
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.noise import unit_noise
from cm_lightning.modules.training import ConsistencyTraining

CONFIG = Path(__file__).parents[1] / "mnist" / "compare" / "ect.yaml"


class Parts(Callback):
    """Times the parts after the last step of a run, when its networks, data and averages exist."""

    rounds: ClassVar[int] = 30

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ConsistencyTraining)
        parts = _parts(trainer, pl_module)
        seconds: dict[str, list[float]] = {name: [] for name in parts}
        for round_ in range(self.rounds + 3):
            for name, part in parts.items():
                start = time.perf_counter()
                part()
                if round_ >= 3:  # the first rounds reserve memory
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        whole = medians.pop("the whole step")
        print("| part | ms | share |\n|---|---|---|")
        for name, median in medians.items():
            print(f"| {name} | {1000 * median:.2f} | {100 * median / whole:.1f} % |")
        print(f"| the whole step | {1000 * whole:.2f} | |")


def _epochs(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _parts(trainer: L.Trainer, m: ConsistencyTraining) -> dict[str, Callable[[], Any]]:
    batches = _epochs(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
    x, labels = next(batches)
    clock, f = Clock(9, 10), m.map()
    optimizer = torch.optim.Adam(m.backbone.parameters(), lr=0.0)
    (t, q, *_), _, x_t = m.objective.draw(x, labels, clock, None)

    def step() -> None:
        x, labels = next(batches)
        loss = m.objective.loss(f, f, x, labels, clock)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(m.backbone.parameters(), 1.0)
        optimizer.step()

    def backward() -> None:
        f(x_t, t, labels).sum().backward()

    with torch.no_grad():
        here, there = f(x_t, t, labels), f(x_t, q, labels)

    def distance() -> None:
        (m.objective.weighting(t, q) * m.objective.distance(here, there)).mean()

    return {
        "the next batch": lambda: next(batches),
        "times, noise and the noisy images": lambda: m.objective.draw(x, labels, clock, None),
        "of these, the noise": lambda: unit_noise(x.shape),
        "a pass without gradients": torch.no_grad()(lambda: f(x_t, q, labels)),
        "a pass and its gradients": backward,
        "distance and weights": distance,
        "clipping": lambda: torch.nn.utils.clip_grad_norm_(m.backbone.parameters(), 1.0),
        "the optimizer": optimizer.step,
        "the average of the weights": lambda: ema.update(m.backbone, 100),
        "the whole step": step,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    sys.argv[1:] = []
    Parts.rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        main([
            "fit", f"--config={arguments.config}", "--trainer.max_steps=3", "--trainer.val_check_interval=100",
            "--trainer.limit_val_batches=0", f"--trainer.logger.save_dir={folder}",
            "--trainer.callbacks+=__main__.Parts",
        ])  # fmt: skip
