import math

import pytest
import torch

from cm_lightning.core.noise import (
    LogNormal,
    LogNormalIntervals,
    UniformIntervals,
    generators,
    karras_sigmas,
    unit_noise,
)

KARRAS_18 = [
    80, 57.5859847212, 40.7855737965, 28.374584604, 19.352452980, 12.910082381, 8.4009353091, 5.3151945218,
    3.2568215198, 1.9233398370, 1.0881706365, 0.58534812319, 0.29644228448, 0.13951646873, 0.059947311235,
    0.022934518372, 0.0075280199628, 0.002,
]  # fmt: skip


def test_karras_grid_has_the_published_levels():
    sigmas = karras_sigmas(18, 0.002, 80.0, 7.0)
    assert sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas, torch.tensor(KARRAS_18, dtype=torch.float64), rtol=1e-9, atol=0)
    assert sigmas[0] == 80.0
    assert sigmas[-1] == 0.002


def test_noise_of_numbered_samples_does_not_depend_on_the_batch():
    whole = unit_noise([5, 2, 3], generators(7, range(5)))
    parts = [unit_noise([len(rows), 2, 3], generators(7, rows)) for rows in (range(2), range(2, 5))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, unit_noise([5, 2, 3], generators(8, range(5))))


@pytest.mark.parametrize("arguments", [(1,), (5, 0.0), (5, 2.0, 1.0)])
def test_karras_grid_refuses_what_is_not_a_grid(arguments):
    with pytest.raises(ValueError, match="n >= 2"):
        karras_sigmas(*arguments)


def test_log_normal_has_its_moments_within_its_bounds():
    density = LogNormal(-1.1, 2.0)
    sigma = density.sample(200_000, generator=torch.Generator().manual_seed(0))
    assert sigma.log().median().item() == pytest.approx(-1.1, abs=0.02)
    assert (sigma.log() < 0.9).float().mean().item() == pytest.approx(0.8413, abs=0.004)  # one standard deviation
    assert sigma.min() >= 0.002
    assert sigma.max() <= 80


def test_interval_densities():
    sigmas = karras_sigmas(11)
    uniform = UniformIntervals().probabilities(sigmas)
    torch.testing.assert_close(uniform, torch.full((10,), 0.1, dtype=torch.float64))
    ict = LogNormalIntervals(-1.1, 2.0).probabilities(sigmas)
    assert ict.sum().item() == pytest.approx(1)
    i = 4  # by hand: the normal mass of ln sigma between the two levels, over that of the whole grid

    def cdf(x: float) -> float:
        return 0.5 * (1 + math.erf((math.log(x) + 1.1) / (2.0 * math.sqrt(2))))

    whole = cdf(80.0) - cdf(0.002)
    assert ict[i].item() == pytest.approx((cdf(sigmas[i].item()) - cdf(sigmas[i + 1].item())) / whole, rel=1e-9)
