"""One step of a consistency model against the teacher's trajectory: the seconds for the same images, in one run.

python experiments/benchmarks/sampling.py STUDENT.ckpt TEACHER.ckpt [--nfe 79] [--images 1 16 256] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cm_lightning import load_module
from cm_lightning.device import keep_freed_memory
from cm_lightning.modules.base import GenerativeModule


def seconds(module: GenerativeModule, images: int, nfe: int) -> float:
    """The seconds for drawing images, of which the networks must take all evaluations.

    Raises:
        SystemExit: the number of evaluations was another.
    """
    calls = []
    hook = module.backbone.register_forward_hook(lambda *_: calls.append(1))
    start = time.perf_counter()
    module.sample(images, nfe, generator=torch.Generator().manual_seed(0))
    if module.device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    hook.remove()
    if len(calls) != nfe:
        raise SystemExit(f"a sample took {len(calls)} evaluations and not {nfe}: give another --nfe")
    return elapsed


def main() -> None:
    """Interleave the two, so that changes in the machine's speed affect both equally; print medians of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--nfe", type=int, default=79)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    student, teacher = (load_module(path).to(args.device) for path in (args.student, args.teacher))
    print(f"| images | {args.nfe} evaluations, s | one, s | images/s in one | times as fast | least and most |")
    print("|---|---|---|---|---|---|")
    for images in args.images:
        seconds(student, images, 1)  # memory and threads are ready after this
        pairs = [(seconds(teacher, images, args.nfe), seconds(student, images, 1)) for _ in range(args.rounds)]
        many, one = (statistics.median(found) for found in zip(*pairs, strict=True))
        ratios = sorted(long / short for long, short in pairs)
        spread = f"{statistics.median(ratios):.1f} | {ratios[0]:.1f}, {ratios[-1]:.1f}"
        print(f"| {images} | {many:.3f} | {one:.4f} | {images / one:.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
