"""What holds for every method of the suite: two ranks stay alike, and a run is resumed to the bit."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from cm_lightning.core.objective import Objective
from tests.helpers import trainer
from tests.modules.every_method import METHODS, made, same_batches, write_first
from tests.processes import fork

#: A diffusion model's loss is weighted by the noise level alone; that of a student with a critic comes from the critic.
WITHOUT_OBJECTIVE = {"EDM", "Lightning", "DMD2"}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    fork(str(Path(__file__).with_name("every_method.py")), "found.json", cwd=folder)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder with the checkpoint that second stages start from."""
    folder = tmp_path_factory.mktemp("first")
    write_first(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_learn_from_other_images_and_stay_alike(method, on_two_ranks):
    assert on_two_ranks[method] == {"equal": True, "moved": True, "other images": True}


class SaveAt(L.Callback):
    """Saves a checkpoint after a step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, *_):
        if pl_module.trained_steps == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_resumed_to_the_bit(method, first, tmp_path, monkeypatch):
    monkeypatch.chdir(first)
    whole, rest = made(method), made(method)
    torch.manual_seed(7)
    trainer(tmp_path, max_steps=4, limit_val_batches=0, callbacks=[SaveAt(2, tmp_path / "half.ckpt")]).fit(
        whole, same_batches()
    )
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(rest, same_batches(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.trained_steps == whole.trained_steps == 4
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_the_core_shows_its_raw_error(method):
    m, (x, labels) = made(method), next(iter(same_batches()))
    has_one = isinstance(getattr(m, "objective", None), Objective)
    assert has_one == (method not in WITHOUT_OBJECTIVE)
    if not has_one:
        return
    loss = m.train().loss(x.repeat(4, 1, 1, 1), labels.repeat(4))  # as many as leave samples for both parts of a batch
    assert loss.requires_grad
    assert not m.shown()["raw"].requires_grad
    assert m.shown()["raw"].isfinite()
