import math

import pytest
import torch

from cm_lightning.errors import ConfigError
from cm_lightning.metrics import kept
from cm_lightning.metrics.energy import EnergyDistance, mean_distance
from cm_lightning.metrics.scores import Scores


def energy(drawn, real, size=1000, **options):
    measure = EnergyDistance(real.shape[1], **options)
    scores = Scores([measure])
    scores.add_reference(real.split(size))
    return scores([(batch, None) for batch in drawn.split(size)])["energy"]


def normal(n, shift=0.0, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) + torch.tensor([shift, 0.0])


def test_the_distance_of_two_points_is_twice_their_distance():
    assert energy(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])) == pytest.approx(10)
    assert energy(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 3.0, 6.0]])) == pytest.approx(14)


def test_a_point_between_two():
    """2 * 1 - 0 - 1: the pairs of the two points are two at 0 and two at 2."""
    assert energy(torch.tensor([[0.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])) == pytest.approx(1)


def test_a_set_has_none_from_itself_in_any_order():
    points = normal(300)
    assert energy(points, points) == pytest.approx(0, abs=1e-6)
    assert energy(points.flip(0), points, size=7) == pytest.approx(0, abs=1e-6)


def test_two_gaussians():
    """The mean of |N(m, 2 I)| is sqrt(pi) at m = 0, and by Rice's formula for m = (2, 0) sqrt(pi) 1F1(-1/2; 1; -1)."""
    at_2 = math.sqrt(math.pi) * math.exp(-0.5) * (2 * torch.special.i0(torch.tensor(0.5)) + torch.special.i1(torch.tensor(0.5)))  # fmt: skip # noqa: E501
    found = energy(normal(4000, 2.0, seed=1), normal(4000))
    assert found == pytest.approx(2 * float(at_2) - 2 * math.sqrt(math.pi), rel=0.05)
    assert energy(normal(4000, seed=1), normal(4000)) < 0.003


def test_neither_the_sizes_of_the_batches_nor_earlier_samples_count():
    real, drawn = normal(200), normal(130, 0.5, seed=1)
    once = energy(drawn, real)
    assert energy(drawn, real, size=9) == pytest.approx(once, abs=1e-6)
    scores = Scores([EnergyDistance()])
    scores.add_reference([real])
    scores([(real + 5, None)])
    assert scores([(drawn, None)])["energy"] == pytest.approx(once, abs=1e-6)


@pytest.mark.parametrize("limit", [10_000, 50])
def test_it_does_not_depend_on_the_number_of_ranks(limit, monkeypatch):
    real, drawn = normal(200), normal(131, 0.5, seed=1)
    ranks = [EnergyDistance(limit=limit) for _ in range(2)]
    for rank, measure in enumerate(ranks):
        measure.start()
        measure._place = (rank, 2)
        measure._real = kept.KeptFeatures(rank, 2, limit)
        measure.reset()
        measure.add_reference(real[rank::2])
        measure.add(drawn[rank::2], None)

    def gathered(tensor):
        """What both ranks hold in place of what one of them gives."""
        pairs = [(a, b) for kind in ("_drawn", "_real") for name in ("keys", "features")
                 for a, b in [[getattr(getattr(m, kind), name) for m in ranks]]]  # fmt: skip
        return next([a, b] for a, b in pairs if any(tensor.shape == t.shape and torch.equal(tensor, t) for t in (a, b)))

    monkeypatch.setattr(kept, "gather_all_tensors", gathered)
    one = energy(drawn, real, limit=limit)
    assert [measure.compute()["energy"] for measure in ranks] == pytest.approx([one, one], abs=1e-6)


def test_the_reference_is_kept_and_read():
    real, drawn = normal(200), normal(130, 0.5, seed=1)
    first, second = EnergyDistance(limit=150), EnergyDistance(limit=150)
    first.start()
    second.start()
    first.add_reference(real)
    second.load_reference(first.reference())
    for measure in (first, second):
        measure.add(drawn, None)
    assert first.compute() == second.compute()
    assert first.identity() != EnergyDistance().identity()


def test_the_distances_within_a_set_are_those_from_itself():
    for size in (1, 49, 50, 51, 120):
        points = normal(size)
        assert mean_distance(points) == pytest.approx(mean_distance(points, points), rel=1e-5)
        assert mean_distance(points) == pytest.approx(torch.cdist(points, points).mean().item(), rel=1e-5, abs=1e-3)


def test_no_points_have_no_distance():
    assert math.isnan(energy(torch.empty(0, 2), normal(5)))
    assert math.isnan(mean_distance(torch.empty(0, 2), normal(5)))
    assert math.isnan(mean_distance(torch.empty(0, 2)))


@pytest.mark.parametrize(
    ("options", "line"),
    [({"dim": 0}, "EnergyDistance: dim must be a whole number of at least 1, got 0"),
     ({"limit": 1}, "EnergyDistance: limit must be a whole number of at least 2, got 1")],
)  # fmt: skip
def test_numbers_out_of_range_get_a_line(options, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        EnergyDistance(**options)
