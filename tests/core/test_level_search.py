"""The search of noise levels on scores whose best level is known."""

import math
from itertools import pairwise

import pytest
import torch

from cm_lightning.core.level_search import search_level, search_levels
from cm_lightning.core.sampler import multistep
from cm_lightning.errors import ConfigError


def biased(x, t):
    """A model of data N(0, 0.5^2) whose samples vary too little: the more noise it removes, the less."""
    scale = 0.5 / (0.25 + t**2).sqrt() * (1 - 0.2 * t / (1 + t))
    return scale[:, None] * x


def test_the_level_of_two_steps_in_closed_form():
    def loss_of_std(sigma):
        one = 0.4012267315182**2
        t = torch.tensor([sigma], dtype=torch.float64)
        scale = float(biased(torch.ones(1, 1, dtype=torch.float64), t))
        return 0.5 - scale * math.sqrt(one + sigma**2)

    (level, loss) = min(search_level(loss_of_std, 0.002, 80, tolerance=1e-3), key=lambda point: point[1])
    assert level == pytest.approx(1.073356337915, rel=1e-2)
    assert 0.5 - loss == pytest.approx(0.4337688668869, abs=1e-6)


def test_the_level_of_two_steps_by_samples_from_the_same_noise():
    z, again = torch.randn(2, 4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    again = again - (again * z).mean() / z.square().mean() * z  # as for any number of samples: uncorrelated

    def loss_of_std(tail):
        return abs(float(multistep(biased, z, [80.0, *tail], renoise=lambda x: again).std()) - 0.5)

    curves = search_levels(loss_of_std, 1, 0.002, 80, tolerance=0.02)
    assert curves[0].best[0] == pytest.approx(1.073356337915, rel=0.1)


@pytest.mark.parametrize("best", [0.0021, 0.01, 0.821, 5.0, 79.0])
@pytest.mark.parametrize("points", [1, 2, 7])
def test_a_score_with_one_minimum(best, points):
    asked = []

    def score(sigma):
        asked.append(sigma)
        return abs(math.log(sigma / best)) ** 1.5

    found = search_level(score, 0.002, 80, points, tolerance=0.01)
    assert min(found, key=lambda point: point[1])[0] == pytest.approx(best, rel=0.02)
    assert len(asked) == len(set(asked)) == len(found)
    assert list(found) == sorted(found)
    assert 0.002 < found[0][0] < found[-1][0] < 80


def test_the_lower_of_two_minima_is_found():
    def score(sigma):
        return min(1 + abs(math.log(sigma / 0.05)), abs(math.log(sigma / 5)))

    found = search_level(score, 0.002, 80)
    assert min(found, key=lambda point: point[1])[0] == pytest.approx(5, rel=0.1)


def test_levels_are_found_one_below_the_other_and_stay():
    wanted = [10.0, 1.0, 0.1]
    asked = []

    def score(levels):
        asked.append(tuple(levels))
        return sum(abs(math.log(a / b)) for a, b in zip(levels, wanted, strict=False))

    curves = search_levels(score, 3, 0.002, 80, tolerance=0.01)
    assert curves[-1].levels == pytest.approx(wanted, rel=0.02)
    assert [len(curve.above) for curve in curves] == [0, 1, 2]
    assert curves[2].above == tuple(curves[1].levels)
    assert all(a > b for levels in asked for a, b in pairwise(levels))


def test_the_search_ends_where_there_is_no_room_below():
    curves = search_levels(lambda levels: levels[-1], 5, 0.002, 80, tolerance=0.2)
    assert 1 <= len(curves) < 5
    assert curves[-1].best[0] < 0.002 * math.exp(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0}, "low must be a finite number above 0"),
        ({"low": 81}, "low must be below high"),
        ({"points": 0}, "points must be"),
        ({"tolerance": 0}, "tolerance must be"),
        ({"score": lambda sigma: math.nan}, r"the score at level 0\.4 is nan: take more samples"),
    ],
)
def test_what_the_search_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        search_level(**{"score": lambda sigma: 0.0, "low": 0.002, "high": 80, "points": 1, **options})
