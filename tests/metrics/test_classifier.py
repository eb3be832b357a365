from dataclasses import replace

import pytest
import torch

from cm_lightning.commands.train_classifier import main as train
from cm_lightning.data.digits import embedded_digits, permuted_digits
from cm_lightning.errors import CheckpointError, DataError
from cm_lightning.images import to_unit_range
from cm_lightning.metrics.classifier import FIRST, WEIGHTS, load_classifier, train_classifier
from cm_lightning.metrics.second_classifier import (
    FASHION,
    FASHION_WEIGHTS,
    SECOND,
    SECOND_WEIGHTS,
    SecondDigitClassifier,
)
from tests.data.files import write_mnist


def test_the_shipped_classifier_reads_held_out_digits():
    images, labels = embedded_digits("val")
    accuracy = (load_classifier().classify(to_unit_range(images)).argmax(1) == labels).float().mean()
    assert accuracy >= 0.98
    assert WEIGHTS.stat().st_size < 2**20


def test_training_a_classifier_is_deterministic_and_learns():
    images, labels = embedded_digits("train")
    images, labels = to_unit_range(images[::8]), labels[::8]
    first, second = (train_classifier(images, labels, epochs=8, seed=3) for _ in range(2))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    held_out, held_out_labels = embedded_digits("val")
    assert (first.classify(to_unit_range(held_out)).argmax(1) == held_out_labels).float().mean() > 0.7


def test_the_second_classifier_reads_the_digits_it_was_not_trained_on():
    images, labels = permuted_digits("val")
    classifier = load_classifier(SECOND_WEIGHTS, SecondDigitClassifier)
    accuracy = (classifier.classify(to_unit_range(images)).argmax(1) == labels).float().mean()
    assert accuracy >= 0.987
    assert classifier(to_unit_range(images[:2])).shape == (2, classifier.num_features) == (2, 96)
    assert SECOND_WEIGHTS.stat().st_size < 450 * 1024
    assert sum(p.numel() for p in classifier.parameters()) < 200_000


def test_the_second_split_is_another_of_the_same_digits():
    first = {split: {image.numpy().tobytes() for image in embedded_digits(split)[0]} for split in ("train", "val")}
    second = {split: {image.numpy().tobytes() for image in permuted_digits(split)[0]} for split in ("train", "val")}
    assert [len(permuted_digits(split)[1]) for split in ("train", "val")] == [4000, 1000]
    assert first["train"] | first["val"] == second["train"] | second["val"]
    assert not second["train"] & second["val"]
    assert 100 < len(first["val"] & second["val"]) < 300  # a fifth, as chance has it
    images, labels = permuted_digits("val")
    known = {image.numpy().tobytes(): int(label) for image, label in zip(*embedded_digits("val"), strict=True)}
    shared = [(known[key], int(label)) for image, label in zip(images, labels, strict=True)
              if (key := image.numpy().tobytes()) in known]  # fmt: skip
    assert all(a == b for a, b in shared)


def test_the_classifier_of_clothes_ships_and_is_small():
    classifier = load_classifier(FASHION_WEIGHTS, SecondDigitClassifier)
    assert classifier(torch.zeros(2, 1, 28, 28)).shape == (2, 96)
    assert FASHION_WEIGHTS.stat().st_size < 450 * 1024


def test_the_command_trains_one_of_clothes(tmp_path, capsys):
    write_mnist(tmp_path)
    path = tmp_path / "j.safetensors"
    training = replace(FASHION, batch=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm_lightning.metrics.second_classifier.FASHION", training)
        train(["--which=fashion", f"--root={tmp_path}", f"--output={path}", "--epochs=1"])
    assert "on 10 held-out images" in capsys.readouterr().out
    assert load_classifier(path, SecondDigitClassifier).num_features == 96
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte in nowhere"):
        train(["--which=fashion", "--root=nowhere", f"--output={path}"])


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_command_trains_either_and_prints_the_accuracy_of_what_it_wrote(which, tmp_path, monkeypatch, capsys):
    training = {"first": FIRST, "second": SECOND}[which]
    name, digits = {"first": ("embedded_digits", embedded_digits), "second": ("permuted_digits", permuted_digits)}[
        which
    ]

    def few(split):
        return [part[:: 20 if split == "train" else 5] for part in digits(split)]

    monkeypatch.setattr(f"cm_lightning.data.digits.{name}", few)
    path = tmp_path / "j.safetensors"
    train([f"--which={which}", f"--output={path}", "--epochs=1"])
    written = load_classifier(path, training.network)
    images, labels = few("val")
    accuracy = (written.classify(to_unit_range(images)).argmax(1) == labels).float().mean().item()
    assert capsys.readouterr().out == f"accuracy on 200 held-out images: {accuracy:.4f}; weights in {path}\n"
    assert path.stat().st_size == pytest.approx(
        {"first": WEIGHTS, "second": SECOND_WEIGHTS}[which].stat().st_size, abs=9
    )


def test_the_command_has_two_classifiers(capsys):
    with pytest.raises(SystemExit):
        train(["--which=third", "--output=j.safetensors"])
    assert "--which" in capsys.readouterr().err


def test_a_broken_file_of_weights_is_named(tmp_path):
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"classifier.safetensors .* train-classifier"):
        load_classifier(path)
    with pytest.raises(CheckpointError, match=r"mnist_classifier.safetensors .* train-classifier"):
        load_classifier(WEIGHTS, SecondDigitClassifier)  # of the other network
