import pytest
import torch

from cm_lightning.data.digits import embedded_digits
from cm_lightning.errors import CheckpointError
from cm_lightning.images import to_unit_range
from cm_lightning.metrics.judge import WEIGHTS, load_judge, train_judge


def test_the_shipped_judge_reads_held_out_digits():
    images, labels = embedded_digits("val")
    accuracy = (load_judge().classify(to_unit_range(images)).argmax(1) == labels).float().mean()
    assert accuracy >= 0.98
    assert WEIGHTS.stat().st_size < 2**20


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
