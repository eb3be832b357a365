"""CTM: its parameterization, its levels, and its losses against fixed values and at the Gaussian optimum."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from cm_lightning.backbones.embedding import JumpEmbedding, PositionalEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.core.curriculum import Clock, ConstantLevels, Times
from cm_lightning.core.distance import L2
from cm_lightning.core.noise import LogNormal, LogNormalAndHigh, karras_sigmas
from cm_lightning.core.objective import Chord
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.parameterization import EDM, DenoiserJump, Map
from cm_lightning.core.path import VE, Linear
from cm_lightning.core.sampler import Renewal, follow, multistep
from cm_lightning.core.soft_consistency import JumpTimes, SoftConsistency, balance
from cm_lightning.core.trajectory import Teacher
from cm_lightning.core.weighting import Uniform

START, END = Clock(0, 1), 0.002
ORACLE = GaussianOracle(0.5)
EXACT = Teacher(lambda x, t, c: ORACLE.denoiser(x, t), rho=7.0)


class Given(JumpTimes):
    """The same levels for every sample, and a number of steps."""

    def __init__(self, t, q, r, steps=1):
        super().__init__()
        self.times, self.steps = (t, q, r), steps

    def solver_steps(self, clock):
        return self.steps

    def draw(self, n, clock, device="cpu", generator=None):
        return Times(*(torch.full((n,), level, dtype=torch.float64) for level in self.times))


def exact(x, t, r, c=None):
    return ORACLE.flow(x, t, r.clamp(min=END))


def data(n=64):
    return 0.5 * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def matched(curriculum, map, target, trajectory=EXACT, x=None, clock=START):
    objective = SoftConsistency(curriculum, trajectory, L2(), Uniform())
    x = data() if x is None else x
    return objective.matching(map, target, x, None, clock, torch.Generator().manual_seed(0))


def jumping(seed):
    torch.manual_seed(seed)
    net = ResidualMLP(2, 8, 1, noise_embedding=JumpEmbedding(8)).double()
    nn.init.normal_(net.head.weight, std=0.5)
    return Map(DenoiserJump(), net)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_exact_map_has_no_loss_but_the_solver_s(steps):
    """A Heun step misses the trajectory by h^3, and the squared distance is that squared."""
    losses = [matched(Given(1.0, 1 - h, 0.1, steps), exact, exact).item() for h in (0.08, 0.04)]
    assert losses[0] < 1e-8
    assert math.log2(losses[0] / losses[1]) == pytest.approx(6, abs=0.6)


def test_the_loss_and_its_gradient_by_hand():
    """The teacher's denoiser is 0, so x_q = x_t / 2; X_target = (1 + r) / (1 + t) x, and the student's jump is w x.

    From 2 by way of 1 to 1/2: w x_t / 1.5 against (x_t / 2) (1.5 / 2) / 1.5.
    """
    w, x = nn.Parameter(torch.tensor(0.9).double()), data()
    loss = matched(
        Given(2.0, 1.0, 0.5),
        lambda x, t, r, c: w * x,
        lambda x, t, r, c: ((1 + r) / (1 + t))[:, None] * x,
        Teacher(lambda x, t, c: 0 * x),
        x,
    )
    x_t = x + 2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    loss.backward()
    assert loss.item() == pytest.approx((0.6 - 0.25) ** 2 * x_t.square().mean().item())
    assert w.grad.item() == pytest.approx(2 * (0.6 - 0.25) / 1.5 * x_t.square().mean().item())


def test_only_the_student_learns():
    student, target = jumping(1), jumping(2)
    target.network.requires_grad_(False)
    teacher = ResidualMLP(2, 8, 1).double().requires_grad_(False)
    trajectory = Teacher(partial(EDM(), teacher), lowest=END)
    objective = SoftConsistency(JumpTimes(ConstantLevels(4)), trajectory, L2(), Uniform())
    objective.loss(student, target, data(), None, START).backward()
    assert all(p.grad.any() for p in student.network.parameters())
    assert all(p.grad is None for other in (target.network, teacher) for p in other.parameters())


def test_a_jump_to_the_end_is_consistency_distillation():
    student, target, times = jumping(1), jumping(2), Given(2.0, 1.0, END)
    chord = Chord(times, EXACT, L2(), Uniform()).loss(
        student, target, data(), None, START, torch.Generator().manual_seed(0)
    )
    assert matched(times, student, target).item() == pytest.approx(chord.item(), rel=1e-9)


def test_where_q_is_r_the_teacher_s_way_is_distilled():
    """The student whose jump is the solver's steps loses nothing then, whatever the target is."""
    target = jumping(2)

    def solved(x, t, r, c):
        return EXACT.solve(x, t, r, 3)

    assert matched(Given(2.0, 0.5, 0.5, 3), solved, target).item() == pytest.approx(0, abs=1e-25)
    assert matched(Given(2.0, 1.0, 0.5, 3), solved, target).item() > 1e-4


def test_where_q_is_next_to_t_it_is_consistency_of_neighbours():
    """A map that is its own target has a loss of the second order in t - q: it is consistent with itself at q = t."""
    own = jumping(1)
    losses = [matched(Given(1.0, 1 - h, 0.1), own, own).item() for h in (0.02, 0.01)]
    assert losses[0] / losses[1] == pytest.approx(4, rel=0.1)


def test_the_map_is_the_identity_where_a_jump_has_no_length_and_a_denoiser_there():
    own, x = jumping(1), data(3)
    t, zero = torch.tensor([80.0, 0.7, END], dtype=torch.float64), torch.zeros(3).double()
    assert torch.equal(own(x, t, t), x)
    assert torch.equal(own(x[2:], t[2:], zero[2:]), x[2:])
    torch.testing.assert_close(own(x, t, zero), own(x, t, torch.full_like(t, END)))
    x, t = x[:2], t[:2]
    g, near = own.parameterization.denoised(own.network, x, t), own(x, t, t * (1 - 1e-7))
    torch.testing.assert_close((x - near) / (t * 1e-7)[:, None], (x - g) / t[:, None], rtol=1e-5, atol=1e-6)


def test_a_network_without_jumps_starts_one_with_them():
    """The weights of a denoiser fit, and where r = t the network is that denoiser."""
    torch.manual_seed(0)
    plain = ResidualMLP(2, 8, 1, noise_embedding=PositionalEmbedding(8, endpoint=True))
    nn.init.normal_(plain.head.weight)
    net = ResidualMLP(2, 8, 1, noise_embedding=JumpEmbedding(8, PositionalEmbedding(8, endpoint=True)))
    net.load_state_dict(plain.state_dict())
    x, t = torch.randn(5, 2), torch.logspace(-2, 1.9, 5)
    torch.testing.assert_close(DenoiserJump().denoised(net, x, t), EDM()(plain, x, t), rtol=0, atol=0)
    label = t.log() / 4
    assert (net(x, torch.stack([label, label - 1], 1)) - plain(x, label)).abs().min().item() > 1e-4


def test_levels_lie_on_the_grid_and_the_teacher_passes_through_it():
    times, grid = JumpTimes(ConstantLevels(6), most=4), karras_sigmas(6)
    seen, clock = [], Clock(3, 10)
    for step in range(40):
        t, q, r = times.draw(50, Clock(step, 40), generator=torch.Generator().manual_seed(step))
        i, j, last = ((level[:, None].double() - grid).abs().argmin(1) for level in (t, q, r))
        torch.testing.assert_close(grid[last].float(), r, rtol=0, atol=0)
        assert torch.equal(j - i, torch.full((50,), times.solver_steps(Clock(step, 40))))
        assert bool((last >= j).all())
        seen += (last - j).tolist()
    assert set(seen) == {0, 1, 2, 3, 4}
    t, q, _ = times.draw(1, clock)
    levels = []
    Teacher(lambda x, t, c: levels.append(t) or x, solver="euler", rho=7.0).solve(
        torch.zeros(1, 2), t, q, times.solver_steps(clock)
    )
    assert all((level.double() / grid - 1).abs().min() < 1e-5 for level in levels)
    assert len(levels) == times.solver_steps(clock)


def test_a_number_of_steps_is_as_frequent_as_it_is_large():
    times = JumpTimes(ConstantLevels(18), most=3)
    found = Counter(times.solver_steps(Clock(step, 2000)) for step in range(2000))
    assert [found[k] / 2000 for k in (1, 2, 3)] == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=0.03)
    assert JumpTimes(ConstantLevels(2), most=17).solver_steps(START) == 1


def test_the_balance_of_two_losses():
    """Losses a . W and b . W have the gradients a and b; the last matrix is that of the head."""
    net = nn.ModuleDict({"head": nn.Linear(2, 1, bias=False), "other": nn.Linear(5, 5)})
    net.head = net["head"]
    w = net.head.weight
    factor = balance(6 * w[0, 0] + 8 * w[0, 1], w.sum() * 0 + 5 * w[0, 0], net)
    assert factor.item() == pytest.approx(10 / (5 + 1e-4))
    assert balance(w.sum(), 0 * w.sum(), net).item() == pytest.approx(1e4)


def test_the_second_loss_is_balanced_only_where_there_are_gradients():
    own, x = jumping(1), data()
    target = jumping(2)
    target.network.requires_grad_(False)

    def loss(balanced, weight=1.0):
        objective = SoftConsistency(JumpTimes(), EXACT, L2(), Uniform(), LogNormal(), weight, balanced)
        total = objective.loss(own, target, x, None, START, torch.Generator().manual_seed(0))
        return total, objective.shown

    total, shown = loss(False, 0.5)
    assert total.item() == pytest.approx((shown["matching"] + 0.5 * shown["denoising"]).item())
    total, shown = loss(True)
    factor = (total - shown["matching"]) / shown["denoising"]
    with torch.no_grad():
        assert loss(True)[0].item() == pytest.approx((shown["matching"] + shown["denoising"]).item())
    gradients = [
        torch.autograd.grad(part, own.network.head.weight)[0].norm()
        for part in (
            SoftConsistency(JumpTimes(), EXACT, L2(), Uniform(), LogNormal(), 0).loss(
                own, target, x, None, START, torch.Generator().manual_seed(0)
            ),
            loss(False, 1.0)[0] - loss(False, 0.0)[0],
        )
    ]
    assert factor.item() == pytest.approx((gradients[0] / (gradients[1] + 1e-4)).item(), rel=1e-6)


def test_half_of_the_levels_for_denoising_are_high():
    levels = LogNormalAndHigh(mean=-5.0, std=0.1, part=0.5).sample(20_000, generator=torch.Generator().manual_seed(0))
    high = levels[levels > 0.1]
    root, (low, top) = high ** (1 / 7), (END ** (1 / 7), 80 ** (1 / 7))
    assert len(high) / 20_000 == pytest.approx(0.5, abs=0.02)
    assert (root.min().item(), root.max().item()) == pytest.approx(((low + top) / 2, top), abs=0.01)
    assert root.mean().item() == pytest.approx(0.75 * top + 0.25 * low, abs=0.01)


class TestGammaSampling:
    levels = (80.0, 5.0, 1.0, 0.0)

    def noise(self, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)

    def test_without_fresh_noise_it_goes_from_level_to_level(self):
        z = data()
        direct = follow(exact, 80 * z, self.levels)
        assert torch.equal(follow(exact, 80 * z, self.levels, Renewal(0.0, VE(), END)), direct)

    def test_with_all_noise_fresh_it_is_multistep_sampling(self):
        z = data()
        renewal = Renewal(1.0, VE(), END, self.noise())
        expected = multistep(lambda x, t: exact(x, t, 0 * t), z, self.levels[:-1], END, self.noise())
        torch.testing.assert_close(follow(exact, 80 * z, self.levels, renewal), expected)

    @pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
    @pytest.mark.parametrize(("path", "levels"), [(VE(), levels), (Linear(), (1.0, 0.7, 0.3, 0.0))])
    def test_the_exact_map_draws_the_data_whatever_gamma_is(self, path, levels, gamma):
        oracle = GaussianOracle(0.5, 0.3, path)
        z = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        start = path.scales(torch.tensor(levels[0]))[1] * z + (0.3 if isinstance(path, VE) else 0)

        def flow(x, t, r):
            return oracle.flow(x, t, r.clamp(min=oracle.sigma_min))

        found = follow(flow, start, levels, Renewal(gamma, path, oracle.sigma_min, self.noise()))
        assert (found.mean().item(), found.std().item()) == pytest.approx((0.3, 0.5), abs=0.015)
