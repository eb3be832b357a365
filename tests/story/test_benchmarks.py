"""The scripts of experiments run, each at a small size."""

import contextlib
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from cm_lightning.__main__ import main
from cm_lightning.export.folder import write_export
from tests.helpers import digits_checkpoint, script
from tests.processes import CONF, ROOT, fork
from tests.test_serve import make

FOLDER = ROOT / "experiments/benchmarks"


@pytest.mark.parametrize(
    ("script", "options", "line"),
    [
        ("steps.py", "--channels 8 --side 8 --images 2 --rounds 1 --only EDM DMD2", r"\| DMD2 \| [\d.]+ \|"),
        ("growth.py", "--images 1 --side 8 --channels 8 --rounds 1", r"\| pixels: 64, 256, 1,024 \|"),
        ("parts.py", f"--rounds 1 --config {CONF}/image.yaml", r"\| a pass and its gradients \| [\d.]+ \|"),
        (
            "scaling.py",
            "--rounds 0 --only DDPMpp.cifar10",
            r"\| 55,732,739 \| 64 \| [\d.]+ \| 223 \| 0.9\d+ \| 0.8\d+ \|",
        ),
        ("overhead.py", "--small --steps 3", r"ratio full / bare: [\d.]+"),
    ],
)
def test_a_benchmark_prints_its_table(script, options, line, tmp_path):
    done = fork(str(FOLDER / script), *options.split(), cwd=tmp_path)
    assert re.search(line, done.stdout), done.stdout


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("kills.py", "1 of 1 kills in mid-write of [\\d,]+ bytes left a checkpoint that loads"),
        ("curves.py", "1 of 1 killed and resumed runs equal the uninterrupted one"),
    ],
)
def test_a_killed_run_loses_nothing(script, line, tmp_path):
    done = fork(str(ROOT / "experiments/reliability" / script), "--runs=1", cwd=tmp_path)
    assert re.search(line, done.stdout), done.stdout


def test_the_sum_over_ranks_takes_its_time(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    efficiency = script(FOLDER / "scaling.py").efficiency
    assert efficiency(1.0, 10e9, 1, 10e9) == 1.0  # one rank has nothing to send
    assert efficiency(1.0, 10e9, 2, 10e9) == 0.5  # two send their half twice
    assert efficiency(1.0, 10e9, 10**6, 10e9) == pytest.approx(1 / 3, rel=1e-5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return digits_checkpoint(tmp_path_factory.mktemp("digits") / "digits.ckpt")


def test_samples_are_timed_for_each_number_of_images(checkpoint, monkeypatch, capsys):
    options = f"{checkpoint} {checkpoint} --nfe 3 --images 1 4 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["sampling.py", *options.split()])
    runpy.run_path(str(FOLDER / "sampling.py"), run_name="__main__")
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| images | 3 evaluations, s | one, s |")
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 4"]


def test_the_start_of_each_command_is_timed(checkpoint, tmp_path, monkeypatch, capsys):
    """Processes are replaced by calls, each at its first time."""
    done = []

    def call(command, cwd, **options):
        if command in done or "-c" in command:
            return
        done.append(command)
        monkeypatch.setattr(sys, "argv", ["cm-lightning", *command[3:]])
        with contextlib.suppress(SystemExit):
            main()
        written.append({path.name for path in Path(cwd).iterdir()})

    written = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", call)
    monkeypatch.setattr(sys, "argv", ["startup.py", str(checkpoint), "--rounds=1"])
    runpy.run_path(str(FOLDER / "startup.py"), run_name="__main__")
    table = capsys.readouterr().out.split("| command | ")[1].splitlines()
    assert [row.split(" | ")[0] for row in table[2:]] == [
        "| `import torch`", "| `cm-lightning --help`", "| `cm-lightning sample` of one image",
        "| `cm-lightning fit`, one step", "| `cm-lightning fit --dry_run`",
    ]  # fmt: skip
    assert written == [set(), {"one.png"}, {"one.png", "mnist-ct"}, {"one.png", "mnist-ct"}]


def test_the_sheet_of_edits_is_drawn_with_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["edits.py", str(checkpoint), f"--output={tmp_path}/sheet.png"])
    runpy.run_path(str(ROOT / "experiments/use/edits.py"), run_name="__main__")
    assert min(Image.open(tmp_path / "sheet.png").size) > 300


@pytest.mark.parametrize(("options", "size", "mode"), [([], (28, 28), "L"), (["--captioned"], (32, 32), "RGB")])
def test_the_frames_move_and_rest(options, size, mode, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["frames.py", str(tmp_path), *options])
    runpy.run_path(str(ROOT / "experiments/use/frames.py"), run_name="__main__")
    frames = [Image.open(path) for path in sorted(tmp_path.iterdir())]
    assert {(frame.size, frame.mode) for frame in frames} == {(size, mode)}
    equal = [a.tobytes() == b.tobytes() for a, b in pairwise(frames)]
    assert equal == ([False] * 10 + [True] * 9 + [False]) * 2 + [False] * 10 + [True] * 9


def test_batched_steps_are_timed(tmp_path, monkeypatch, capsys):
    for name in ("model", "frames"):
        (tmp_path / name).mkdir()
    write_export(make(), tmp_path / "model", 0, "raw")
    for i in range(3):
        Image.new("L", (8, 8), 80 * i).save(tmp_path / f"frames/{i}.png")
    options = f"--ckpt_path={tmp_path}/model --input={tmp_path}/frames --sigma=2 --steps=3 --device=cpu"
    monkeypatch.setattr(sys, "argv", ["batched.py", *options.split()])
    runpy.run_path(str(ROOT / "experiments/use/batched.py"), run_name="__main__")
    assert re.match(r"3 steps: [\d.]+ ms for a frame alone .*, [\d.]+ ms batched .*, ratio \d", capsys.readouterr().out)


def test_the_check_of_a_gpu_names_scripts_and_options_that_exist():
    text = (FOLDER / "gpu_check.sh").read_text()
    called = re.findall(r"python (experiments/\S+)(.*)", text)
    assert len(called) == 2
    for name, options in called:
        source = (ROOT / name).read_text()
        assert all(f'"{option}"' in source for option in re.findall(r"--\w+", options))
