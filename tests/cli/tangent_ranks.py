"""As ranks.py, for the methods that take a derivative: sCD with a learned weight, and MeanFlow.

Started by test_tangent_ranks.py as ``python tangent_ranks.py RANKS FOLDER``.
"""

import sys
from pathlib import Path

import torch

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.core import objective
from cm_lightning.core.limit_times import OneTime, TwoTimes
from cm_lightning.data.mnist import MNIST
from cm_lightning.modules.continuous import ContinuousConsistencyDistillation
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.mean_flow import MeanFlow
from tests.cli import ranks
from tests.helpers import trainer


def network(seed, noise_embedding=None):
    torch.manual_seed(seed)
    unet = UNet(1, 8, (1,), 1, (), num_classes=10, patch=4, noise_embedding=noise_embedding)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return unet


def modules():
    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    teacher = DiffusionModule(network(2), (1, 28, 28))
    yield "scd", ContinuousConsistencyDistillation(
        network(1), (1, 28, 28), teacher, start_from_teacher=False, curriculum=ranks.OfTheWholeBatch(OneTime()),
        optimizer=optimizer,
    )  # fmt: skip
    yield "meanflow", MeanFlow(
        network(1, TwoTimesEmbedding(8)), (1, 28, 28), curriculum=ranks.OfTheWholeBatch(TwoTimes(different=0.5)),
        optimizer=optimizer,
    )  # fmt: skip


if __name__ == "__main__":
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    objective.unit_noise = ranks.noise_of_the_whole_batch
    for name, module in modules():
        keep = ranks.Keep(folder / f"{name}{number}.ckpt")
        run = trainer(".", max_steps=3, max_epochs=-1, limit_val_batches=0, callbacks=[keep], **ranks.on_ranks(number))
        run.fit(module, MNIST(batch_size=ranks.BATCH))
