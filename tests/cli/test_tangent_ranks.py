"""A derivative within DDP's forward pass, and two networks: gradients are those of the whole batch on every rank."""

from pathlib import Path

import pytest
import torch

from cm_lightning.checkpoint import read_checkpoint
from tests.processes import fork


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tangents")
    for ranks in (1, 2):
        fork(str(Path(__file__).with_name("tangent_ranks.py")), str(ranks), str(folder), cwd=folder)
    return folder


#: Networks that a run starts equal: where they differ at its end, one of them was trained.
EQUAL_AT_FIRST = {"lightning": ("backbone", "before"), "dmd2": ("backbone", "critic.network")}


@pytest.mark.parametrize("name", EQUAL_AT_FIRST)
def test_the_generator_of_two_ranks_was_trained(folder, name):
    state = read_checkpoint(folder / f"{name}2.ckpt")["state_dict"]
    own, other = EQUAL_AT_FIRST[name]
    keys = [key.removeprefix(f"{own}.") for key in state if key.startswith(f"{own}.")]
    assert any(not state[f"{own}.{key}"].equal(state[f"{other}.{key}"]) for key in keys)


@pytest.mark.parametrize("name", ["scd", "meanflow", "imf", "alphaflow", "lightning", "dmd2"])
def test_two_ranks_train_what_one_trains_with_the_whole_batch(folder, name):
    one, two = (read_checkpoint(folder / f"{name}{ranks}.ckpt") for ranks in (1, 2))
    assert one["trained_steps"] == two["trained_steps"] == 3
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-4, atol=1e-5)
    learned = [key for key in one["state_dict"] if key.startswith("objective")]
    assert bool(learned) == (name == "scd")  # the weight of sCD is a network of its own
    assert all(one["state_dict"][key].abs().sum() > 0 for key in learned)
