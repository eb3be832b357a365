"""Options of the measuring commands are refused before anything slow."""

import pytest

from cm_lightning.commands import evaluate, self_consistency, train_classifier
from cm_lightning.errors import ConfigError

COMMANDS = {
    "evaluate": evaluate.main,
    "train-classifier": train_classifier.main,
    "self-consistency": self_consistency.main,
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        *[("evaluate", "--steps", value) for value in ("0", "-1", "1,0", "x", "1.5", "")],
        *[("evaluate", "--guidance", value) for value in ("-1", "nan", "inf", "1,,2")],
        *[("evaluate", "--num_samples", value) for value in ("1", "0", "x")],
        *[("evaluate", "--batch_size", value) for value in ("0", "-2")],
        *[("evaluate", "--latency", value) for value in ("0", "-1", "nan")],
        *[("evaluate", "--model", value) for value in ("x", "=x", "a/b=x", "a=", "a=x+", "a=+x", "a=./gone", "a=gone")],
        ("evaluate", "--seed", "-1"),
        *[("train-classifier", "--epochs", value) for value in ("0", "-1", "1.5")],
        ("train-classifier", "--seed", "-1"),
        ("train-classifier", "--which", "third"),
        *[("train-classifier", "--output", value) for value in ("a.pt", "a", "file/a.safetensors", "/dev/null")],
        *[("self-consistency", "--trajectories", value) for value in ("7", "0", "x")],
        *[("self-consistency", "--steps", value) for value in ("-1", "5")],
        *[("self-consistency", "--resolution", value) for value in ("1", "nan")],
        ("self-consistency", "--seed", "-1"),
        ("self-consistency", "--output", "file"),
        ("evaluate", "--output", "file"),
    ],
)
def test_the_option_is_named(command, option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    needed = ["--output=a.safetensors"] if command == "train-classifier" else []
    with pytest.raises((SystemExit, ConfigError)) as caught:
        COMMANDS[command]([*needed, f"{option}={value}"])
    line = capsys.readouterr().err or str(caught.value)
    assert option in line.splitlines()[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
