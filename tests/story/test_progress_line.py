"""The bar's line fits, whatever the numbers are."""

import itertools

import pytest

from cm_lightning.progress_line import Facts, bar_line, duration, evaluation_line, plain_line, speed

EXTREMES = list(
    itertools.product(
        ["training", "stage 2 of 3", "tangent at 40%, a phase of a very long name indeed\nin two lines", ""],
        ["1/12", "1000000/1000000"],
        [None, 1e-9, -1.234e-9, 1e12, float("nan"), float("inf")],
        [None, 0.001, 0.01, 99.96, 1234.5, 1e6, 1e12],
        [None, 0.0, 3599.9, 1e6, 1e12, float("inf")],
    )
)


@pytest.mark.parametrize("width", [20, 40, 79, 200])
def test_no_line_is_wider_than_asked(width):
    for phase, steps, loss, images, seconds in EXTREMES:
        for fraction, ended in ((None, False), (0.5, False), (1.0, True)):
            line = bar_line(Facts(phase, fraction, steps, loss, images, seconds, ended), width)
            assert len(line) <= width
            assert "\n" not in line
            assert width < 79 or steps in line
            assert width < 79 or loss is None or "loss" in line


def test_the_lines():
    facts = Facts("stage 2 of 3", 0.5, "825/1650", 0.12345, 1234.5, 252.0)
    assert bar_line(facts, 79) == "stage 2 of 3  ━━━━━━━━╌╌╌╌╌╌╌╌╌  825/1650  loss 0.123  1234 images/s  4:12 left"
    assert plain_line(facts) == "step 825/1650 (50%)  stage 2 of 3  loss 0.123  1234 images/s  4:12 left"
    ended = Facts("trained", 1.0, "1650/1650", 0.1, 20_000.0, 4000.0, True)
    assert plain_line(ended) == "step 1650/1650 (100%)  trained  loss 0.1  20k images/s  in 1:06:40"
    assert plain_line(Facts("training", None, "7")) == "step 7  training"
    assert evaluation_line("samples", 1, 4, 40) == "samples  ━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  1/4"
    assert evaluation_line("evaluation", 0, 0, 40) == "evaluation  0"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0:00"), (-3, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01"), (86_400, "1 d 0 h"),
     (1e12, "years"), (float("inf"), "?"), (float("nan"), "?")],
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("images", "said"),
    [(0.001, "<0.01"), (0.01, "0.01"), (1.234, "1.23"), (99.96, "100"), (1234.4, "1234"), (9999, "9999"),
     (12_345, "12.3k"), (999_400, "999k"), (1e6, "1M"), (1.5e8, "150M"), (1e12, ">1G")],
)  # fmt: skip
def test_speeds(images, said):
    assert speed(images) == said
