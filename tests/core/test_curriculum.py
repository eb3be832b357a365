import pytest
import torch

from cm_lightning.core.curriculum import (
    Clock,
    ConstantLevels,
    ContinuousCurriculum,
    DoublingLevels,
    GridCurriculum,
    ProgressiveLevels,
    WarmUp,
    ect_r,
)
from cm_lightning.core.noise import LogNormal, LogNormalIntervals, karras_sigmas
from cm_lightning.core.schedule import HoldThenCosine, InverseSquareRoot
from cm_lightning.core.target_rate import ConstantRate, ProgressiveRate
from cm_lightning.core.weighting import InverseGap, InverseVariance, Uniform
from cm_lightning.errors import ConfigError

K = 800_000


def test_progressive_levels():
    levels = ProgressiveLevels(2, 150)
    assert [levels(k, K) for k in (0, K // 4, K // 2, 3 * K // 4, K)] == [2, 76, 107, 131, 151]


def test_target_rate_in_both_variants():
    curriculum, start, half = GridCurriculum(ProgressiveLevels(2, 150)), Clock(0, K), Clock(K // 2, K)
    assert ProgressiveRate(mu0=0.9)(curriculum, start) == pytest.approx(0.9)
    assert ProgressiveRate(mu0=0.9, released_code=True)(curriculum, start) == pytest.approx(0.81)
    assert ProgressiveRate(mu0=0.9)(curriculum, half) == pytest.approx(0.9980325825, abs=1e-10)
    assert ProgressiveRate(mu0=0.9, released_code=True)(curriculum, half) == pytest.approx(0.9980140404, abs=1e-10)
    assert ConstantRate(0.95)(curriculum, Clock(7, K)) == 0.95


def test_mu_and_n_cannot_part():
    curriculum = GridCurriculum(ProgressiveLevels(2, 150))
    ProgressiveRate(ProgressiveLevels(2, 150)).check(curriculum)
    with pytest.raises(ConfigError, match="not those of the curriculum"):
        ProgressiveRate(ProgressiveLevels(2, 100)).check(curriculum)
    for without in (ContinuousCurriculum(), GridCurriculum(ConstantLevels(18)), WarmUp(ContinuousCurriculum())):
        with pytest.raises(ConfigError, match="ProgressiveLevels"):
            ProgressiveRate().check(without)
        ConstantRate().check(without)


def test_doubling_levels():
    levels = DoublingLevels(10, 1280)
    starts = [levels(k * 50_000, 400_000) for k in range(8)]
    assert starts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert levels(49_999, 400_000) == 11
    assert levels(400_000, 400_000) == 1281


def test_ect_mapping():
    t = torch.tensor([0.01, 1.0, 5.0], dtype=torch.float64)
    assert ect_r(t, 0).tolist() == pytest.approx([0, 0, 2.366142982])
    t = torch.tensor([1.0, 80.0], dtype=torch.float64)
    assert ect_r(t, 3).tolist() == pytest.approx([0.8030292893, 75])


def test_ect_stages_are_of_equal_length_and_end_with_the_last():
    curriculum = ContinuousCurriculum(stages=8)
    assert [curriculum.stage(k * 25_000, 200_000) for k in range(8)] == list(range(8))
    assert curriculum.stage(24_999, 200_000) == 0
    assert curriculum.stage(200_000, 200_000) == 7


@pytest.mark.parametrize(
    "curriculum",
    [
        GridCurriculum(ProgressiveLevels()),
        GridCurriculum(DoublingLevels(), LogNormalIntervals()),
        GridCurriculum(ConstantLevels(18)),
        ContinuousCurriculum(),
        WarmUp(ContinuousCurriculum(), 0.5),
    ],
    ids=["cm", "ict", "cd", "ect", "warm-up"],
)
@pytest.mark.parametrize("step", [0, 499, 999])
def test_pairs_descend_within_the_domain_and_follow_the_generator(curriculum, step):
    t, q, r = curriculum.draw(512, Clock(step, 1000), generator=torch.Generator().manual_seed(3))
    assert t.shape == q.shape == r.shape == (512,)
    assert not r.any()
    assert t.dtype == q.dtype == torch.float32
    assert (t > q).all()
    assert q.min() >= 0
    assert t.max() <= 80
    again = curriculum.draw(512, Clock(step, 1000), generator=torch.Generator().manual_seed(3))
    assert torch.equal(t, again[0])
    assert torch.equal(q, again[1])


def test_grid_pairs_are_neighbours_and_all_occur():
    sigmas = karras_sigmas(5).float()
    t, q, _ = GridCurriculum(ConstantLevels(5)).draw(1000, Clock(0, 1))
    i = (t[:, None] - sigmas).abs().argmin(1)
    assert torch.equal(t, sigmas[i])
    assert torch.equal(q, sigmas[i + 1])
    assert set(i.tolist()) == {0, 1, 2, 3}


def test_warm_up_has_the_clean_image_as_target_and_then_hands_its_own_clock_on():
    curriculum = WarmUp(ContinuousCurriculum(stages=4), fraction=0.2, density=LogNormal(-0.4, 1.6))
    t, q, _ = curriculum.draw(100, Clock(199, 1000))
    assert curriculum.target_is_data(Clock(199, 1000))
    assert not q.any()
    assert t.all()
    assert not curriculum.target_is_data(Clock(200, 1000))
    assert curriculum.progress(Clock(0, 1000)) == {"warm-up": 1.0}
    assert [curriculum.progress(Clock(200 + 200 * i, 1000))["stage"] for i in range(4)] == [0, 1, 2, 3]


def test_weightings():
    t, r = torch.tensor([2.0, 1.0]), torch.tensor([1.5, 0.0])
    assert Uniform()(t, r).tolist() == [1, 1]
    assert InverseGap()(t, r).tolist() == [2, 1]
    assert InverseGap(0.5)(t, r).tolist() == pytest.approx([2**0.5, 1])
    assert InverseVariance(0.5)(t, r).tolist() == [4.25, 5]


def test_learning_rate_rises_holds_drops_and_falls_to_nothing():
    schedule = HoldThenCosine(rise=10, hold=0.5, drop=0.4)
    values = [schedule(step, 100) for step in (0, 9, 49, 50, 75, 100)]
    assert values == pytest.approx([0.1, 1, 1, 0.4, 0.2, 0])


def test_a_learning_rate_that_falls_with_the_root_of_the_step():
    values = [InverseSquareRoot(100)(step, 1000) for step in (0, 100, 400, 900)]
    assert values == pytest.approx([1, 1, 1 / 2, 1 / 3])


def test_a_warm_up_of_the_whole_run_and_a_rate_that_only_holds():
    curriculum = WarmUp(ContinuousCurriculum(), fraction=1)
    assert curriculum.target_is_data(Clock(100, 100))
    assert not curriculum.draw(4, Clock(100, 100)).q.any()
    assert HoldThenCosine(rise=1, hold=1)(100, 100) == 1


def test_the_warm_up_shifts_one_clock_for_n_and_mu():
    curriculum = WarmUp(GridCurriculum(ProgressiveLevels(2, 150)), fraction=0.5)
    rate = ProgressiveRate(mu0=0.9)
    assert rate(curriculum, Clock(100, 1000)) == rate(curriculum, Clock(500, 1000)) == pytest.approx(0.9)
    assert curriculum.progress(Clock(1000, 1000))["N"] == 151


def test_warm_ups_within_each_other_shift_the_clock_once_each():
    inner = WarmUp(ContinuousCurriculum(stages=4), fraction=0.5)
    outer = WarmUp(inner, fraction=0.2)
    shown = [outer.progress(Clock(step, 1000)) for step in (100, 300, 600, 999)]
    assert shown == [{"warm-up": 1.0}, {"warm-up": 1.0}, {"warm-up": 0.0, "stage": 0}, {"warm-up": 0.0, "stage": 3}]
    assert outer.own_clock(Clock(700, 1000)) == Clock(100, 400)
    q = outer.draw(1000, Clock(999, 1000), generator=torch.Generator().manual_seed(0)).q
    t = inner.then.draw(1000, Clock(399, 400), generator=torch.Generator().manual_seed(0))
    assert torch.equal(q, t.q)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WarmUp(ContinuousCurriculum(), 1.5),
        lambda: HoldThenCosine(rise=0),
        lambda: HoldThenCosine(hold=-1),
        lambda: ConstantLevels(1),
    ],
)
def test_schedules_refuse_what_they_cannot_follow(make):
    with pytest.raises(ConfigError):
        make()


def test_a_grid_is_made_once_for_each_number_of_levels(monkeypatch):
    made = []
    monkeypatch.setattr(
        "cm_lightning.core.curriculum.karras_sigmas", lambda n, *args: made.append(n) or karras_sigmas(n, *args)
    )
    curriculum = GridCurriculum(ProgressiveLevels(2, 8), LogNormalIntervals())
    asked = [curriculum.levels(step, 40) for step in range(40)]
    with torch.inference_mode():  # as in a validation before the first step
        curriculum.draw(4, Clock(0, 40))
    weight = torch.ones((), requires_grad=True)
    for step in range(40):
        t, q, _ = curriculum.draw(4, Clock(step, 40))
        (weight * t * q).sum().backward()
    assert made == list(dict.fromkeys(asked))
    assert len(made) > 2


@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_a_run_may_be_too_short_for_a_schedule_to_fall(total):
    schedule = HoldThenCosine(rise=1, hold=0.9, drop=0.5)
    rates = [schedule(step, total) for step in range(total + 1)]
    assert rates[0] == 1
    assert all(rate in (0.0, 1.0) or rate <= 0.5 for rate in rates)
