"""Latent consistency distillation, whole and by an adapter, on some ranks; started by test_latent_ranks.py as
``python latent_ranks.py RANKS OUTPUT STUDENT [KILL_AT | CHECKPOINT]``.
"""

import sys

import lightning as L
import pytest
import torch

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.export import Export
from cm_lightning.callbacks.prompt_grid import PromptGrid
from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.data.captions import CaptionedMNIST
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.student import LoRA, WholeUNet
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from tests.helpers import KillAt, few_digits, trainer
from tests.latent.tiny import tiny_sd


class Watch(L.Callback):
    """Checks that the trained, target and frozen weights are equal on all ranks."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        parts = [pl_module.backbone, pl_module.target, pl_module.base.unet]
        held = torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])
        first, *others = trainer.strategy.all_gather(held).reshape(trainer.world_size, -1)
        assert all(torch.equal(first, other) for other in others)


if __name__ == "__main__":
    ranks, output, student, *more = sys.argv[1:]
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    few_digits(patch, 40)
    patch.setattr("cm_lightning.callbacks.prompt_grid._SHOWN", 4)
    L.seed_everything(0)
    module = LatentConsistencyDistillation(
        TextToImageBase(tiny_sd()), {"whole": WholeUNet, "lora": LoRA}[student](8), (0.0, 2.0),
        target_rate=ConstantRate(0.5), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )  # fmt: skip
    stop = [KillAt(int(more[0]))] if more and more[0].isdigit() else []
    run = trainer(
        output, max_steps=6, devices=int(ranks), strategy="ddp_fork" if ranks != "1" else "auto",
        callbacks=[EMA(0.5), SaveLast(2), Watch(), Export(), PromptGrid([1], num_samples=2), *stop],
        enable_checkpointing=True, val_check_interval=3, check_val_every_n_epoch=None, limit_val_batches=1,
    )  # fmt: skip
    run.fit(module, datamodule=CaptionedMNIST(batch_size=4), ckpt_path=more[0] if more and not stop else None)
