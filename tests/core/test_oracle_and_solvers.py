import itertools
import math

import pytest
import torch

from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.oracle import BoxesOracle, GaussianOracle, MixtureOracle
from cm_lightning.core.sampler import multistep, one_step, spread_sigmas
from cm_lightning.core.solver import euler_step, heun_step


def mixture() -> MixtureOracle:
    means = torch.tensor([[0.6, 0.2], [-0.5, 0.4], [0.0, -0.7]], dtype=torch.float64)
    stds = torch.tensor([0.1, 0.2, 0.15], dtype=torch.float64)
    return MixtureOracle(means, stds, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def endpoint_error(step, oracle: GaussianOracle, n: int) -> float:
    x = 80 * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = oracle.consistency(x, torch.full((8,), 80.0, dtype=torch.float64))
    sigmas = karras_sigmas(n)
    for high, low in itertools.pairwise(sigmas):
        x = step(oracle.denoiser, x, high.expand(8), low.expand(8))
    return (x - exact).abs().max().item()


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_order_of_convergence_on_the_karras_grid(step, order):
    coarse, fine = (endpoint_error(step, GaussianOracle(0.5), n) for n in (201, 401))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_gaussian_consistency_is_the_closed_form_and_constant_along_its_flow():
    oracle = GaussianOracle(0.5)
    x, t = torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    expected = 3 * math.sqrt((0.25 + 0.002**2) / (0.25 + 4))
    assert oracle.consistency(x, t).item() == pytest.approx(expected, rel=1e-12)
    earlier = oracle.flow(x, t, t / 7)
    torch.testing.assert_close(oracle.consistency(earlier, t / 7), oracle.consistency(x, t))
    assert oracle.denoiser(x, t).item() == pytest.approx(3 * 0.25 / 4.25)


def test_mixture_of_one_component_is_the_gaussian():
    one = MixtureOracle(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    x = 3 * torch.randn(16, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 80, 16, dtype=torch.float64)
    torch.testing.assert_close(one.denoiser(x, t), GaussianOracle(0.5).denoiser(x, t))
    torch.testing.assert_close(one.consistency(x, t), GaussianOracle(0.5).consistency(x, t), rtol=1e-8, atol=1e-8)


def test_mixture_denoiser_is_the_posterior_mean():
    oracle = mixture()
    generator = torch.Generator().manual_seed(0)
    x0 = oracle.sample(2_000_000, generator)
    t = 0.5
    x = x0 + t * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    near = ((x - torch.tensor([0.3, 0.1])).abs() < 0.05).all(1)
    point = x[near].mean(0, keepdim=True)
    exact = oracle.denoiser(point, torch.tensor([t], dtype=torch.float64))
    torch.testing.assert_close(x0[near].mean(0, keepdim=True), exact, rtol=0, atol=0.01)


def test_mixture_flow_ends_at_the_boundary_and_runs_back():
    oracle = mixture()
    x = torch.randn(8, 2, dtype=torch.float64)
    t = torch.full((8,), 5.0, dtype=torch.float64)
    down = oracle.flow(5 * x, t, t / 50)
    torch.testing.assert_close(oracle.flow(down, t / 50, t), 5 * x, rtol=1e-7, atol=1e-7)
    eps = torch.full((8,), oracle.sigma_min, dtype=torch.float64)
    torch.testing.assert_close(oracle.consistency(x, eps), x)


def test_one_step_of_the_oracle_draws_the_data():
    oracle = GaussianOracle(0.5)
    z = torch.randn(100_000, 1, dtype=torch.float64)
    assert one_step(oracle.consistency, z).std().item() == pytest.approx(0.5, rel=0.01)


def test_multistep_calls_the_function_once_a_level_and_keeps_the_distribution():
    oracle, levels = GaussianOracle(0.5), []

    def f(x, sigma):
        levels.append(sigma[0].item())
        return oracle.consistency(x, sigma)

    x = multistep(f, torch.randn(100_000, 1, dtype=torch.float64), [80.0, 0.821, 0.002])
    assert levels == [80.0, 0.821, 0.002]
    assert x.std().item() == pytest.approx(0.5, rel=0.01)


def test_multistep_adds_noise_of_the_root_of_tau_squared_less_eps_squared():
    x = multistep(lambda x, sigma: x, torch.zeros(1, 1), [80.0, 0.5], sigma_min=0.3, renoise=torch.ones_like)
    assert x.item() == pytest.approx(0.4)


def test_spread_levels_start_at_the_top_and_stop_above_the_bottom():
    assert spread_sigmas(1) == [80.0]
    assert spread_sigmas(2) == pytest.approx([80.0, 2.5152189], rel=1e-5)
    assert spread_sigmas(4)[0] == 80.0
    assert len(spread_sigmas(4)) == 4


def board() -> BoxesOracle:
    centres = [[-0.75, -0.75], [0.25, -0.75], [-0.75, 0.25], [0.25, 0.25]]
    return BoxesOracle(torch.tensor(centres, dtype=torch.float64), 0.25, steps=128)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_the_denoiser_of_boxes_is_the_posterior_mean_by_quadrature(sigma):
    side = (torch.arange(400, dtype=torch.float64) + 0.5) / 800 - 0.25  # the middles of 400 cells of a box
    cells = torch.cartesian_prod(side, side)
    x0 = torch.cat([centre + cells for centre in board().centres])
    for point in ([0.0, 0.01], [0.3, 0.2], [-0.52, -0.6], [0.9, 0.9]):
        x = torch.tensor([point], dtype=torch.float64)
        weights = (-(x0 - x).square().sum(1) / (2 * sigma**2)).softmax(0)
        found = board().denoiser(x, torch.tensor([sigma], dtype=torch.float64))
        torch.testing.assert_close(found, weights[None] @ x0, rtol=0, atol=1e-4)


def test_far_from_all_boxes_the_nearest_edge_remains():
    x = torch.tensor([[50.0, 0.3], [0.3, -40.0]], dtype=torch.float64)
    found = board().denoiser(x, torch.full((2,), 0.01, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.3], [0.3, -1.0]]).double(), rtol=0, atol=1e-5)


def test_trajectories_of_boxes_end_in_them_with_the_mass_of_each():
    oracle = board()
    z = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = oracle.consistency(80 * z, torch.full((500,), 80.0, dtype=torch.float64))
    inside = ((ends[:, None] - oracle.centres).abs() < oracle.half + 2 * oracle.sigma_min).all(-1)
    assert inside.any(1).double().mean() > 0.995
    torch.testing.assert_close(inside.double().mean(0), torch.full((4,), 0.25).double(), rtol=0, atol=0.06)
