"""Steps that are left out because their gradients are not finite."""

import csv
import sys

import pytest
import torch

from cm_lightning.callbacks.bad_steps import SkipBadSteps
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.data.toy import Toy
from cm_lightning.errors import ConfigError, NonFiniteLossError
from tests.helpers import module, trainer
from tests.processes import CONF


class Weights(SkipBadSteps):
    """Notes the weights and the optimizer's state after each step."""

    def __init__(self, limit=10):
        super().__init__(limit)
        self.after = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        moments = [m["exp_avg"].clone() for m in trainer.optimizers[0].state.values()]
        self.after.append([p.detach().clone() for p in pl_module.backbone.parameters()] + moments)


def fit(tmp_path, bad, limit=10, steps=8, **options):
    toy, seen = Toy(num_points=60, batch_size=10), Weights(limit)
    toy.split("train").samples[bad] = float("nan")
    m = module(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    trainer(tmp_path, callbacks=[seen], max_steps=steps, limit_val_batches=0, **options).fit(m, toy)
    return m, seen


def images(step):
    toy = Toy(num_points=60, batch_size=10)
    toy.trainer = type("T", (), {"world_size": 1, "accumulate_grad_batches": 1})
    return toy.images_of_step(step)


def test_a_bad_step_changes_neither_weights_nor_moments_and_is_told(tmp_path):
    image = images(2)[0]
    bad = [step for step in range(8) if image in images(step)]
    with pytest.warns(UserWarning, match="is left out") as told:
        m, seen = fit(tmp_path, image)
    assert seen.skipped == len(bad) == 2
    for step in range(1, 8):
        before, after = seen.after[step - 1], seen.after[step]
        assert all(map(torch.equal, before, after)) == (step in bad)
    assert all(p.isfinite().all() for p in m.parameters())
    said = [str(w.message) for w in told if "left out" in str(w.message)]
    assert said == [
        f"step {step} is left out because its gradients are not finite ({count} so far): training images are not "
        f"finite, numbers {image}: repair or remove them"
        for count, step in enumerate(bad, 1)
    ]
    assert not m.skips_bad_steps


@pytest.mark.parametrize("limit", [1, 3])
def test_too_many_in_a_row_end_the_run(tmp_path, limit):
    bad = sorted({*range(60)} - {*images(0)})  # a first batch that is not finite is refused
    with pytest.warns(UserWarning, match="left out") as told, pytest.raises(NonFiniteLossError, match="since step 1,"):
        fit(tmp_path, bad, limit)
    assert len([w for w in told if "left out" in str(w.message)]) == limit
    with pytest.raises(ConfigError, match="limit must be"):
        SkipBadSteps(0)


def test_their_number_is_logged_saved_and_continues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    seen, image = [], images(1)[0]

    def bad_first(self, split):
        data = split_of(self, split)
        if split == "train" and not seen:
            seen.append(data.samples[image].fill_(float("nan")))
        return data

    split_of = Toy.split
    monkeypatch.setattr(Toy, "split", bad_first)
    run = ["fit", f"--config={CONF}/toy.yaml", "--callbacks.bad_steps={limit: 2}", "--data.num_points=60",
           "--data.batch_size=10", "--trainer.max_steps=4", "--trainer.val_check_interval=4"]  # fmt: skip
    with pytest.warns(UserWarning, match="is left out"):
        main(run)
    with open("runs/toy/version_0/metrics.csv") as file:
        rows = [row["train/skipped_steps"] for row in csv.DictReader(file) if row["train/skipped_steps"]]
    assert rows == ["1.0", "1.0"]
    (state,) = [s for name, s in read_checkpoint("runs/toy")["callbacks"].items() if "SkipBadSteps" in name]
    assert state == {"skipped": 1}
