"""Growth of the time of a training step with the batch, the side of the images, and the width of the network.

    python experiments/benchmarks/growth.py [--method ECT] [--rounds 5]

Each quantity is doubled twice from its least value, set by `--images`, `--side` and `--channels`, while the others stay
at theirs. The exponent is the slope of a line through the logarithms: 1 means proportional growth.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import numpy as np
from steps import METHODS, Stepper
from torch import nn

import cm_lightning as C
from cm_lightning.device import keep_freed_memory

FACTORS = (1, 2, 4)


def stepper(method: str, images: int, side: int, channels: int) -> Stepper:
    """A method on a batch and a network of the given size."""

    def network(two_times: bool) -> nn.Module:
        embedding = C.TwoTimesEmbedding(channels) if two_times else None
        return C.UNet(3, channels, num_classes=10, noise_embedding=embedding)

    shape = (3, side, side)
    options = argparse.Namespace(device="cpu", precision="float32", images=images)
    return Stepper(lambda: METHODS[method](network, shape), shape, options)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent of a power law, fitted in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """Print a table with a row for each quantity; rounds of all sizes are interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="ECT")
    parser.add_argument("--rounds", type=int, default=5)
    least = {"images": 8, "side": 16, "channels": 16}
    for name, size in least.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    args = parser.parse_args()
    least = {name: getattr(args, name) for name in least}
    keep_freed_memory()
    runs = {
        (name, factor): stepper(args.method, **{**least, name: factor * least[name]})
        for name in least
        for factor in FACTORS
    }
    for round_ in range(args.rounds + 1):
        for run in runs.values():
            run.step(count=round_ > 0)  # the first steps reserve memory
    weights = [_parameters(runs["channels", factor]) for factor in FACTORS]
    grown = {name: [factor * size for factor in FACTORS] for name, size in least.items()}
    rows = [
        ("images", "images", grown["images"]),
        ("side", "pixels", [side**2 for side in grown["side"]]),
        ("channels", "channels", grown["channels"]),
        ("channels", "parameters", weights),
    ]
    print("| grows | ms per step | exponent |\n|---|---|---|")
    for name, quantity, sizes in rows:
        seconds = [statistics.median(runs[name, factor].seconds) for factor in FACTORS]
        times = ", ".join(f"{1000 * second:.1f}" for second in seconds)
        shown = ", ".join(f"{size:,}" for size in sizes)
        print(f"| {quantity}: {shown} | {times} | {slope(sizes, seconds):.2f} |")


def _parameters(run: Stepper) -> int:
    return sum(parameter.numel() for parameter in run.module.trained_parameters())


if __name__ == "__main__":
    main()
