import pytest
import torch

from cm_lightning.data.digits import embedded_digits
from cm_lightning.data.images import to_unit_range
from cm_lightning.errors import CheckpointError
from cm_lightning.metrics.frechet import DigitScores
from cm_lightning.metrics.judge import WEIGHTS, load_judge, train_judge


def test_the_shipped_judge_reads_held_out_digits():
    images, labels = embedded_digits("val")
    accuracy = (load_judge().classify(to_unit_range(images)).argmax(1) == labels).float().mean()
    assert accuracy >= 0.98
    assert WEIGHTS.stat().st_size < 2**20


def test_frechet_distance_is_the_closed_form_of_the_features():
    judge = load_judge()
    images, labels = embedded_digits("val")
    real, fake = to_unit_range(images[::2]), to_unit_range(images[1::2])
    scores = DigitScores(judge, real.split(100))(fake, labels[1::2])
    a, b = (judge(x).double() for x in (real, fake))
    covariances = torch.cov(a.T) @ torch.cov(b.T)
    root = torch.linalg.eigvals(covariances).sqrt().real.sum()
    exact = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * root
    assert scores["frechet_mnist"] == pytest.approx(exact.item(), rel=1e-3, abs=1e-3)
    assert scores["accuracy"] > 0.97


def test_scores_tell_digits_from_noise_and_from_wrong_labels():
    images, labels = embedded_digits("val")
    real = to_unit_range(images)
    scores = DigitScores(load_judge(), real.split(500))
    same = scores(real, labels)
    assert same["frechet_mnist"] == pytest.approx(0, abs=1e-2)
    assert scores(torch.rand_like(real) * 2 - 1, labels)["frechet_mnist"] > 500
    assert scores(real, (labels + 1) % 10)["accuracy"] < 0.01
    assert "accuracy" not in scores(real, None)


def test_training_a_judge_is_deterministic_and_learns():
    images, labels = embedded_digits("train")
    images, labels = to_unit_range(images[::8]), labels[::8]
    first, second = (train_judge(images, labels, epochs=8, seed=3) for _ in range(2))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    held_out, held_out_labels = embedded_digits("val")
    assert (first.classify(to_unit_range(held_out)).argmax(1) == held_out_labels).float().mean() > 0.7


def test_a_broken_file_of_weights_is_named(tmp_path):
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"judge.safetensors .* train-judge"):
        load_judge(path)
