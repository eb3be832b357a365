"""Every method of the suite for a few steps on two ranks.

Started by test_every_method.py as ``python every_method.py OUTPUT``. One pair of forks is the two ranks of all methods.
"""

import json
import runpy
import sys
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import cm_lightning as C
from tests.helpers import images, trainer
from tests.processes import ROOT, two_ranks

SHAPE = (1, 8, 8)
#: The checkpoint that second stages start from, in the working directory.
FIRST = "first.ckpt"


def network(noise_embedding=None):
    """A network whose output is not zero."""
    net = C.UNet(1, 8, (1,), 1, (), num_classes=3, noise_embedding=noise_embedding)
    torch.nn.init.normal_(net.head[2].weight, std=0.2)
    return net


def of_the_benchmark(make):
    """The method, made with this network."""
    return lambda: make(lambda two_times: network(C.TwoTimesEmbedding(8) if two_times else None), SHAPE)


#: The methods of the benchmark: a function of two times -> a network, and a shape, -> a module.
OF_THE_BENCHMARK = runpy.run_path(str(ROOT / "experiments/benchmarks/steps.py"))["METHODS"]
METHODS = {name: of_the_benchmark(make) for name, make in OF_THE_BENCHMARK.items()} | {
    "TCM": lambda: C.TruncatedConsistencyTraining(network(), SHAPE, FIRST),
    "progressive": lambda: C.ProgressiveDistillation(network(), SHAPE, FIRST, steps=4, stages=2),
    "iMF, guidance as an input": lambda: C.GuidedMeanFlow(network(C.GuidedTimesEmbedding(8)), SHAPE),
}


def write_first(folder):
    """Write the checkpoint that second stages start from."""
    t = trainer(folder, max_steps=1, limit_val_batches=0)
    t.fit(C.DiffusionModule(network(), SHAPE), batches())
    t.save_checkpoint(Path(folder, FIRST))


def made(method):
    """The module of a method."""
    torch.manual_seed(1)
    return METHODS[method]()


def batches():
    """Images of three classes, other ones on each rank."""
    return images(SHAPE, n=16, batch_size=4, classes=3)


def same_batches():
    """One batch, many times, so that only the method's own state tells one step from another."""
    (x, labels), *_ = images(SHAPE, n=4, batch_size=4, classes=3)
    return DataLoader(TensorDataset(x.repeat(8, 1, 1, 1), labels.repeat(8)), batch_size=4)


class Compare(L.Callback):
    """Notes whether the ranks saw other images, and hold the same weights, which moved."""

    def __init__(self):
        self.found = {}

    def on_train_start(self, trainer, pl_module):
        self.start = weights(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, *_):
        self.seen = batch[0].flatten()

    def on_train_end(self, trainer, pl_module):
        (first, second), seen = trainer.strategy.all_gather(weights(pl_module)), trainer.strategy.all_gather(self.seen)
        self.found = {
            "equal": torch.equal(first, second),
            "moved": not torch.equal(first, self.start),
            "other images": not torch.equal(seen[0], seen[1]),
        }


def weights(module):
    """All that a module trains, in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


def found(method):
    """What a rank finds for a method."""
    compare = Compare()
    trainer(".", max_steps=2, limit_val_batches=0, devices=2, strategy="ddp", callbacks=[compare]).fit(
        made(method), batches()
    )
    return compare.found


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_first(".")
    with two_ranks():
        names = {method: found(method) for method in METHODS}
    Path(sys.argv[1]).write_text(json.dumps(names))
