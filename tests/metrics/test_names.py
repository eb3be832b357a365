import pytest

from cm_lightning.metrics.names import decimals, has_direction, is_leading, is_rising

RISING = ["accuracy", "accuracy2", "val/accuracy_nfe1", "val/accuracy2_nfe4", "precision", "recall", "precision_mnist2",
          "test/recall_mnist_nfe1", "precision_resnet50", "val/recall_dinov2_nfe2", "clip_score"]  # fmt: skip
FALLING = ["frechet_mnist", "frechet_mnist2", "fid", "kid", "kid_mnist2", "val/fid_nfe1", "val/loss", "accuracyloss",
           "energy", "val/energy_nfe1"]  # fmt: skip
NEITHER = ["mid_grey", "black", "val/mid_grey_nfe1", "test/black_nfe4", "val/black_floor"]


@pytest.mark.parametrize("metric", [*RISING, *FALLING, *NEITHER])
def test_a_name_says_what_is_better(metric):
    assert is_rising(metric) == (metric in RISING)
    assert has_direction(metric) == (metric not in NEITHER)


def test_a_summary_has_the_first_classifier_and_no_parts():
    names = ["frechet_mnist", "kid_mnist", "precision_mnist", "accuracy", "frechet_mnist2", "accuracy2", "clip_score",
             "fid", "frechet_resnet50", "frechet_dinov2", "kid", "mid_grey", "black", "energy"]  # fmt: skip
    leading = ["frechet_mnist", "accuracy", "clip_score", "fid", "frechet_resnet50", "frechet_dinov2", "energy"]
    assert [name for name in names if is_leading(name)] == leading


@pytest.mark.parametrize(
    ("metric", "value", "digits"),
    [("frechet_mnist", 12.3, 1), ("accuracy2", 0.9, 3), ("kid", 0.00012, 5), ("kid_mnist", -0.01, 5),
     ("kid_mnist2", 12.0, 3), ("mid_grey", 0.05, 3), ("val/energy_nfe1", 0.00034, 5), ("frechet_mnist", -150.0, 1)],
)  # fmt: skip
def test_a_value_has_as_many_digits_as_tell_something(metric, value, digits):
    assert decimals(metric, value) == digits
