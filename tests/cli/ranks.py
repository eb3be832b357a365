"""A run whose noise is a function of the image's place in the whole batch: what it trains does not depend on the ranks.

Started by test_ddp.py as ``python ranks.py RANKS OUTPUT``. The ranks are forks, because what is under test is not how
they start; test_ddp.py has two runs by the command line for that.
"""

import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import distributed

from cm_lightning.backbones.unet import UNet
from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.quality import Quality
from cm_lightning.core.curriculum import Curriculum, GridCurriculum, ProgressiveLevels, Times
from cm_lightning.core.objective import base
from cm_lightning.core.schedule import HoldThenCosine
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.data.mnist import MNIST
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from tests.helpers import few_digits, trainer

BATCH = 16


def part_of_rank(whole, n):
    """The part of the whole batch that this rank trains."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return whole[rank * n : (rank + 1) * n]


def on_ranks(ranks):
    """Options of a Trainer on some ranks."""
    return {"strategy": "ddp_fork", "devices": ranks} if ranks > 1 else {}


def network(seed):
    torch.manual_seed(seed)
    unet = UNet(1, 8, (1,), 1, (), num_classes=10, patch=4)
    torch.nn.init.normal_(unet.head[2].weight, std=0.2)
    return unet


class OfTheWholeBatch(Curriculum):
    """Each rank takes its part of the pairs that one rank would draw for the whole batch."""

    def __init__(self, inner=None):
        self.inner = inner or GridCurriculum(ProgressiveLevels(4, 8))

    def draw(self, n, clock, device="cpu", generator=None):
        if generator is not None:  # validation
            return self.inner.draw(n, clock, device, generator)
        whole = self.inner.draw(BATCH, clock, device, torch.Generator().manual_seed(clock.step))
        return Times(*(part_of_rank(part, n) for part in whole))

    def progress(self, clock):
        return self.inner.progress(clock)


def noise_of_the_whole_batch(shape, generator=None, device="cpu", dtype=torch.float32):
    if generator is not None:
        return torch.randn(*shape, generator=generator)
    whole = torch.randn(BATCH, *shape[1:], generator=torch.Generator().manual_seed(77))
    return part_of_rank(whole, shape[0])


class Watch(L.Callback):
    """Checks that the ranks are equal in everything that must be, and differ in their noise."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        noise = trainer.strategy.all_gather(torch.rand(3)).reshape(trainer.world_size, -1)
        assert len(noise.unique(dim=0)) == trainer.world_size
        parts = [pl_module.backbone, pl_module.target, pl_module.teacher.backbone]
        held = torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])
        schedules = torch.tensor([*pl_module.progress(pl_module.clock).values()])
        for tensor in (held, schedules):
            first, *others = trainer.strategy.all_gather(tensor).reshape(trainer.world_size, -1)
            assert all(torch.equal(first, other) for other in others)


class Keep(L.Callback):
    """Saves the end of the training, and the scores, where the ranks still are."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save(scores, f"{self.path}.scores")

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


if __name__ == "__main__":
    ranks, output = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(base, "unit_noise", noise_of_the_whole_batch)
    teacher = DiffusionModule(network(2), (1, 28, 28))
    module = ConsistencyDistillation(
        network(1), (1, 28, 28), teacher, start_from_teacher=False, curriculum=OfTheWholeBatch(),
        target_rate=ConstantRate(0.5), optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        lr_scheduler=HoldThenCosine(rise=2),
    )  # fmt: skip
    quality = Quality(nfe=[1], num_samples=31, batch_size=10, cache=f"cache{ranks}")  # 31: uneven shares
    few_digits(patch)
    L.seed_everything(0)
    run = trainer(
        ".", max_steps=3, max_epochs=-1, val_check_interval=3, check_val_every_n_epoch=None, limit_val_batches=1,
        callbacks=[EMA(0.9), Watch(), quality, Keep(output)], **on_ranks(ranks),
    )  # fmt: skip
    run.fit(module, MNIST(batch_size=BATCH))
