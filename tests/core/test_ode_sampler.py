import math

import pytest
import torch

from cm_lightning.core.ode_sampler import DDIM, Euler, Heun, ddpm_sigmas
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.errors import ConfigError


class Counting:
    """A denoiser that counts its own calls."""

    def __init__(self, oracle):
        self.oracle, self.calls = oracle, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.oracle.denoiser(x, sigma)


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [(Heun(), 35), (Heun(), 79), (Heun(), 3), (Euler(), 1), (Euler(), 18), (DDIM(), 50), (DDIM(), 1)],
)
def test_a_sample_costs_the_evaluations_asked_for(sampler, nfe):
    denoiser = Counting(GaussianOracle())
    sampler(denoiser, torch.randn(2, 3), sampler.sigmas(nfe))
    assert denoiser.calls == nfe


@pytest.mark.parametrize("sampler", [Heun(), Euler(), DDIM()])
@pytest.mark.parametrize("nfe", [0, -1])
def test_numbers_that_cannot_be(sampler, nfe):
    with pytest.raises(ConfigError, match="evaluation"):
        sampler.sigmas(nfe)


def test_heun_takes_odd_numbers():
    with pytest.raises(ConfigError, match="2N - 1"):
        Heun().sigmas(18)


@pytest.mark.parametrize(("sampler", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order_of_convergence_of_whole_trajectories(sampler, order):
    oracle = GaussianOracle(0.5, sigma_min=0.0)
    z = torch.randn(4, 2, dtype=torch.float64)
    exact = oracle.consistency(80 * z, torch.full((4,), 80.0, dtype=torch.float64))
    errors = []
    for levels in (200, 400):
        sigmas = sampler.sigmas(levels if order == 1 else 2 * levels - 1)
        errors.append((sampler(oracle.denoiser, z, sigmas) - exact).abs().max().item())
    # the last Euler step, from 0.002 to 0, is the same in both and far below
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_ddpm_levels():
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    assert alpha_bar[999].item() == pytest.approx(4.0358e-5, rel=1e-4)  # Ho et al.: the usual schedule
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert set(ddpm_sigmas(50, 1e3).tolist()) <= set(levels.tolist())
    for n in (1, 2, 50, 500):
        sigmas = ddpm_sigmas(n)
        assert len(sigmas) == n
        assert (sigmas[1:] < sigmas[:-1]).all()  # no evaluation is spent twice on a level
        assert 79 < sigmas[0] <= 80
    assert 0.05 < ddpm_sigmas(50)[-1] < 0.1


def test_ddim_is_the_usual_update_in_the_space_of_alpha_bar():
    """x' = sqrt(a') x0 + sqrt(1 - a') eps, with x0 and eps from x = sqrt(a) x0 + sqrt(1 - a) eps (DDIM, Eq. 12)."""
    oracle = GaussianOracle(0.5)
    sigmas = ddpm_sigmas(10)[3:]
    z = torch.randn(5, 2, dtype=torch.float64)
    ours = DDIM()(oracle.denoiser, z, sigmas)
    a = 1 / (1 + sigmas**2)
    x = a[0].sqrt() * sigmas[0] * z
    for now, following in zip(a, [*a[1:], torch.tensor(1.0)], strict=True):
        sigma = ((1 - now) / now).sqrt().expand(5)
        x0 = oracle.denoiser(x / now.sqrt(), sigma)
        eps = (x - now.sqrt() * x0) / (1 - now).sqrt()
        x = following.sqrt() * x0 + (1 - following).sqrt() * eps
    torch.testing.assert_close(ours, x)
