import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from cm_lightning.data.digits import embedded_digits
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.images import to_unit_range
from cm_lightning.metrics.classifier import load_classifier
from cm_lightning.metrics.extractor import Inception, MnistClassifier
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.scores import Scores, load_reference, save_reference


@pytest.fixture(scope="module")
def digits():
    images, labels = embedded_digits("val")
    return to_unit_range(images), labels


def scores_against(real, extractor=None):
    scores = Scores([FeatureScores(extractor or MnistClassifier())])
    scores.add_reference(real.split(300))
    return scores


def test_the_distance_is_the_closed_form_of_the_features(digits):
    images, labels = digits
    scores = scores_against(images[::2])([(images[1::2], labels[1::2])])
    a, b = (load_classifier()(x).double() for x in (images[::2], images[1::2]))
    root = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).sqrt().real.sum()
    exact = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * root
    assert scores["frechet_mnist"] == pytest.approx(exact.item(), rel=1e-3)
    assert scores["accuracy"] > 0.97


def test_it_is_torchmetrics_with_the_same_features(digits):
    images, _ = digits
    theirs = FrechetInceptionDistance(feature=load_classifier())
    theirs.update(images[::2], real=True)
    theirs.update(images[1::2], real=False)
    ours = scores_against(images[::2])([(batch, None) for batch in images[1::2].split(70)])
    assert ours["frechet_mnist"] == pytest.approx(theirs.compute().item(), rel=1e-3)


def test_scores_tell_digits_from_noise_and_from_wrong_labels(digits):
    images, labels = digits
    scores = scores_against(images)
    same = scores([(images, labels)])
    assert same["frechet_mnist"] == pytest.approx(0, abs=1e-2)
    assert scores([(torch.rand_like(images) * 2 - 1, labels)])["frechet_mnist"] > 500
    assert scores([(images, (labels + 1) % 10)])["accuracy"] < 0.01
    assert "accuracy" not in scores([(images, None)])


def test_reference_statistics_survive_the_disk_and_damage_is_named(digits, tmp_path):
    images, labels = digits
    made, read = scores_against(images[::2]), Scores([FeatureScores(MnistClassifier())])
    path = tmp_path / "deep/reference.safetensors"
    save_reference(made.measures[0], path, write=True)
    load_reference(read.measures[0], path)
    assert read([(images, labels)]) == made([(images, labels)])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"reference.safetensors does not hold reference statistics"):
        load_reference(read.measures[0], path)


def test_fid_is_torchmetrics_on_images_of_8_bits(inception_file):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    ours = scores_against(images[:3], Inception(str(inception_file)))([(images[3:], None)])
    theirs = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(inception_file))
    a, b = theirs.inception(((images + 1) * 127.5).round().byte()).double().split(3)
    # their own formula would decompose 2048 x 2048 matrices, of rank 2
    root = torch.linalg.matrix_norm((a - a.mean(0)) @ (b - b.mean(0)).T / 2, "nuc")
    exact = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * root
    assert ours["fid"] == pytest.approx(exact.item(), rel=1e-3, abs=1e-3)
    assert ours.keys() == {"fid", "kid", "precision", "recall"}


def test_missing_inception_weights_are_named(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"no Inception weights at nowhere.pth"):
        Inception("nowhere.pth").distance()
    (tmp_path / "broken.pth").write_bytes(b"x")
    with pytest.raises(ConfigError, match="weights-inception-2015"):
        Inception(str(tmp_path / "broken.pth")).distance()
