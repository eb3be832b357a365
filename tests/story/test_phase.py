"""What a part of a run is called."""

import pytest

from cm_lightning.core.curriculum import (
    Clock,
    ConstantLevels,
    ContinuousCurriculum,
    DoublingLevels,
    GridCurriculum,
    ProgressiveLevels,
    WarmUp,
)
from cm_lightning.core.limit_times import OneTime, TwoTimes
from cm_lightning.core.objective import Chord, Tangent
from cm_lightning.core.path import TrigFlow
from cm_lightning.core.schedule import Ramp
from cm_lightning.core.trajectory import SameNoise
from tests.helpers import module

WARM = WarmUp(ContinuousCurriculum(stages=3), 0.25)


@pytest.mark.parametrize(
    ("curriculum", "phases"),
    [
        (ContinuousCurriculum(stages=2), ["stage 1 of 2", "stage 1 of 2", "stage 2 of 2", "stage 2 of 2"]),
        (WARM, ["warm-up", "stage 1 of 3", "stage 2 of 3", "stage 3 of 3"]),
        (WarmUp(WARM, 0.5), ["warm-up", "warm-up", "warm-up", "stage 3 of 3"]),
        (WarmUp(WARM, 1.0), ["warm-up"] * 4),
        (WarmUp(OneTime(), 0.5), ["warm-up", "warm-up", "", ""]),
        (GridCurriculum(ConstantLevels(18)), ["18 levels"] * 4),
        (GridCurriculum(DoublingLevels(10, 40)), ["11 levels", "11 levels", "21 levels", "41 levels"]),
        (GridCurriculum(ProgressiveLevels(2, 150)), ["2 levels", "76 levels", "107 levels", "151 levels"]),
        (TwoTimes(), [""] * 4),
    ],
)
def test_curricula(curriculum, phases):
    assert [curriculum.phase(Clock(step, 1000)) for step in (0, 250, 500, 1000)] == phases


@pytest.mark.parametrize(
    ("ramp", "curriculum", "phases"),
    [
        (Ramp(), OneTime(), [""] * 3),
        (Ramp(0.2, 0.4), OneTime(), ["velocity", "tangent at 50%", ""]),
        (Ramp(0.2, 0.4), WARM, ["velocity, warm-up", "tangent at 50%, stage 1 of 3", "stage 3 of 3"]),
    ],
)
def test_the_ramp_of_a_tangent(ramp, curriculum, phases):
    objective = Tangent(curriculum, SameNoise(TrigFlow()), warm_up=ramp)
    assert [objective.phase(Clock(step, 1000)) for step in (0, 300, 900)] == phases


def test_a_module_has_the_phase_of_its_objective_and_else_says_that_it_trains():
    own = module(curriculum=WARM)
    assert isinstance(own.objective, Chord)
    assert [own.phase(Clock(step, 1000)) for step in (0, 999)] == ["warm-up", "stage 3 of 3"]
    own.objective.curriculum = OneTime()
    assert own.phase(Clock(0, 1000)) == "training"
