"""Distillation in latents on some ranks; started by test_latent_ranks.py as
``python latent_ranks.py RANKS OUTPUT STUDENT [KILL_AT | CHECKPOINT]``.

The student is ``whole`` or ``lora`` for latent consistency, or ``stages`` for SDXL-Lightning, which trains the one and
then the other.
"""

import sys

import lightning as L
import pytest
import torch
from torch import nn

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.export import Export
from cm_lightning.callbacks.prompt_grid import PromptGrid
from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.core.stages import Stage
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.data.captions import CaptionedMNIST
from cm_lightning.latent.adapted import AdaptedUNet
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.student import LoRA, WholeUNet
from cm_lightning.modules.latent_adversarial import LatentAdversarialDistillation
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from tests.helpers import KillAt, few_digits, trainer
from tests.latent.tiny import tiny_sd


class Watch(L.Callback):
    """Checks that the trained, following and frozen weights are equal on all ranks, and which of them a stage moves."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.stage = pl_module.stages.at(pl_module.clock) if hasattr(pl_module, "stages") else None
        self.before = {name: p.clone() for name, p in pl_module.backbone.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, *_):
        copies = [follower.network for follower in pl_module.followers]
        parts = [pl_module.backbone, *copies, pl_module.base.unet, getattr(pl_module, "critic", nn.Module())]
        held = torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])
        first, *others = trainer.strategy.all_gather(held).reshape(trainer.world_size, -1)
        assert all(torch.equal(first, other) for other in others)
        moved = {name for name, p in pl_module.backbone.named_parameters() if not p.equal(self.before[name])}
        assert moved
        if self.stage and not pl_module.stages.begins(pl_module.clock):  # where a stage begins, the LoRA was merged
            assert {".lora_" in name for name in moved} == {self.stage.trains == "lora"}


def consistency(student):
    return LatentConsistencyDistillation(
        TextToImageBase(tiny_sd()), student, (0.0, 2.0), target_rate=ConstantRate(0.5),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )  # fmt: skip


def lightning():
    stages = [Stage(4, 2, trains="lora"), Stage(4, 2, "conditional", trains="whole")]
    return LatentAdversarialDistillation(
        TextToImageBase(tiny_sd()), AdaptedUNet(8, ["to_q", "conv1"]), stages,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    )  # fmt: skip


MODULES = {"whole": lambda: consistency(WholeUNet(8)), "lora": lambda: consistency(LoRA(8)), "stages": lightning}


if __name__ == "__main__":
    ranks, output, student, *more = sys.argv[1:]
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    few_digits(patch, 40)
    patch.setattr("cm_lightning.callbacks.prompt_grid._SHOWN", 4)
    L.seed_everything(0)
    stop = [KillAt(int(more[0]))] if more and more[0].isdigit() else []
    run = trainer(
        output, max_steps=6, devices=int(ranks), strategy="ddp_fork" if ranks != "1" else "auto",
        callbacks=[EMA(0.5), SaveLast(2), Watch(), Export(), PromptGrid([1], num_samples=2), *stop],
        enable_checkpointing=True, val_check_interval=3, check_val_every_n_epoch=None, limit_val_batches=1,
    )  # fmt: skip
    start = more[0] if more and not stop else None
    run.fit(MODULES[student](), datamodule=CaptionedMNIST(batch_size=4), ckpt_path=start)
