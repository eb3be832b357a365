"""Time and memory of a training step of every method on the same network and batch, as a Markdown table.

    python experiments/benchmarks/steps.py                                    this machine's CPU
    python experiments/benchmarks/steps.py --device cuda --precision bfloat16 --channels 128 --side 64 --images 64
    python experiments/benchmarks/steps.py --compile --only EDM ECT CD        also the step of compiled networks

A step is loss, gradients and Adam. The first ratio is that to EDM's step, which is the cheapest: one pass of the
network and its gradients. The second is that to the method's own floor: EDM's step for each pass that is
differentiated, and a pass without gradients for each other one, as counted in one step. A derivative in forward mode
counts as one pass; the passes of discriminators through half of the network are not counted. Rounds of all methods
are interleaved, so that changes in the speed of the machine affect all equally.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import cm_lightning as C
from cm_lightning.callbacks.compiled import Compile
from cm_lightning.core.stages import Stage
from cm_lightning.device import keep_freed_memory
from cm_lightning.modules.base import GenerativeModule

#: Whether the network takes two times -> a class-conditional network.
MakeNetwork = Callable[[bool], nn.Module]
Shape = tuple[int, int, int]


def _teacher(network: MakeNetwork, shape: Shape) -> C.DiffusionModule:
    return C.DiffusionModule(network(False), shape, label_dropout=0.1)


METHODS: Mapping[str, Callable[[MakeNetwork, Shape], GenerativeModule]] = {
    "EDM": _teacher,
    "ECT": lambda net, shape: C.ConsistencyTraining(net(False), shape),
    "iCT": lambda net, shape: C.ConsistencyTraining(net(False), shape, C.GridCurriculum(C.DoublingLevels())),
    "CT with a target network": lambda net, shape: C.ConsistencyTraining(
        net(False), shape, target_rate=C.ConstantRate(0.9)
    ),
    "guided CT": lambda net, shape: C.GuidedConsistencyTraining(net(False), shape),
    "CD": lambda net, shape: C.ConsistencyDistillation(net(False), shape, _teacher(net, shape)),
    "CTM": lambda net, shape: (
        C.TrajectoryDistillation(  # with one step of the teacher; each further one takes two passes
            net(True), shape, _teacher(net, shape), curriculum=C.JumpTimes(most=1)
        )
    ),
    "sCT": lambda net, shape: C.ContinuousConsistencyTraining(net(False), shape),
    "sCD": lambda net, shape: C.ContinuousConsistencyDistillation(net(False), shape, _teacher(net, shape)),
    "MeanFlow": lambda net, shape: C.MeanFlow(net(True), shape),
    "iMF": lambda net, shape: C.ImprovedMeanFlow(net(True), shape),
    "alpha-Flow": lambda net, shape: C.AlphaFlow(net(True), shape),
    "SoFlow": lambda net, shape: C.SoFlow(net(True), shape),
    "LSD": lambda net, shape: C.LagrangianSelfDistillation(net(True), shape),
    "ESD": lambda net, shape: C.EulerianSelfDistillation(net(True), shape),
    "PSD": lambda net, shape: C.ProgressiveSelfDistillation(net(True), shape),
    "shortcut": lambda net, shape: C.ShortcutModel(net(True), shape),
    "IMM": lambda net, shape: C.InductiveMomentMatching(net(True), shape),
    "Lightning": lambda net, shape: C.AdversarialDistillation(
        net(False), shape, _teacher(net, shape), [Stage(8, 4, "conditional")]
    ),
    "DMD2": lambda net, shape: C.DistributionMatchingDistillation(net(False), shape, _teacher(net, shape)),
}


class Passes(NamedTuple):
    """The passes of networks on a batch in one step; a pass on a part of the batch counts as that part."""

    differentiated: float
    other: float


class Stepper:
    """A method that takes steps on one batch, with networks that a backend compiles if there is one."""

    def __init__(
        self, make: Callable[[], GenerativeModule], shape: Shape, args: argparse.Namespace, backend: str | None = None
    ) -> None:
        torch.manual_seed(0)
        self.module, self.device = make().to(args.device), torch.device(args.device)
        if hasattr(self.module, "hold_teacher"):
            self.module.setup("fit")  # this starts the student from the teacher
        self.module.train()
        self.compiled = Compile(backend) if backend else None
        if self.compiled:
            self.compiled.prepare(self.module)
            self.compiled.begin_step()
        self.precision = getattr(torch, args.precision)
        self.optimizer = torch.optim.Adam(self.module.trained_parameters(), lr=1e-4)
        self.x = torch.randn(args.images, *shape, device=self.device).clamp(-1, 1)
        self.labels = torch.randint(10, (args.images,), device=self.device)
        self.seconds: list[float] = []
        self.forward_seconds: list[float] = []
        self.peak = 0.0
        self.loss = float("nan")

    def step(self, count: bool = True) -> None:
        """Take a step."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        with self.autocast():
            loss = self.module.loss(self.x, self.labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss = float(loss.detach())  # this waits for the device
        if on_gpu:
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        if count:
            self.seconds.append(time.perf_counter() - start)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the passes."""
        low = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision) if low else nullcontext()

    def passes(self) -> Passes:
        """Count the passes in a step."""
        found = [0.0, 0.0]

        def count(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(module, C.UNet):
                found[not output.requires_grad] += len(output) / len(self.x)

        hook = register_module_forward_hook(count)
        self.step(count=False)
        hook.remove()
        return Passes(*found)

    @torch.no_grad()
    def forward(self) -> None:
        """Time a pass of the network without gradients."""
        levels = torch.zeros(len(self.x), device=self.device)
        start = time.perf_counter()
        with self.autocast():
            float(self.module.backbone(self.x, levels, self.labels).sum())  # this waits for the device
        self.forward_seconds.append(time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--side", type=int, default=32, help="pixels of an image along a side")
    parser.add_argument("--images", type=int, default=16, help="number of images in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="measure compiled steps too")
    args = parser.parse_args()
    args.only = list(dict.fromkeys(["EDM", *args.only]))  # the others are compared with it
    keep_freed_memory()
    shape = (3, args.side, args.side)

    def network(two_times: bool) -> nn.Module:
        embedding = C.TwoTimesEmbedding(args.channels) if two_times else None
        return C.UNet(3, args.channels, num_classes=10, noise_embedding=embedding)

    backends = [None, args.compile] if args.compile else [None]
    steppers = {
        (name, backend): Stepper(lambda: METHODS[name](network, shape), shape, args, backend)  # noqa: B023
        for name in args.only
        for backend in backends
    }
    for stepper in steppers.values():
        for _ in range(2):  # the first steps reserve memory and compile
            stepper.step(count=False)
    passes = {name: steppers[name, None].passes() for name in args.only}
    edm = steppers["EDM", None]
    edm.forward()
    for _ in range(args.rounds):
        edm.forward()
        for stepper in steppers.values():
            stepper.step()
    times = {key: statistics.median(stepper.seconds) for key, stepper in steppers.items()}
    least, forward = times["EDM", None], statistics.median(edm.forward_seconds[1:])
    print(
        "| method | ms per step | to EDM | to its floor | peak GiB | loss |"
        + (" compiled, ms | to plain |" if args.compile else "")
    )
    print("|---|---|---|---|---|---|" + ("---|---|" if args.compile else ""))
    for name in args.only:
        stepper, plain = steppers[name, None], times[name, None]
        floor = passes[name].differentiated * least + passes[name].other * forward
        peak = f"{stepper.peak:.2f}" if stepper.peak else ""
        row = (
            f"| {name} | {1000 * plain:.1f} | {plain / least:.2f} | {plain / floor:.2f} | {peak} | {stepper.loss:.4g} |"
        )
        if args.compile:
            compiled = times[name, args.compile]
            row += f" {1000 * compiled:.1f} | {compiled / plain:.2f} |"
        print(row)


if __name__ == "__main__":
    main()
