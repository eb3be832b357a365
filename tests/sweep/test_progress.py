import pytest

from cm_lightning.sweep.progress import duration, progress
from cm_lightning.sweep.search import Search
from cm_lightning.sweep.trials import Trial


class Of(Search):
    def __init__(self, left):
        self.number = left

    def propose(self, trials):
        return None

    def left(self, trials):
        return self.number


def trials(*seconds):
    return [Trial(number, {}, "finished", None, took) for number, took in enumerate(seconds, 1)]


@pytest.mark.parametrize(
    ("left", "done", "count", "again", "expected"),
    [
        (6, [], None, 0, " of 6"),
        (4, [10, 30], None, 0, " of 6 (about 80 s left)"),
        (4, [10, 30], 3, 0, " of 3 (about 20 s left)"),
        (None, [10, 30], 5, 0, " of 5 (about 60 s left)"),
        (None, [10, 30], None, 0, ""),
        (4, [600.0], None, 1, " of 5 (about 50 min left)"),
        (0, [10, 30], 1, 1, " of 2 (about 20 s left)"),  # more trials than the count now says
    ],
)
def test_how_far_a_sweep_is(left, done, count, again, expected):
    assert progress(Of(left), trials(*done), count, again) == expected


def test_trials_that_were_interrupted_tell_nothing_of_the_time():
    interrupted = Trial(1, {}, "interrupted", None, 5000.0)
    assert progress(Of(1), [interrupted, *trials(10)], None, 1) == " of 3 (about 20 s left)"


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0 s"), (99, "99 s"), (120, "2 min"), (7200, "2.0 h")])
def test_a_duration_has_a_unit_that_suits_it(seconds, expected):
    assert duration(seconds) == expected
