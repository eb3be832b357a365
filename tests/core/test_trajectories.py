import math

import pytest
import torch

from cm_lightning.core.ideal import distilled, reverse_sde, same_noise_point, trained
from cm_lightning.core.lipschitz import ball_bound, jacobian, separation_bounds, smooth_bound
from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.oracle import GaussianOracle, MixtureOracle
from cm_lightning.core.solver import euler_step, slope
from cm_lightning.self_consistency.ode import trajectory


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def two(std, radius=0.6):
    return MixtureOracle(doubles([-radius, 0.0], [radius, 0.0]), doubles(std, std), doubles(0.3, 0.7))


def steepness(oracle, x, t):
    return torch.linalg.matrix_norm(jacobian(lambda x, t: slope(oracle.denoiser, x, t), x, t), 2)


def test_a_trajectory_is_the_closed_form_and_turns_back():
    oracle, x = GaussianOracle(0.5), doubles([3.0, -1.0], [0.2, 9.0])
    down, back = trajectory(oracle.denoiser, x, [5.0, 0.01, 5.0])[1:]
    exact = oracle.flow(x, doubles(5.0, 5.0), doubles(0.01, 0.01))
    torch.testing.assert_close(down, exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=0)


def test_a_trajectory_that_leaves_every_ball_is_an_error():
    with pytest.raises(ArithmeticError, match="no trajectory from sigma 1 to 10"):
        trajectory(lambda x, sigma: x - x**3, doubles([1.0]), [1.0, 10.0])  # x^-2 reaches 0 at u = 1/2


def test_the_posterior_s_covariance_is_the_denoiser_s_derivative_times_the_noise_s_variance():
    oracle, x = two(0.1), torch.randn(16, 2, dtype=torch.float64)
    t = torch.linspace(0.2, 3, 16, dtype=torch.float64)
    covariance = oracle.posterior(x, t).covariance()
    torch.testing.assert_close(covariance, jacobian(oracle.denoiser, x, t) * t[:, None, None] ** 2)


def test_draws_of_the_posterior_have_its_moments():
    x, t = doubles([0.1, 0.2]).repeat(100_000, 1), torch.full((100_000,), 0.7, dtype=torch.float64)
    posterior = two(0.1).posterior(x, t)
    draws = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), posterior.mean()[0], rtol=0, atol=0.01)
    torch.testing.assert_close(draws.T.cov(), posterior.covariance()[0], rtol=0, atol=0.01)


def test_the_bound_of_a_ball_is_attained_by_two_points_and_no_smaller_one_holds():
    oracle, t = MixtureOracle(doubles([-0.6, 0.0], [0.6, 0.0]), doubles(0.0, 0.0)), doubles(0.002, 0.05, 0.3)
    measured = steepness(oracle, torch.zeros(3, 2, dtype=torch.float64), t)
    torch.testing.assert_close(measured, ball_bound(0.6, t))
    assert bool((measured > ball_bound(0.55, t)).all())


def test_blurred_data_have_a_bound_that_is_finite_at_zero():
    t = doubles(0.001, 0.01, 0.1, 0.5, 5.0)
    torch.testing.assert_close(smooth_bound(0.6, 0.0, t), ball_bound(0.6, t))
    middle = torch.zeros(5, 2, dtype=torch.float64)
    oracle = MixtureOracle(two(0.1).means, doubles(0.1, 0.1))
    ratio = steepness(oracle, middle, t) / smooth_bound(0.6, 0.1, t)
    assert ratio.max() <= 1 + 1e-9
    torch.testing.assert_close(ratio[:3], torch.ones(3, dtype=torch.float64))  # there it is attained too
    assert smooth_bound(0.6, 0.1, doubles(1e-6)).item() < 0.01


def test_without_a_radius_distances_change_as_for_a_gaussian():
    t, r = doubles(3.0), doubles(0.01)
    lower, upper = separation_bounds(0.0, 0.5, t, r)
    flow = GaussianOracle(0.5).flow(doubles([1.0]), r, t)[0]
    torch.testing.assert_close(lower, flow)
    torch.testing.assert_close(upper, flow)
    assert separation_bounds(0.6, 0.5, t, r)[0] < lower


def test_perfect_distillation_is_of_first_order():
    oracle, x = two(0.2), 80 * torch.randn(32, 2, dtype=torch.float64)
    exact = trajectory(oracle.denoiser, x, [80.0, 0.002])[-1]
    coarse, fine = ((distilled(oracle.denoiser, x, karras_sigmas(n)) - exact).norm(dim=1).mean() for n in (101, 201))
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


def test_perfect_training_is_perfect_distillation_where_the_denoiser_is_linear_and_not_elsewhere():
    generator, sigmas = torch.Generator().manual_seed(0), karras_sigmas(9)
    x = doubles([40.0, -20.0], [5.0, 90.0])
    one = MixtureOracle(doubles([0.1, 0.2]), doubles(0.5))
    by_chance = trained(one, x, sigmas, 40_000, generator)
    torch.testing.assert_close(by_chance, distilled(one.denoiser, x, sigmas), rtol=0, atol=0.02)
    other = two(0.1)
    gap = trained(other, x, sigmas, 4_000, generator) - distilled(other.denoiser, x, sigmas)
    assert gap.norm(dim=1).min() > 0.05


def test_the_same_noise_point_is_euler_s_step_on_average():
    oracle, n = two(0.1), 100_000
    x, t = doubles([0.1, 0.3]).repeat(n, 1), torch.full((n,), 0.7, dtype=torch.float64)
    points = same_noise_point(oracle, x, t, t / 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(points.mean(0), euler_step(oracle.denoiser, x, t, t / 2)[0], rtol=0, atol=0.005)


def test_the_reverse_sde_keeps_the_densities():
    oracle, generator = MixtureOracle(doubles([0.0]), doubles(0.5)), torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, dtype=torch.float64, generator=generator) * 1.25**0.5
    ends = reverse_sde(oracle.denoiser, start, karras_sigmas(200, 0.002, 1.0), generator)[-1]
    assert ends.std().item() == pytest.approx(0.5, abs=0.01)
