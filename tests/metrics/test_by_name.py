"""Measures by the names of their numbers."""

import pytest

from cm_lightning.errors import ConfigError
from cm_lightning.metrics.by_name import measure_named
from cm_lightning.metrics.extractor import FashionClassifier, Inception, MnistClassifier, SecondMnistClassifier
from cm_lightning.metrics.features import DINOv2, TorchvisionFeatures
from cm_lightning.metrics.kernel import KernelDistance
from cm_lightning.metrics.precision_recall import PrecisionRecall


@pytest.mark.parametrize(
    ("name", "extractor", "comparisons"),
    [
        ("fid", Inception, []),
        ("kid", Inception, [KernelDistance]),
        ("recall", Inception, [PrecisionRecall]),
        ("frechet_mnist", MnistClassifier, []),
        ("kid_mnist", MnistClassifier, [KernelDistance]),
        ("precision_mnist", MnistClassifier, [PrecisionRecall]),
        ("accuracy", MnistClassifier, []),
        ("frechet_mnist2", SecondMnistClassifier, []),
        ("frechet_fashion", FashionClassifier, []),
        ("accuracy2", SecondMnistClassifier, []),
        ("frechet_resnet50", TorchvisionFeatures, []),
        ("kid_resnet18", TorchvisionFeatures, [KernelDistance]),
    ],
)
def test_the_measure_of_a_name(name, extractor, comparisons):
    measure = measure_named(name)
    assert type(measure.extractor) is extractor
    assert [type(comparison) for comparison in measure.comparisons] == comparisons
    kind = name.partition("_")[0]
    own = measure.extractor.accuracy_name if kind.startswith("accuracy") else measure.extractor.named(kind)
    assert name in (own, measure.name)  # it is the name that the measure gives to its number


def test_dinov2_needs_weights():
    assert type(measure_named("frechet_dinov2", "a/folder").extractor) is DINOv2
    with pytest.raises(ConfigError, match="DINOv2 needs weights"):
        measure_named("frechet_dinov2")


@pytest.mark.parametrize("name", ["", "frechet", "fid_mnist", "mid_grey", "psnr", "frechet_", "accuracy3", "loss"])
def test_there_is_no_other(name):
    with pytest.raises(ConfigError, match=f"unknown measure {name!r}: give fid, kid, "):
        measure_named(name)


def test_a_network_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="torchvision does not have a classifier 'resnet5'"):
        measure_named("frechet_resnet5")
