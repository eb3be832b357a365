"""One step of a consistency model against the teacher's trajectory: the seconds for the same images, in one run.

python experiments/benchmarks/sampling.py STUDENT.ckpt TEACHER.ckpt [--nfe 79] [--images 250] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cm_lightning import load_module
from cm_lightning.device import keep_freed_memory
from cm_lightning.modules.base import GenerativeModule


def seconds(module: GenerativeModule, images: int, nfe: int) -> tuple[float, int]:
    """The seconds for drawing images, and the calls of the network."""
    calls = []
    hook = module.backbone.register_forward_hook(lambda *_: calls.append(1))
    start = time.perf_counter()
    module.sample(images, nfe, generator=torch.Generator().manual_seed(0))
    if module.device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    hook.remove()
    return elapsed, len(calls)


def main() -> None:
    """Interleave the two, so that changes in the machine's speed affect both equally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--nfe", type=int, default=79)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    student, teacher = (load_module(path).to(args.device) for path in (args.student, args.teacher))
    seconds(student, args.images, 1)  # memory and threads are ready after this
    ratios = []
    for _ in range(args.rounds):
        (many, calls), (one, single) = seconds(teacher, args.images, args.nfe), seconds(student, args.images, 1)
        ratios.append(many / one)
        print(f"{calls} evaluations {many:.3f} s, {single} evaluation {one:.4f} s: {many / one:.1f} x")
    print(f"median {statistics.median(ratios):.1f} x of the possible {args.nfe}")


if __name__ == "__main__":
    main()
