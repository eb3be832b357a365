"""Losses with a critic, turns, and the nested grids of a progressive distillation: fixed values and invariants."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from cm_lightning.core.adversarial import (
    DIVERGENCES,
    accuracy,
    discriminator_loss,
    generator_loss,
    matching_loss,
    matching_weight,
)
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.held import Held
from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.path import DDPM, VE
from cm_lightning.core.schedule import HoldThenCosine
from cm_lightning.core.stages import Ladder, Stage, StageRates, Stages
from cm_lightning.core.turns import Turns
from cm_lightning.errors import ConfigError
from cm_lightning.modules.matching import Divergence

SD = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).neg().add(1).cumprod(0)
LIGHTNING = [Stage(32, 8, length=2), Stage(8, 4, "conditional"), Stage(8, 4, "unconditional"), Stage(4, 1, rate=0.5)]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(value, expected, tolerance=1e-11):
    assert float(value) == pytest.approx(expected, abs=tolerance)


class TestLosses:
    def test_adversarial_losses_at_fixed_logits(self):
        close(discriminator_loss(tensor(0.7), tensor(-0.3)), 0.957541293354)
        close(generator_loss(tensor(-0.3)), 0.854355244469)

    def test_accuracy_counts_both_signs(self):
        assert accuracy(tensor(1, 1, -1, 1), tensor(-1, 1, -1, -1)) == 0.75

    def test_distribution_matching_at_fixed_values(self):
        """Data N(0, 0.25), samples N(0, 1), x = 1 seen under noise 0.3 of level 2."""
        x = tensor([1.0]).requires_grad_()
        loss = matching_loss(x, tensor([1.6 * 0.25 / 4.25]), tensor([1.6 * 1 / 5]))
        (gradient,) = torch.autograd.grad(loss, x)
        close(gradient, 0.249350649351, 1e-7)  # computed in single precision
        close(loss, 0.0310878731658, 1e-8)

    def test_it_vanishes_where_both_estimates_agree(self):
        x = torch.randn(3, 2, requires_grad=True)
        estimate = torch.randn(3, 2)
        loss = matching_loss(x, estimate, estimate)
        assert loss == 0
        assert not torch.autograd.grad(loss, x)[0].any()

    @pytest.mark.parametrize(
        ("divergence", "f"),
        [
            ("reverse_kl", lambda r: -r.log()),
            ("forward_kl", lambda r: r * r.log()),
            ("jensen_shannon", lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log()),
            ("hellinger", lambda r: 1 - r.sqrt()),
        ],
    )
    def test_the_weight_of_a_divergence_is_r_squared_times_its_second_derivative(self, divergence, f):
        r = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0], dtype=torch.float64)
        second = torch.func.vmap(torch.func.grad(torch.func.grad(f)))
        torch.testing.assert_close(DIVERGENCES[divergence](r.log()), r**2 * second(r))
        weight = matching_weight(r.log(), divergence)
        assert float(weight.mean()) == pytest.approx(1)
        torch.testing.assert_close(weight, (r**2 * second(r) / (r**2 * second(r)).mean()).float())

    def test_the_option_names_them_all(self):
        assert get_args(Divergence) == tuple(DIVERGENCES)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_its_descent_moves_a_gaussian_to_the_data(self, divergence):
        """Samples N(0, s^2) with the exact denoiser and log r of each s: s goes to 0.5, that of the data."""
        s, optimizer = nn.Parameter(torch.tensor(1.5)), None
        optimizer = torch.optim.Adam([s], lr=0.05)
        for _ in range(200):
            x = s * torch.randn(64, 4)
            sigma = torch.rand(64) * 2 + 0.1
            noisy = (x + sigma[:, None] * torch.randn(64, 4)).detach()
            real, fake = (noisy * (v / (v + sigma**2))[:, None] for v in (torch.tensor(0.25), s.detach() ** 2))
            optimizer.zero_grad()
            of_data, of_samples = (0.25 + sigma**2, s.detach() ** 2 + sigma**2)
            log_r = 2 * (of_samples / of_data).log() + noisy.square().sum(1) * (1 / of_samples - 1 / of_data) / 2
            matching_loss(x, real, fake, matching_weight(log_r, divergence)).backward()
            optimizer.step()
        assert float(s.detach()) == pytest.approx(0.5, abs=0.05)

    def test_a_held_network_passes_gradients_on_without_taking_any(self):
        network, x = nn.Linear(2, 1), torch.randn(3, 2, requires_grad=True)
        network.bias.requires_grad_(False)
        with Held(network.parameters()):
            out = network(x).sum()
        out.backward()
        assert network.weight.grad is None
        assert x.grad.any()
        assert network.weight.requires_grad
        assert not network.bias.requires_grad

    def test_some_weights_of_a_network_may_be_held(self):
        network = nn.Linear(2, 1)
        with Held([network.weight]):
            out = network(torch.randn(3, 2)).sum()
        out.backward()
        assert network.weight.grad is None
        assert network.bias.grad.item() == 3


class TestTurns:
    def test_the_generator_trains_at_every_nth_step(self):
        turns = Turns(5)
        assert [turns(step).generator for step in range(6)] == [True, False, False, False, False, True]
        assert all(turns(step).critic for step in range(6))

    def test_networks_may_alternate(self):
        assert [Turns(2, together=False)(step) for step in range(3)] == [(True, False), (False, True), (True, False)]

    def test_a_critic_that_never_trains_is_refused(self):
        with pytest.raises(ConfigError, match="every must be a whole number of at least 2, got 1"):
            Turns(1, together=False)


class TestStages:
    stages = Stages(LIGHTNING)

    def test_lengths_share_the_run(self):
        assert self.stages.starts(100) == [0, 40, 60, 80]
        assert [self.stages.index(Clock(step, 100)) for step in (0, 39, 40, 79, 80, 100)] == [0, 0, 1, 2, 3, 3]

    def test_where_stages_begin_and_which_teacher_they_have(self):
        begins = [step for step in range(100) if self.stages.begins(Clock(step, 100))]
        takes = [step for step in range(100) if self.stages.takes_student(Clock(step, 100))]
        assert begins == [40, 60, 80]
        assert takes == [40, 80]
        assert [self.stages.learns_from_student(i) for i in range(4)] == [False, True, True, True]

    def test_a_run_shorter_than_its_stages_still_changes_the_teacher(self):
        assert [self.stages.takes_student(Clock(step, 2)) for step in (0, 1)] == [False, True]

    def test_rates_and_schedule_start_anew_with_each_stage(self):
        rates = StageRates(self.stages, HoldThenCosine(rise=4, hold=1.0))
        assert [rates(step, 100) for step in (0, 39, 40, 80, 99)] == [0.25, 1.0, 0.25, 0.125, 0.5]
        assert StageRates(self.stages)(99, 100) == 0.5

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            (lambda: Stage(8, 3), "student_steps must be a divisor of teacher_steps, got 3 and 8"),
            (lambda: Stage(8, 8), "student_steps must be a divisor"),
            (lambda: Stage(8, 0), "student_steps must be a whole number of at least 1"),
            (lambda: Stage(8, 4, "gan"), "objective must be mse, conditional or unconditional, got 'gan'"),
            (lambda: Stage(8, 4, rate=0), "rate must be a finite number above 0"),
            (lambda: Stage(8, 4, length=-1), "length must be a finite number above 0"),
            (lambda: Stage(8, 4, guidance=-1), "guidance must be a finite number of at least 0"),
            (lambda: Stages([]), "stages must be given"),
            (lambda: Stages([Stage(8, 4), Stage(2, 1)]), "its teacher must take 8 steps, or 4"),
            (lambda: Stages([Stage(8, 4), Stage(4, 2, guidance=1)]), "requests guidance of a student"),
            (lambda: Ladder(VE(), karras_sigmas(8)).stride(3), "3 steps do not divide the 8 levels of the"),
        ],
    )
    def test_what_does_not_fit_is_refused_in_a_line(self, wrong, line):
        with pytest.raises(ConfigError, match=line):
            wrong()


class TestLadder:
    def test_golden_steps_of_stable_diffusion(self):
        """Data N(0, 0.25) on SD's schedule, x = 1 at 749: the teacher's steps to 624 and 499, the student's one."""
        ladder = Ladder(DDPM(SD), torch.tensor([999, 874, 749, 624, 499, 374, 249, 124]))
        oracle = GaussianOracle(0.5, path=ladder.path)
        x, i = tensor([1.0]), torch.tensor([2])

        def denoiser(x_t, t):
            return oracle.denoiser(x_t, t)

        close(SD[999].sqrt(), 0.068264914217)
        close(ladder.advance(denoiser, x, i, 8, 1), 0.964546559740)
        there = ladder.advance(denoiser, x, i, 8, 2)
        close(there, 0.901917880300)
        goal = ladder.clean(x, there, i, i + 2)
        close(goal, 0.084345711404)
        close(ladder.path.noise(x, goal, ladder.level(i)), 1.008909564090)
        close(ladder.advance(denoiser, x, i, 4, 1), 0.894836468554)
        close(ladder.end(x, goal, i, i + 2), 0.901917880300)

    @pytest.mark.parametrize("path", [VE(), DDPM(SD)], ids=["VE", "DDPM"])
    def test_the_goal_leads_to_the_teacher_from_every_level_and_the_end_is_clean(self, path):
        levels = karras_sigmas(8) if isinstance(path, VE) else torch.arange(999, 0, -125)
        ladder, x, z = Ladder(path, levels), torch.randn(8, 2).double(), torch.randn(8, 2).double()
        i = torch.arange(8)
        x_t, there = ladder.point(x, z, i), torch.randn(8, 2).double()
        torch.testing.assert_close(ladder.end(x_t, ladder.clean(x_t, there, i, i + 1), i, i + 1), there)
        assert ladder.end(x_t, there, i, i + 1)[-1].equal(there[-1])

    def test_it_starts_from_noise_without_data(self):
        z, i = torch.randn(2, 3), torch.zeros(2, dtype=torch.long)
        for x in (torch.zeros(2, 3), torch.ones(2, 3)):
            point = Ladder(DDPM(SD), torch.tensor([999])).point(x, z, i)
            torch.testing.assert_close(point, (1 - SD[999]).sqrt().float() * z)
            assert Ladder(VE(), torch.tensor([80.0])).point(x, z, i).equal(80 * z)

    def test_sampling_is_the_ddim_of_the_first_teacher_on_fewer_levels(self):
        ladder, oracle = Ladder(VE(), karras_sigmas(8)), GaussianOracle(0.5)
        seen = []

        def denoiser(x, t):
            seen.append(float(t[0]))
            return oracle.denoiser(x, t)

        z, i = torch.randn(2, 2).double(), torch.zeros(2, dtype=torch.long)
        ladder.advance(denoiser, ladder.point(torch.zeros_like(z), z, i), i, 4, 4)
        assert seen == ladder.levels[::2].tolist()

    def test_the_weight_is_edms_in_units_of_ve(self):
        weight = Ladder(DDPM(SD), torch.tensor([999, 499])).weight(torch.tensor([1]), sigma_data=1.0)
        close(weight, float(SD[499] / (1 - SD[499])) + 1)
        assert math.isfinite(float(weight))
