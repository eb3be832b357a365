"""Several ranks: two on this machine against one with two threads, and the efficiency of many GPUs on paper.

    python experiments/benchmarks/scaling.py [--steps 40] [--rounds 3]
    python experiments/benchmarks/scaling.py --rounds 0 --speed 100 --node 300 --link 25     only the paper

Both runs train ECT on digits, by the command line and with the same images in a step; they alternate. On paper, a step
of ECT is four passes of the network (one without gradients, one with, and a backward pass that counts as two), after
which the gradients are summed over the ranks by a ring: each rank sends 2 (n - 1) / n times their bytes (Patarasuk and
Yuan 2009). DDP sums them while the backward pass still runs, so the stated efficiency, without any overlap, is a lower
bound as far as the ring's speed holds.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from backbones import NETWORKS, gflops
from lightning.pytorch.callbacks import Callback

CONFIG = Path(__file__).parents[1] / "mnist" / "compare" / "ect.yaml"
WARM = 10  # steps before the clock starts
PASSES = 4
#: Images of a step on each GPU.
ON_PAPER = {"DDPMpp.cifar10": 64, "ADM.imagenet64": 32, "EDM2.imagenet S": 64, "DiT.xlarge": 32}


class Stopwatch(Callback):
    """Prints the milliseconds of a step, the first ones excepted."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM:
            self._since = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"MS {1000 * (time.perf_counter() - self._since) / (trainer.global_step - WARM):.3f}", flush=True)


def milliseconds(ranks: int, images: int, steps: int) -> float:
    """A step of a run on some ranks that share two threads and the images of a step."""
    total = steps + WARM
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, __file__, "fit", f"--config={CONFIG}", f"--trainer.max_steps={total}",
            f"--trainer.val_check_interval={10 * total}", "--trainer.limit_val_batches=0",
            f"--trainer.logger.save_dir={folder}", "--trainer.callbacks+=__main__.Stopwatch",
            f"--data.batch_size={images // ranks}", f"--trainer.devices={ranks}",
            *(["--trainer.strategy=ddp"] if ranks > 1 else []),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 // ranks)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^MS ([\d.]+)$", done.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(done.stderr)
    return float(found[1])


def measured(images: int, steps: int, rounds: int) -> None:
    """Print the table of this machine."""
    runs: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for ranks, found in runs.items():
            found.append(milliseconds(ranks, images, steps))
    one = statistics.median(runs[1])
    print("| ranks x threads | ms per step | all rounds | to one rank |\n|---|---|---|---|")
    for ranks, found in runs.items():
        middle, every = statistics.median(found), ", ".join(f"{ms:.0f}" for ms in found)
        print(f"| {ranks} x {2 // ranks} | {middle:.1f} | {every} | {middle / one:.2f} |", flush=True)


def efficiency(step: float, size: float, ranks: int, bandwidth: float) -> float:
    """The share of its time that a rank computes, if the sum over the ranks follows the backward pass.

    Args:
        step: seconds of computation.
        size: bytes of the gradients.
        ranks: number of ranks, at least 1.
        bandwidth: bytes per second that a rank sends.
    """
    return step / (step + 2 * (ranks - 1) / ranks * size / bandwidth)


def paper(names: Iterable[str], speed: float, node: float, link: float) -> None:
    """Print the efficiency at 8 GPUs of one node and at 64 of eight nodes, with gradients in float32."""
    print("| network | parameters | images on a GPU | ms of computation | MB of gradients | 8 GPUs | 64 GPUs |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        (make, shape), images = NETWORKS[name], ON_PAPER[name]
        parameters, work = gflops(make, shape)
        step = PASSES * images * work / (1000 * speed)
        found = [efficiency(step, 4 * parameters, n, 1e9 * rate) for n, rate in ((8, node), (64, link))]
        cells = " | ".join(f"{share:.3f}" for share in found)
        size = 4 * parameters / 1e6
        print(f"| {name} | {parameters:,} | {images} | {1000 * step:.1f} | {size:.0f} | {cells} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64, help="images in a step of all ranks")
    parser.add_argument("--only", nargs="*", choices=ON_PAPER, default=list(ON_PAPER), help="networks on paper")
    parser.add_argument("--speed", type=float, default=100.0, help="TFLOP/s that a GPU reaches in a step")
    parser.add_argument("--node", type=float, default=300.0, help="GB/s that a GPU sends within a node")
    parser.add_argument("--link", type=float, default=25.0, help="GB/s that a GPU sends between nodes")
    args = parser.parse_args()
    if args.rounds:
        measured(args.images, args.steps, args.rounds)
        print()
    paper(args.only, args.speed, args.node, args.link)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:  # a run that this script started, or a further rank of it
        from cm_lightning.cli import main as command_line

        command_line()
    else:
        main()
