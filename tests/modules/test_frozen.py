import copy

import pytest
import torch
from torch import nn

from cm_lightning.errors import CheckpointError
from cm_lightning.modules.frozen import Frozen


class Owner(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.own, self.frozen = nn.Linear(2, 2), frozen


def test_it_belongs_to_nothing_but_moves_with_its_owner():
    network = nn.Linear(3, 3)
    owner = Owner(Frozen(network, follows_dtype=True)).train()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert set(owner.state_dict()) == {"own.weight", "own.bias"}
    assert {id(p) for p in owner.parameters()} == {id(p) for p in owner.own.parameters()}
    owner.double()
    assert network.weight.dtype == torch.float64
    assert Owner(Frozen(nn.Linear(1, 1))).double().frozen.network.weight.dtype == torch.float32
    assert owner.frozen(torch.zeros(1, 3, dtype=torch.float64)).shape == (1, 3)
    other = copy.deepcopy(owner)
    assert other.frozen.network is not network
    owner.load_state_dict(other.state_dict())


def test_a_file_is_read_once_when_it_is_asked_for_and_draws_nothing_of_the_training_s():
    read = []

    def load():
        read.append(1)
        return nn.Linear(4, 4)

    like = nn.Linear(4, 4)
    owner = Owner(Frozen(load=load, like=like, follows_dtype=True)).double()
    assert owner.frozen.outline() is like
    assert not read
    state = torch.get_rng_state()
    network = owner.frozen.network
    assert torch.equal(torch.get_rng_state(), state)
    assert network.weight.dtype == torch.float64
    assert owner.frozen.network is network
    assert read == [1]


def test_what_loading_raises_is_raised():
    def load():
        raise CheckpointError("no file: fetch it")

    with pytest.raises(CheckpointError, match="fetch it"):
        _ = Owner(Frozen(load=load)).frozen.network
