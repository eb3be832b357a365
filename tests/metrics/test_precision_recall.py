import math
import time

import pytest
import torch

from cm_lightning.errors import ConfigError
from cm_lightning.metrics import precision_recall
from cm_lightning.metrics.precision_recall import PrecisionRecall


def points(n, width=8, seed=0, at=0.0):
    return at + torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def by_the_formula(real, drawn, k):
    """Equations 1 and 2, feature by feature."""

    def within(x, others):
        radii = [sorted(math.dist(a, b) for j, b in enumerate(others) if j != i)[k - 1] for i, a in enumerate(others)]
        return sum(any(math.dist(a, b) <= r for b, r in zip(others, radii, strict=True)) for a in x) / len(x)

    real, drawn = real.double().tolist(), drawn.double().tolist()
    return {"precision": within(drawn, real), "recall": within(real, drawn)}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_it_is_the_formula(k, shift, monkeypatch):
    monkeypatch.setattr(precision_recall, "_ROWS", 7)  # more than one block of rows
    real, drawn = points(30, 3), points(20, 3, seed=1, at=shift)
    found = PrecisionRecall(k).against(real)(drawn)
    assert found == pytest.approx(by_the_formula(real, drawn, k))
    assert shift or 0 < found["precision"] < 1


def test_neighbours_on_a_line():
    real, drawn = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[2.9], [30.0], [-1.1], [3.0]])
    # by the nearest neighbour the radii of the real are 1, 1, 1, 8; those of the drawn 0.1, 27, 4, 0.1
    assert PrecisionRecall(1).against(real)(drawn) == {"precision": 0.5, "recall": 1.0}


@pytest.mark.parametrize(
    ("real", "drawn", "precision", "recall"),
    [
        (points(50), points(50), 1, 1),  # identical
        (points(50), points(40, seed=1, at=1000), 0, 0),  # far
        (torch.ones(10, 4), torch.ones(6, 4), 1, 1),  # one feature, many times
        (points(50), points(50)[:1].repeat(20, 1), 1, 1 / 50),  # a collapse
    ],
)
def test_extremes(real, drawn, precision, recall):
    found = PrecisionRecall().against(real)(drawn)
    assert found == {"precision": precision, "recall": pytest.approx(recall)}


def test_a_mode_that_is_dropped_costs_recall_and_no_precision():
    real = torch.cat([points(100), points(100, seed=1, at=50)])
    both = PrecisionRecall().against(real)(torch.cat([points(100, seed=2), points(100, seed=3, at=50)]))
    one = PrecisionRecall().against(real)(points(200, seed=2))
    assert one["precision"] >= both["precision"] - 0.05
    assert one["recall"] < 0.6 * both["recall"]
    worse = PrecisionRecall().against(points(200, seed=2))(real)  # the second mode is not real
    assert worse["precision"] < 0.6


@pytest.mark.parametrize(("reals", "samples"), [(4, 3), (3, 4), (1, 1), (4, 4)])
def test_too_few_features_have_no_such_neighbours(reals, samples):
    found = PrecisionRecall(3).against(points(reals))(points(samples))
    assert math.isnan(found["precision"]) == (reals <= 3)
    assert math.isnan(found["recall"]) == (samples <= 3)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_number_of_neighbours_is_at_least_1(k):
    with pytest.raises(ConfigError, match=r"^PrecisionRecall: neighbours must be a whole number of at least 1, got"):
        PrecisionRecall(k)


def test_a_thousand_samples_take_less_than_a_second():
    against = PrecisionRecall().against(points(4000, 64))
    drawn = points(1000, 64, seed=1)
    start = time.process_time()
    against(drawn)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(("bad", "recall"), [(1, 1.0), (50, 0.0)])  # the neighbours of one lost sample cover for it
def test_features_that_are_not_numbers_lie_within_nothing(bad, recall):
    drawn = points(50)
    drawn[:bad] = torch.nan
    found = PrecisionRecall().against(points(50))(drawn)
    assert found["precision"] == pytest.approx(1 - bad / 50)
    assert found["recall"] == pytest.approx(recall)
