import math
from functools import partial

import pytest
import torch

from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.path import DDPM, VE, Linear, TrigFlow
from cm_lightning.core.trajectory import Teacher

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's
PATHS = {"ve": VE(), "trig": TrigFlow(), "linear": Linear(), "ddpm": DDPM((1 - BETAS).cumprod(0))}
LEVELS = {"ve": [0.1, 2.0, 40.0], "trig": [0.1, 0.8, 1.5], "linear": [0.1, 0.5, 0.95], "ddpm": [3.0, 299.6, 990.5]}
BOTH = pytest.mark.parametrize("name", PATHS)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(name):
    t = tensor(*LEVELS[name])
    x, z = torch.randn(2, len(t), 4, dtype=torch.float64)
    return PATHS[name], x, z, t


@BOTH
def test_the_velocity_is_the_derivative_of_the_point(name):
    path, x, z, t = draws(name)
    h = 1e-5 if name != "ddpm" else 1e-3
    difference = (path.point(x, z, t + h) - path.point(x, z, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(x, z, t), difference, rtol=1e-6, atol=1e-8)


@BOTH
def test_noise_and_step_undo_and_extend_a_point(name):
    path, x, z, t = draws(name)
    x_t = path.point(x, z, t)
    torch.testing.assert_close(path.noise(x_t, x, t), z)
    torch.testing.assert_close(path.step(x_t, z, t, 0.9 * t), path.point(x, z, 0.9 * t))


@BOTH
def test_a_level_is_found_by_its_noise(name):
    path, _, _, t = draws(name)
    alpha, sigma = path.scales(t)
    torch.testing.assert_close(path.level(sigma / alpha), t, rtol=1e-9, atol=1e-9)


def test_levels_of_the_papers():
    sigma = tensor(0.002, 0.821, 1.526, 80)
    linear = [0.001996007984, 0.450851180670, 0.604117181314, 0.987654320988]
    trig = [0.003999978667, 1.023775673523, 1.254165853690, 1.564546408173]
    assert Linear().level(sigma).tolist() == pytest.approx(linear, rel=1e-9)
    assert TrigFlow().level(sigma).tolist() == pytest.approx(trig, rel=1e-9)


def test_at_a_timestep_the_table_holds_and_the_velocity_is_the_mean_of_both_sides():
    path, x, z = PATHS["ddpm"], torch.ones(1, 1).double(), torch.ones(1, 1).double()
    whole, h = torch.tensor([500]), 1e-4
    assert path.scales(whole)[0].item() ** 2 == pytest.approx(path.alphas_cumprod[500].item())
    torch.testing.assert_close(path.point(x, z, whole), path.point(x, z, whole.double()))
    above, below = (path.point(x, z, whole.double() + step) for step in (h, -h))
    torch.testing.assert_close(path.velocity(x, z, whole), (above - below) / (2 * h), rtol=1e-5, atol=1e-9)
    assert path.velocity(x, z, torch.tensor([0])).isfinite().all()
    assert path.velocity(x, z, torch.tensor([999])).isfinite().all()


def test_sqrt_of_the_last_alpha_of_stable_diffusion():
    assert PATHS["ddpm"].scales(torch.tensor([999]))[0].item() == pytest.approx(0.068264914217, rel=1e-8)


@pytest.mark.parametrize("mean", [0.0, 0.3])
@BOTH
def test_the_oracle_s_velocity_flow_and_denoiser_belong_together(name, mean):
    path, x, z, t = draws(name)
    oracle = GaussianOracle(0.5, mean, path)
    x_t = path.point(mean + 0.5 * x, z, t)
    h = 1e-5 if name != "ddpm" else 1e-3
    along = (oracle.flow(x_t, t, t + h) - oracle.flow(x_t, t, t - h)) / (2 * h)
    torch.testing.assert_close(oracle.velocity(x_t, t), along, rtol=1e-6, atol=1e-8)
    # the flow's velocity is the path's at the mean data and noise (probability-flow ODE)
    clean = oracle.denoiser(x_t, t)
    torch.testing.assert_close(oracle.velocity(x_t, t), path.velocity(clean, path.noise(x_t, clean, t), t))
    r = 0.5 * t
    between = oracle.flow(oracle.flow(x_t, t, 0.8 * t), 0.8 * t, r)
    torch.testing.assert_close(oracle.flow(x_t, t, r), between)
    torch.testing.assert_close(oracle.average_velocity(x_t, t, t), oracle.velocity(x_t, t))


def test_the_linear_oracle_against_values_of_its_own():
    oracle, z = GaussianOracle(0.5, path=Linear()), tensor([0.8])
    t, r, q = tensor(0.9), tensor(0.3), tensor(0.6)

    def u(z, r, t):
        return oracle.average_velocity(z, t, r)

    assert oracle.velocity(z, t).item() == pytest.approx(0.861538461538)
    x_r, x_q = oracle.flow(z, t, r), oracle.flow(z, t, q)
    assert x_r.item() == pytest.approx(0.409126649565)
    assert x_q.item() == pytest.approx(0.561317132356)
    assert u(z, r, t).item() == pytest.approx(0.651455584058)
    assert oracle.velocity(x_r, r).item() == pytest.approx(0.240662735038)
    assert u(z, q, t).item() == pytest.approx(0.795609558812)
    assert u(x_q, r, q).item() == pytest.approx(0.507301609304)
    assert (u(z, q, t) + u(x_q, r, q)).item() / 2 == pytest.approx(u(z, r, t).item())
    jacobian = torch.func.jacrev(u, argnums=(0, 1, 2))(z, r, t)
    found = [j.item() for j in jacobian]
    assert found == pytest.approx([0.814319480072, 0.684654748365, -0.351429422927])
    along = torch.func.jvp(u, (z, r, t), (oracle.velocity(z, t), torch.zeros(1).double(), torch.ones(1).double()))[1]
    assert along.item() == pytest.approx(0.350138129135)


def test_the_trigonometric_oracle_against_values_of_its_own():
    oracle, x, t = GaussianOracle(0.8, path=TrigFlow(0.5)), tensor([0.6]), tensor(1.2)
    assert oracle._variance(t).item() == pytest.approx(0.3012082254695)
    assert oracle.velocity(x, t).item() == pytest.approx(-0.2623739507821)
    assert oracle.consistency(x, t).item() == pytest.approx(0.8745966783979)


def test_the_closed_form_of_a_consistency_function_on_the_linear_path():
    """f(x, t) = c x / sqrt(t^2 + (1 - t)^2 c^2) (Sabour et al. 2025, Theorem 3.1)."""
    oracle = GaussianOracle(0.5, path=Linear())
    assert oracle.consistency(tensor([1.0]), tensor(0.5)).item() == pytest.approx(0.894427191)
    assert oracle.consistency(tensor([1.0]), tensor(1.0)).item() == pytest.approx(0.5)


def test_the_mean_of_data_and_noise_given_a_point_is_the_velocity():
    oracle, path, n = GaussianOracle(0.5, 0.2, Linear()), Linear(), 400_000
    x = 0.2 + 0.5 * torch.randn(n, 1, dtype=torch.float64)
    z, t = torch.randn(n, 1, dtype=torch.float64), torch.full((n,), 0.7, dtype=torch.float64)
    x_t, v = path.point(x, z, t), path.velocity(x, z, t)
    slope = ((x_t - x_t.mean()) * v).mean() / x_t.var()
    at = tensor([0.1], [0.9])
    expected = oracle.velocity(at, torch.full((2,), 0.7).double())
    assert slope.item() == pytest.approx(((expected[1] - expected[0]) / 0.8).item(), abs=0.01)
    assert v.mean().item() == pytest.approx(-0.2, abs=0.01)
    assert math.isclose(x_t.mean().item(), 0.3 * 0.2, abs_tol=0.01)


def unit_gaussian(path, x, t, c):
    """E[x_0 | x_t] for data N(0, 0.5^2)."""
    return GaussianOracle(0.5, path=path).denoiser(x, t)


def test_a_teacher_s_two_steps_on_stable_diffusion_s_path():
    path, x = PATHS["ddpm"], torch.ones(1, 1).double()
    one, two = (Teacher(partial(unit_gaussian, path), path, "euler", steps=steps) for steps in (1, 2))
    t, half, q = torch.tensor([749]), torch.tensor([624]), torch.tensor([499])
    assert one.advance(x, x, x, t, half).item() == pytest.approx(0.964546559740, rel=1e-9)
    assert one.advance(x, x, x, t, q).item() == pytest.approx(0.894836468554, rel=1e-9)
    assert two.advance(x, x, x, t, q).item() == pytest.approx(0.901917880300, rel=1e-9)
    many = Teacher(partial(unit_gaussian, path), path, "euler", steps=250)
    assert many.advance(x, x, x, t, q).item() == pytest.approx(0.909319883149, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_teacher_s_steps_are_those_of_the_finer_grid(steps):
    """The levels between two neighbours on EDM's grid of n levels are those of the grid of (n - 1) steps + 1."""
    fine, asked = karras_sigmas(3 * steps + 1), []

    def denoiser(x, t, c):
        asked.append(t.item())
        return x / 2

    teacher, x = Teacher(denoiser, solver="euler", steps=steps, rho=7.0), torch.ones(1, 2).double()
    for t, q in zip(fine[:-1:steps], fine[steps::steps], strict=True):
        teacher.advance(x, x, x, t[None], q[None])
    assert asked == pytest.approx(fine[:-1].tolist(), rel=1e-9)
