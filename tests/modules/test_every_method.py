"""What holds for every method of the suite: two ranks stay alike, and a run is resumed to the bit."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from tests.helpers import trainer
from tests.modules.every_method import METHODS, made, same_batches
from tests.processes import fork


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    fork(str(Path(__file__).with_name("every_method.py")), "found.json", cwd=folder)
    return json.loads((folder / "found.json").read_text())


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
def test_a_run_is_resumed_to_the_bit(method, tmp_path):
    whole, rest = made(method), made(method)
    torch.manual_seed(7)
    trainer(tmp_path, max_steps=4, limit_val_batches=0, callbacks=[SaveAt(2, tmp_path / "half.ckpt")]).fit(
        whole, same_batches()
    )
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(rest, same_batches(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.trained_steps == whole.trained_steps == 4
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)
