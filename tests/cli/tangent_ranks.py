"""As ranks.py, for sCD with a learned weight, MeanFlow, iMF, alpha-Flow, and the methods with two networks.

Started by test_tangent_ranks.py as ``python tangent_ranks.py RANKS FOLDER``.
"""

import sys
from pathlib import Path

import pytest
import torch

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.core.limit_times import OneTime, TwoTimes
from cm_lightning.core.objective import base
from cm_lightning.core.stages import Stage
from cm_lightning.core.turns import Turns
from cm_lightning.data.mnist import MNIST
from cm_lightning.modules import distribution_matching, matching, staged
from cm_lightning.modules.adversarial import AdversarialDistillation
from cm_lightning.modules.continuous import ContinuousConsistencyDistillation
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.improved_mean_flow import ImprovedMeanFlow
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.velocity_chords import AlphaFlow
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
    for name, kind in (("meanflow", MeanFlow), ("imf", ImprovedMeanFlow), ("alphaflow", AlphaFlow)):
        yield name, kind(
            network(1, TwoTimesEmbedding(8)), (1, 28, 28), curriculum=ranks.OfTheWholeBatch(TwoTimes(different=0.5)),
            optimizer=optimizer,
        )  # fmt: skip
    stages = [Stage(4, 2), Stage(2, 1, "conditional")]
    yield "lightning", AdversarialDistillation(network(1), (1, 28, 28), teacher, stages, optimizer=optimizer)
    yield "dmd2", DistributionMatchingDistillation(
        network(1), (1, 28, 28), teacher, [80.0, 2.0], gan_weight=1.0, turns=Turns(2), optimizer=optimizer,
    )  # fmt: skip


def randint_of_the_whole_batch(low, high, size=None, **options):
    """Each rank takes its part of what one rank would draw; a single number is the same for all."""
    low, high, size = (0, low, high) if size is None else (low, high, size)
    generator = torch.Generator().manual_seed(78)
    if size == (1,):
        return randint(low, high, size, generator=generator)
    return ranks.part_of_rank(randint(low, high, (ranks.BATCH,), generator=generator), size[0])


if __name__ == "__main__":
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    for place in (base, staged, matching, distribution_matching):
        pytest.MonkeyPatch().setattr(place, "unit_noise", ranks.noise_of_the_whole_batch)
    randint = torch.randint
    for name, module in modules():
        keep = ranks.Keep(folder / f"{name}{number}.ckpt")
        run = trainer(".", max_steps=3, max_epochs=-1, limit_val_batches=0, callbacks=[keep], **ranks.on_ranks(number))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randint", randint_of_the_whole_batch)
            run.fit(module, MNIST(batch_size=ranks.BATCH))
