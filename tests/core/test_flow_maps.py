"""Chords of average velocities, self-distillation by derivatives, flow matching, and the times that they draw."""

import math

import pytest
import torch
from torch import nn

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.core.curriculum import Clock, Curriculum, Times
from cm_lightning.core.dyadic_times import DyadicTimes, EvenSteps
from cm_lightning.core.flow_matching import Diagonal, FlowMatching, Split
from cm_lightning.core.gap import ConstantGap, ExponentialGap, SigmoidGap, Through, UniformGap
from cm_lightning.core.limit_times import TwoTimes
from cm_lightning.core.noise import UniformTime
from cm_lightning.core.objective import Eulerian, Lagrangian, Objective, Tangent
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.parameterization import AverageVelocity, Map
from cm_lightning.core.path import Linear
from cm_lightning.core.random import Replay
from cm_lightning.core.trajectory import Itself, SameNoise
from cm_lightning.core.velocity_chord import VelocityChord
from tests.helpers import Dropout

END = Clock(1, 1)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


class At(Curriculum):
    """The same levels for every sample."""

    def __init__(self, t, q, r):
        self.times = t, q, r

    def draw(self, n, clock, device="cpu", generator=None):
        return Times(*(torch.full((n,), level, dtype=torch.float64) for level in self.times))


def average(u):
    """The map whose network is u(z, r, t)."""
    return Map(AverageVelocity(), lambda x, times, c: u(x, times[:, 0] - times[:, 1], times[:, 0]))


class TestGoldenValues:
    """Data N(0, 0.5^2), z = 0.8, r = 0.3, t = 0.9, for a network that ignores r and for the exact one."""

    oracle = GaussianOracle(0.5, path=Linear())
    x_t, t, r = tensor([0.8]), tensor(0.9), tensor(0.3)
    v = oracle.velocity(x_t, t)
    x, z = x_t - 0.9 * v, x_t + 0.1 * v  # data and noise whose velocity at x_t is v
    ignores_r = average(lambda z, r, t: TestGoldenValues.oracle.velocity(z, t))
    exact = average(lambda z, r, t: TestGoldenValues.oracle.average_velocity(z, t, r))

    def goal(self, own, trajectory, q):
        times = Times(self.t, tensor(q), self.r)
        chord = VelocityChord(At(*times), trajectory)
        return chord.goal(own, self.x, self.z, self.x_t, times, None, Replay(torch.device("cpu"))).item()

    def test_the_network_s_own_two_steps(self):
        found = self.goal(self.ignores_r, Itself(self.ignores_r, Linear()), 0.6)
        assert found == pytest.approx(0.769230769231)
        assert (self.v.item() - found) ** 2 == pytest.approx(0.00852071005917)

    def test_of_the_exact_map_two_steps_are_one(self):
        assert self.goal(self.exact, Itself(self.exact, Linear()), 0.6) == pytest.approx(0.651455584058)
        chord = VelocityChord(At(0.9, 0.6, 0.3), Itself(self.exact, Linear()))
        assert chord.loss(self.exact, self.exact, torch.randn(32, 2).double(), None, END).item() < 1e-20

    @pytest.mark.parametrize(("p", "expected"), [(0.25, 0.813638253638), (0.005, 0.860628261488)])
    def test_a_step_along_the_data_s_velocity(self, p, expected):
        assert self.goal(self.ignores_r, SameNoise(Linear()), 0.9 - 0.6 * p) == pytest.approx(expected)

    @pytest.mark.parametrize(("p", "expected"), [(0.25, -0.191600831601), (0.0003125, -0.181791749261)])
    def test_the_quotient_tends_to_meanflow_s_difference(self, p, expected):
        quotient = (self.goal(self.ignores_r, SameNoise(Linear()), 0.9 - 0.6 * p) - self.v.item()) / p
        assert quotient == pytest.approx(expected, rel=1e-8)

    def test_powers_of_the_part_divide_the_difference_and_weigh_the_loss(self):
        plain, other = (
            VelocityChord(At(0.9, 0.75, 0.3), SameNoise(Linear()), quotient=a, weight=b)
            for a, b in ((0.0, 0.0), (1.0, 0.5))
        )
        x = torch.randn(16, 2).double()
        losses = [
            chord.loss(self.ignores_r, self.ignores_r, x, None, END, torch.Generator().manual_seed(0)).item()
            for chord in (plain, other)
        ]
        assert losses[1] == pytest.approx(losses[0] * 0.25**0.5 / 0.25**2)
        assert other.shown["raw"].item() == pytest.approx(losses[0])

    def test_where_r_is_t_the_goal_is_the_velocity(self):
        times = Times(self.t, self.t, self.t)
        chord = VelocityChord(At(*times), SameNoise(Linear()), quotient=1.0)
        found = chord.goal(self.ignores_r, self.x, self.z, self.x_t, times, None, Replay(torch.device("cpu")))
        torch.testing.assert_close(found, self.v)

    def test_imf_s_velocity_of_both(self):
        """V = u + (t - r) du/dt along the network's own velocity, whatever the velocity w that it learns."""
        objective, w = Tangent(TwoTimes(), SameNoise(Linear())), tensor([0.3])
        for own, expected in ((self.ignores_r, 1.043313609467), (self.exact, self.v.item())):
            g = objective.tangent(own, self.x_t, self.t, self.r, w, along=self.v)
            assert (w - g).item() == pytest.approx(expected)

    @pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
    def test_imf_s_loss_is_a_regression_to_the_data_s_velocity(self, derivative):
        own, x = self.ignores_r, torch.randn(16, 2).double()
        objective = Tangent(
            At(0.9, 0.9, 0.3), SameNoise(Linear()), derivative=derivative, h=1e-4, direction=Itself(own, Linear())
        )
        loss = objective.loss(own, own, x, None, END, torch.Generator().manual_seed(0))
        (t, _, r), z, x_t = objective.draw(x, None, END, torch.Generator().manual_seed(0))
        v = own.velocity(x_t, t)
        along = torch.func.jvp(lambda x, t: own.output(x, t, r), (x_t, t), (v, torch.ones_like(t)))[1]
        torch.testing.assert_close(loss, (v + 0.6 * along - (z - x)).square().mean(), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
    def test_the_lagrangian_s_residual(self, derivative):
        objective = Lagrangian(TwoTimes(), SameNoise(Linear()), derivative=derivative, h=1e-4)
        for own, squared in ((self.exact, 0.0), (self.ignores_r, 0.483056448476)):
            found = objective.difference(own, own, self.x_t, self.t, self.r)
            assert found.square().item() == pytest.approx(squared, abs=1e-7)

    @pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
    def test_the_eulerian_residual(self, derivative):
        objective = Eulerian(TwoTimes(), SameNoise(Linear()), derivative=derivative, h=1e-4)
        for own, expected in ((self.exact, 0.0), (self.ignores_r, -0.181775147929)):
            found = objective.difference(own, own, self.x_t, self.t, self.r)
            assert found.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", [Lagrangian, Eulerian])
@pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
def test_the_exact_map_of_a_gaussian_has_no_loss_and_a_scaled_one_has(kind, derivative):
    oracle, x = GaussianOracle(0.5, mean=0.3, path=Linear()), torch.randn(32, 2).double()
    objective = kind(At(0.8, 0.8, 0.3), SameNoise(Linear()), derivative=derivative, h=1e-4)
    for scale, loses in ((1.0, False), (1.1, True)):
        own = average(lambda z, r, t, scale=scale: scale * oracle.average_velocity(z, t, r))
        loss = objective.loss(own, own, x, None, END, torch.Generator().manual_seed(0))
        assert (loss.item() > 1e-4) is loses
        assert objective.shown["raw"].item() == pytest.approx(loss.item())
        assert loses or loss.item() < 1e-12


@pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
def test_the_lagrangian_s_gradient_passes_through_the_derivative(derivative):
    """X = x - (t - r) w r, so dX/dr = w (2 r - t), and v(X, r) = w r is known: d/dw of its square is known too."""
    w, t, r = nn.Parameter(tensor(0.7)), tensor(0.9), tensor(0.3)
    own = Map(AverageVelocity(), lambda x, times, c: (w * (times[:, 0] - times[:, 1]))[:, None])
    Lagrangian(TwoTimes(), SameNoise(Linear()), derivative=derivative).difference(
        own, own, tensor([0.8]), t, r
    ).square().sum().backward()
    residual = 0.7 * (2 * 0.3 - 0.9) - 0.7 * 0.3
    assert w.grad.item() == pytest.approx(2 * residual * (2 * 0.3 - 0.9))


@pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
def test_the_eulerian_gradient_passes_through_the_derivative_in_t_alone(derivative):
    """X = x - (t - r) w t x: dX/dt = -w (2 t - r) x learns; (1 - (t - r) w t) w t x, along the velocity, is known."""
    w, t, r = nn.Parameter(tensor(0.7)), 0.9, 0.3
    own = Map(AverageVelocity(), lambda x, times, c: w * times[:, :1] * x)
    Eulerian(TwoTimes(), SameNoise(Linear()), derivative=derivative).difference(
        own, own, tensor([0.8]), tensor(t), tensor(r)
    ).square().sum().backward()
    slope = -(2 * t - r) * 0.8
    residual = 0.7 * slope + (1 - (t - r) * 0.7 * t) * 0.7 * t * 0.8
    assert w.grad.item() == pytest.approx(2 * residual * slope)


@pytest.mark.parametrize("kind", [Lagrangian, Eulerian])
def test_what_is_known_is_the_target_s_own(kind):
    own, target = (average(lambda z, r, t, w=w: w * z * t * (1 + r)) for w in (0.7, 0.4))
    objective, args = kind(TwoTimes(), SameNoise(Linear())), (tensor([0.8]), tensor(0.9), tensor(0.3))
    found = objective.difference(own, target, *args)
    assert found.item() != pytest.approx(objective.difference(own, own, *args).item())
    assert found.item() != pytest.approx(objective.difference(target, target, *args).item())


@pytest.mark.parametrize("kind", [Lagrangian, Eulerian])
def test_derivatives_of_a_network_are_those_of_finite_differences(kind):
    torch.manual_seed(0)
    network = ResidualMLP(2, 16, 2, noise_embedding=TwoTimesEmbedding(16)).double()
    nn.init.normal_(network.head.weight, std=0.2)
    own, x, t = Map(AverageVelocity(), network), torch.randn(8, 2).double(), torch.linspace(0.3, 1, 8).double()
    forward, difference = (
        kind(TwoTimes(), SameNoise(Linear()), derivative=derivative, h=1e-4).difference(own, own, x, t, t / 3)
        for derivative in ("forward_mode", "difference")
    )
    torch.testing.assert_close(forward, difference, rtol=0, atol=1e-6)
    assert forward.square().mean() > 1e-3


@pytest.mark.parametrize("kind", [Lagrangian, Eulerian])
@pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
def test_all_passes_draw_the_same_dropout(kind, derivative):
    network = Dropout()
    own = Map(AverageVelocity(), network)
    kind(TwoTimes(), SameNoise(Linear()), derivative=derivative).difference(
        own, own, torch.randn(4, 8), torch.full((4,), 0.9), torch.full((4,), 0.3)
    )
    assert len(network.masks) > 1
    assert all(torch.equal(mask, network.masks[0]) for mask in network.masks)


class Noted(Objective):
    """A loss that is the mean of its samples, which it keeps."""

    curriculum, trajectory = Diagonal(), SameNoise(Linear())

    def loss(self, map, target, x, c, clock, generator=None):
        self.x, self.c = x, c
        self.shown = {str(len(x)): x.mean()}
        return x.mean()


@pytest.mark.parametrize(("n", "sizes"), [(16, (12, 4)), (4, (3, 1)), (2, (2, 0)), (1, (1, 0))])
def test_each_sample_takes_one_of_the_two_losses(n, sizes):
    first, rest = Noted(), Noted()
    split, x = Split(first, rest, 0.75), torch.arange(1.0, n + 1)
    kinds = set()
    for seed in range(20):
        rest.x = torch.empty(0)
        loss = split.loss(None, None, x, 10 * x, END, torch.Generator().manual_seed(seed))
        taken = torch.cat([first.x, rest.x])
        assert torch.equal(taken.sort().values, x)
        assert torch.equal(first.c, 10 * first.x)
        assert (len(first.x), len(rest.x)) == sizes
        assert loss.item() == pytest.approx(x.mean().item())
        assert len(split.shown) == sum(size > 0 for size in sizes)
        kinds.add(tuple(first.x.sort().values.tolist()))
    assert len(kinds) > 1 or n <= 2  # the parts are drawn anew


def test_flow_matching_teaches_the_velocity():
    oracle, x = GaussianOracle(0.5, path=Linear()), 0.5 * torch.randn(4096, 2)
    exact = average(lambda z, r, t: oracle.velocity(z, t))
    other = average(lambda z, r, t: oracle.velocity(z, t) + 0.3)
    losses = [
        FlowMatching().loss(own, own, x, None, END, torch.Generator().manual_seed(0)).item() for own in (exact, other)
    ]
    assert losses[1] - losses[0] == pytest.approx(0.09, abs=0.02)  # E[z - x | x_t] is the exact velocity


def test_times_lie_in_order_and_follow_their_laws():
    g = torch.Generator().manual_seed(0)
    ends = TwoTimes(UniformTime(), different=1.0)
    t, q, r = Through(ends, ConstantGap(0.5)).draw(20_000, END, generator=g)
    torch.testing.assert_close(q, (t + r) / 2)
    assert (t.mean().item(), r.mean().item()) == pytest.approx((2 / 3, 1 / 3), abs=0.01)  # uniform on the triangle
    t, q, r = Through(ends, UniformGap()).draw(20_000, END, generator=g)
    assert bool(((r <= q) & (q <= t)).all())
    assert ((t - q) / (t - r)).mean().item() == pytest.approx(0.5, abs=0.01)
    t, q, r = Diagonal().draw(8, END, generator=g)
    assert torch.equal(t, q)
    assert torch.equal(t, r)


def test_schedules_of_the_gap():
    sigmoid = SigmoidGap(0.2, 0.6)
    expected = [1.0, 1.0, 0.5, 1 / (1 + math.exp(25 / 8)), 0.005, 0.005]
    assert [sigmoid.p(Clock(step, 100)) for step in (0, 20, 40, 45, 60, 100)] == pytest.approx(expected)
    exponential = ExponentialGap(1.0, 0.0025)
    assert [exponential.p(Clock(step, 100)) for step in (0, 50, 100)] == pytest.approx([1, 0.05, 0.0025])
    assert Through(TwoTimes(), sigmoid).progress(Clock(40, 100)) == pytest.approx({"alpha": 0.5})
    assert Through(TwoTimes(), exponential).progress(Clock(50, 100)) == pytest.approx({"ratio": 0.05})
    t, q, r = Through(TwoTimes(different=0.5), exponential).draw(64, Clock(50, 100))
    torch.testing.assert_close(t - q, 0.05 * (t - r), atol=1e-6, rtol=0)


def test_dyadic_steps_are_all_as_frequent_and_lie_on_their_grids():
    t, q, r = DyadicTimes(8).draw(9000, END, generator=torch.Generator().manual_seed(0))
    steps = t - r
    assert {value: round((steps == value).double().mean().item(), 1) for value in steps.unique().tolist()} == {
        0.25: 0.3, 0.5: 0.3, 1.0: 0.3,
    }  # fmt: skip
    assert torch.equal(q, (t + r) / 2)
    assert torch.equal((r / steps).frac(), torch.zeros_like(r))
    assert (r.min().item(), t.max().item()) == (0.0, 1.0)
    t, q, r = EvenSteps(8).draw(9000, END, generator=torch.Generator().manual_seed(0))
    assert torch.equal(q, r)
    assert sorted(t.unique().tolist()) == [i / 8 for i in range(1, 9)]
    torch.testing.assert_close(t - r, torch.full_like(t, 1 / 8))
