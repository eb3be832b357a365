"""Inductive moment matching: its levels, weights and kernel, and when its loss is 0."""

import pytest
import torch

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.moment_matching import GroupTimes, MomentMatching, imm_weight, mmd
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.parameterization import AverageVelocity, Map
from cm_lightning.core.path import Linear
from cm_lightning.core.trajectory import Itself, SameNoise
from cm_lightning.errors import ConfigError

END = Clock(1, 1)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "eta_max", "expected"),
    [
        (12, 160.0, [0.490039840637, 0.899607843137]),
        (15, 160.0, [0.498776309349, 0.899951148021]),
        (12, 165.6666666667, [0.489679803979, 0.899593897845]),
    ],
)
def test_q_is_a_step_of_the_noise_to_signal_ratio(k, eta_max, expected):
    found = GroupTimes(k=k, eta_max=eta_max).q(doubles(0.5, 0.9), doubles(0, 0))
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert GroupTimes(k=k, eta_max=eta_max).q(doubles(0.5), doubles(0.4999)).item() == 0.4999


def test_the_weights_are_the_published_ones():
    found = [imm_weight(doubles(0.5, 0.25, 0.9), a, b).tolist() for a, b in ((1, 4), (2, 4), (1, 5))]
    assert found == [
        pytest.approx([3.92805516015, 5.49431327845, 1.35470722509], rel=1e-9),
        pytest.approx([1.96402758008, 4.12073495884, 0.135470722509], rel=1e-9),
        pytest.approx([3.9732285963, 6.03408395887, 1.35490084334], rel=1e-9),
    ]


def test_the_discrepancy_of_two_groups():
    x, y = doubles([[0.1, 0.2], [-0.3, 0.4]]), doubles([[0.0, 0.1], [-0.2, 0.5]])
    assert mmd(x, y, doubles(4.0)).item() == pytest.approx(0.227158892164, rel=1e-9)
    assert mmd(x, x.flip(1), doubles(4.0)).item() == pytest.approx(0, abs=1e-12)


def test_the_samples_of_a_group_share_their_levels():
    t, q, r = GroupTimes(4).draw(10, END, generator=torch.Generator().manual_seed(0))
    for level in (t, q, r):
        assert [len(group.unique()) for group in level.split(4)] == [1, 1, 1]
        assert len(level.unique()) == 3
    assert bool(((r <= q) & (q < t)).all())


@pytest.mark.parametrize("n", [8, 10, 3])
def test_the_loss_is_that_of_its_groups(n):
    own = Map(AverageVelocity(), lambda x, times, c: (3 * x + times[:, :1]).sin())
    objective, x = MomentMatching(GroupTimes(4, k=6), SameNoise(Linear())), torch.randn(n, 2).double()
    loss = objective.loss(own, own, x, None, END, torch.Generator().manual_seed(0))
    (t, q, r), z, x_t = objective.draw(x, None, END, torch.Generator().manual_seed(0))
    here, there = own(x_t, t, r), own(Linear().point(x, z, q), q, r)
    expected = sum(
        len(h) * imm_weight(t)[i * 4] * mmd(h[None], o[None], 1 / (t - r)[i * 4, None])
        for i, (h, o) in enumerate(zip(here.split(4), there.split(4), strict=True))
    )
    assert loss.item() == pytest.approx(expected.item() / n, rel=1e-5)
    assert loss.item() > 1e-6


def test_of_the_exact_map_along_itself_the_loss_is_0_and_it_has_a_gradient():
    oracle, gain = GaussianOracle(0.5, path=Linear()), torch.ones((), dtype=torch.float64, requires_grad=True)
    own = Map(
        AverageVelocity(),
        lambda x, times, c: gain * oracle.average_velocity(x, times[:, 0], times[:, 0] - times[:, 1]),
    )
    x = torch.randn(16, 2).double()
    objective = MomentMatching(GroupTimes(4), Itself(own, Linear()))
    loss = objective.loss(own, own, x, None, END, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0, abs=1e-9)
    MomentMatching(GroupTimes(4, k=5), SameNoise(Linear())).loss(own, own, x, None, END).backward()
    assert gain.grad.isfinite()


@pytest.mark.parametrize("options", [{"low": 0.0}, {"low": 0.994}, {"high": 1.0}, {"size": 0}])
def test_levels_that_cannot_be_drawn_are_refused(options):
    with pytest.raises(ConfigError, match=r"^GroupTimes: "):
        GroupTimes(**options)
