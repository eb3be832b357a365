"""Size, work and speed of the zoo's networks, as a Markdown table: one thread of this machine's CPU.

python experiments/benchmarks/backbones.py [--only DDPMpp.cifar10 ...] [--rounds 3]

GFLOPs are those of a forward pass of one image, where a multiplication and an addition count as two. A step is a
forward pass, a backward pass and RAdam on one image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cm_lightning import ADM, EDM2, DDPMpp, DiT, NCSNpp, UNet

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "DDPMpp.cifar10": (DDPMpp.cifar10, (3, 32, 32)),
    "NCSNpp.cifar10": (NCSNpp.cifar10, (3, 32, 32)),
    "DDPMpp.ffhq64": (DDPMpp.ffhq64, (3, 64, 64)),
    "ADM.imagenet64": (ADM.imagenet64, (3, 64, 64)),
    "ADM.lsun256": (ADM.lsun256, (3, 256, 256)),
    "EDM2.imagenet S": (EDM2.imagenet, (3, 64, 64)),
    "DiT.small": (lambda: DiT.small(image_channels=4, num_classes=1000), (4, 32, 32)),
    "DiT.xlarge": (lambda: DiT.xlarge(image_channels=4, num_classes=1000), (4, 32, 32)),
    "UNet()": (UNet, (3, 32, 32)),
}


def gflops(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> tuple[int, float]:
    """Count the parameters, and the operations of a forward pass, without computing anything."""
    with torch.device("meta"):
        network = make().eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.zeros(1, *shape), torch.zeros(1))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 1e9


def per_second(work: Callable[[], object], rounds: int) -> float:
    """The median time, after a first run that is not counted."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times[1:])


def main() -> None:
    """Measure the networks one after another, so that only one is in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="networks to time; the others are only counted")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | parameters | GFLOPs | images/s forward | images/s training |\n|---|---|---|---|---|")
    for name, (make, shape) in NETWORKS.items():
        count, work = gflops(make, shape)
        speeds = timed(make, shape, args.rounds) if name in args.only else ("", "")
        print(f"| {name} | {count:,} | {work:.1f} | {speeds[0]} | {speeds[1]} |", flush=True)


def timed(make: Callable[[], nn.Module], shape: tuple[int, int, int], rounds: int) -> tuple[str, str]:
    """Images per second of a forward pass and of a training step."""
    network = make()
    optimizer = torch.optim.RAdam(network.parameters())
    x, noise = torch.randn(1, *shape), torch.zeros(1)

    def step() -> None:
        optimizer.zero_grad()
        network(x, noise).square().mean().backward()
        optimizer.step()

    with torch.no_grad():
        forward = per_second(lambda: network(x, noise), rounds)
    return f"{forward:.2g}", f"{per_second(step, rounds):.2g}"


if __name__ == "__main__":
    main()
