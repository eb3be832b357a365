"""An embedding of the noise label that does not fit the network, or a network that does not fit the method."""

import pytest
import torch
from torch import nn

from cm_lightning.backbones.embedding import (
    AngleEmbedding,
    FourierEmbedding,
    JumpEmbedding,
    PositionalEmbedding,
    SinusoidEmbedding,
    TwoTimesEmbedding,
    labels_taken,
)
from cm_lightning.core.path import TrigFlow
from cm_lightning.errors import ConfigError
from cm_lightning.modules.continuous import ContinuousConsistencyTraining
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from tests.backbones.zoo import NETWORKS, SHAPE

#: The width that each network at its tiny size takes.
WIDTHS = {"ADM": 8, "DDPMpp": 8, "DiT": 256, "EDM2": 8, "NCSNpp": 16, "ResidualMLP": 16, "UNet": 8}
one_time = pytest.mark.parametrize("method", [ConsistencyTraining, ContinuousConsistencyTraining, DiffusionModule])


class Flat(nn.Module):
    """The label itself: it does not have a width."""

    def forward(self, label):
        return label


class Sum(nn.Module):
    """A map of one label or two."""

    def forward(self, label):
        return label.reshape(len(label), -1).sum(1, keepdim=True).expand(-1, 8)


def test_the_table_names_every_network_with_the_option():
    assert set(WIDTHS) == set(NETWORKS) - {"DiffusersUNet"}


@pytest.mark.parametrize("make", [PositionalEmbedding, FourierEmbedding, SinusoidEmbedding, TwoTimesEmbedding])
@pytest.mark.parametrize("name", WIDTHS)
def test_another_width_is_refused_with_the_width_to_set(name, make):
    line = f"{make.__name__} gives 32 values for each sample, but this network takes {WIDTHS[name]}: set the width"
    with pytest.raises(ConfigError, match=line):
        NETWORKS[name](noise_embedding=make(32))


@pytest.mark.parametrize("embedding", [nn.Linear(7, 8), nn.Embedding(4, 8)])
def test_an_embedding_that_takes_no_labels_is_refused(embedding):
    with pytest.raises(ConfigError, match=rf"noise_embedding must map .* to \(B, 8\): {type(embedding).__name__} does"):
        NETWORKS["UNet"](noise_embedding=embedding)


def test_an_embedding_without_a_width_is_refused():
    with pytest.raises(ConfigError, match="Flat gives 2 values for each sample, but this network takes 8"):
        NETWORKS["UNet"](noise_embedding=Flat())


@one_time
@pytest.mark.parametrize("name", WIDTHS)
def test_two_times_are_refused_where_one_is_given(name, method):
    network = NETWORKS[name](noise_embedding=TwoTimesEmbedding(WIDTHS[name]))
    with pytest.raises(ConfigError, match=rf"{method.__name__} gives .* 1 noise .* takes 2: .* SinusoidEmbedding"):
        method(network, SHAPE)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_time_is_refused_where_two_are_given(name):
    with pytest.raises(ConfigError, match=r"MeanFlow gives .* 2 noise .* takes 1: .* TwoTimesEmbedding"):
        MeanFlow(NETWORKS[name](), SHAPE)


@pytest.mark.parametrize("name", WIDTHS)
def test_what_fits_is_taken_and_runs(name):
    MeanFlow(NETWORKS[name](noise_embedding=TwoTimesEmbedding(WIDTHS[name])), SHAPE).forward_one()
    DiffusionModule(NETWORKS[name](noise_embedding=SinusoidEmbedding(WIDTHS[name])), SHAPE).forward_one()


def test_an_embedding_of_either_kind_and_a_network_that_says_nothing_are_taken():
    for method in (MeanFlow, DiffusionModule):
        method(NETWORKS["UNet"](noise_embedding=Sum()), SHAPE).forward_one()
        method(nn.Identity(), SHAPE)


def test_the_trial_does_not_change_the_numbers_that_are_drawn_after_it():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert labels_taken(nn.Sequential(SinusoidEmbedding(8), nn.Dropout(0.5)), 8) == [1]
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_the_angle_of_a_noise_level_is_embedded_as_trigflow_s_time():
    sigma = torch.tensor([0.002, 0.5, 80.0])
    found = AngleEmbedding(8, 0.5, 4.0)(0.25 * sigma.log())
    torch.testing.assert_close(found, SinusoidEmbedding(8, 0.5, 4.0)((sigma / 0.5).atan()))
    torch.testing.assert_close(TrigFlow(0.5).level(sigma), (sigma / 0.5).atan())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (PositionalEmbedding(16), "PositionalEmbedding gives 16 values .* takes 8"),
        (TwoTimesEmbedding(8), "start must take a single label"),
    ],
)
def test_the_embedding_of_a_jump_starts_as_one_of_its_width(start, message):
    with pytest.raises(ConfigError, match=message):
        JumpEmbedding(8, start)
    assert JumpEmbedding(8, PositionalEmbedding(8))(torch.ones(3, 2)).shape == (3, 8)
