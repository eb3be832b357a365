"""Latent consistency distillation of a whole network of SDXL's structure on two ranks, copied and split.

Started by test_shard_ranks.py as ``python shard_ranks.py OUTPUT``. One pair of forks is the two ranks of all runs.
"""

import json
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from cm_lightning.callbacks.bad_steps import SkipBadSteps
from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.data.captions import CaptionedMNIST
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.student import WholeUNet
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from cm_lightning.sharding import Sharded
from tests.helpers import few_digits, trainer
from tests.latent.tiny import tiny_sdxl
from tests.processes import two_ranks


class Watch(L.Callback):
    """Notes losses, the norms of gradients, and the part of the network that this rank holds."""

    def __init__(self):
        self.found = {"losses": [], "norms": [], "part": 0.0}

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self._note(trainer, outputs["loss"])

    def on_validation_end(self, trainer, pl_module, *_):
        self._note(trainer, trainer.callback_metrics["val/loss"])

    def _note(self, trainer, loss):
        self.found["losses"].append(float(trainer.strategy.reduce(loss.detach())))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        own = [getattr(p, "to_local", lambda p=p: p)() for p in pl_module.backbone.parameters()]
        self.found["part"] = sum(p.numel() for p in own) / sum(p.numel() for p in pl_module.backbone.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.backbone.parameters()])
        self.found["norms"].append(float(getattr(norm, "full_tensor", lambda: norm)()))


def fit(folder, strategy, steps, start=None):
    L.seed_everything(0)
    module = LatentConsistencyDistillation(
        TextToImageBase(tiny_sdxl(layers=1)), WholeUNet(8), (0.0, 2.0), gradient_checkpointing=True,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4),
    )  # fmt: skip
    watch = Watch()
    run = trainer(
        folder, max_steps=steps, devices=2, strategy=strategy, callbacks=[SaveLast(1), SkipBadSteps(), watch],
        enable_checkpointing=True, limit_val_batches=1, val_check_interval=2, gradient_clip_val=1.0,
        accumulate_grad_batches=2,
    )  # fmt: skip
    run.fit(module, datamodule=CaptionedMNIST(batch_size=4), ckpt_path=start)
    (path,) = Path(folder).rglob("last.ckpt")
    return watch, path


if __name__ == "__main__":
    torch.set_num_threads(1)
    few_digits(pytest.MonkeyPatch())
    with two_ranks():
        copied, copied_path = fit("copied", "ddp", 1)
        split, split_path = fit("split", Sharded(), 1)
        fit("copied_on", "ddp", 2, split_path)
        fit("split_on", Sharded(), 2, copied_path)
    Path(sys.argv[1]).write_text(json.dumps({"copied": copied.found, "split": split.found}))
