"""The second stage of TCM: its levels, its weights, and the network that answers below t'."""

import pytest
import torch

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.parameterization import BoundaryShifted, Map
from cm_lightning.core.truncated import TruncatedCurriculum, TruncatedStudent, TruncatedTarget, TruncatedWeighting
from cm_lightning.core.weighting import Uniform
from cm_lightning.errors import ConfigError
from tests.helpers import Dropout

END = Clock(1, 1)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_quantiles_are_student_s():
    expected = [1.0, 1.0126747164, 1.0429776473, 1.2211499536, 2.5235493625, 10.4443729531, 80.0]
    found = TruncatedStudent().quantile(doubles(0, 0.1, 0.25, 0.5, 0.75, 0.9, 1))
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    t = TruncatedStudent(low=2.0).sample(4096, generator=torch.Generator().manual_seed(0))
    assert 2 <= t.min() <= t.max() <= 80


def test_the_gap_is_ect_s():
    t = doubles(1, 5, 80)
    assert (t - TruncatedCurriculum().q(t)).tolist() == pytest.approx([0.003151531371, 0.005267714037, 0.08])


def test_a_share_of_the_batch_lies_at_the_boundary_in_places_drawn_anew():
    places = set()
    for seed in range(60):
        t, q, r = TruncatedCurriculum().draw(18, END, generator=torch.Generator().manual_seed(seed))
        at = t == 1
        assert int(at.sum()) == 4  # a quarter of 18, rounded down
        assert bool((q[at] < 1).all())
        assert not bool(r.any())
        places |= set(at.nonzero().flatten().tolist())
    assert places == set(range(18))


def test_the_weights_are_those_of_two_means():
    t, loss = doubles(1, 3, 5, 7, 1, 2, 9, 4), doubles(1, 2, 3, 4, 5, 6, 7, 8)
    weighted = (TruncatedWeighting(1.0, 0.25, 0.1, Uniform())(t, t / 2) * loss).mean()
    assert weighted.item() == pytest.approx(loss[t > 1].mean().item() + 0.1 * loss[t == 1].mean().item())
    by_gap = TruncatedWeighting()(t, t / 2)
    torch.testing.assert_close(by_gap[1:4] * t[1:4] / 2, doubles(4 / 3, 4 / 3, 4 / 3))


def test_the_first_stage_answers_below_the_boundary_under_the_same_mask():
    student, first = Dropout().train(), Dropout().train()
    with torch.no_grad():
        first.weight.fill_(3.0)
    above, below = (Map(BoundaryShifted(), net) for net in (student, first))
    x, t = torch.randn(4, 64), torch.tensor([0.5, 0.999, 1.0, 4.0])
    found = TruncatedTarget(above, below, 1.0)(x, t, torch.zeros(4))
    assert torch.equal(student.masks[0], first.masks[0])
    c_skip, c_out, _, _ = BoundaryShifted().coefficients(t)
    factor = torch.tensor([3.0, 3.0, 1.0, 1.0])[:, None]
    torch.testing.assert_close(found, c_skip[:, None] * x + c_out[:, None] * factor * student.masks[0])


@pytest.mark.parametrize("options", [{"low": 80.0}, {"low": 0.0}, {"high": 0.5}])
def test_a_density_without_room_is_refused(options):
    with pytest.raises(ConfigError, match=r"^TruncatedStudent: "):
        TruncatedStudent(**options)
