"""The bar of a run, in a terminal and elsewhere, and what the run says at its end."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from cm_lightning.callbacks import progress
from cm_lightning.callbacks.progress import RunProgress
from cm_lightning.cli import main
from cm_lightning.commands.sample import main as sample
from tests.helpers import module, points, trainer
from tests.processes import CONF, forked
from tests.story.screen import screen

TOY = [f"--config={CONF}/toy.yaml", "--trainer.enable_progress_bar=true"]


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def lines(text):
    return [line for line in text.splitlines() if line.startswith("step ")]


def fit(tmp_path, bar, data=None, own=None, **options):
    own = own or module()
    trainer(tmp_path, enable_progress_bar=True, callbacks=[bar], **options).fit(own, data or points())
    return own


def test_a_log_gets_a_line_for_each_tenth_and_the_end_and_no_escape_codes(tmp_path, capsys):
    fit(tmp_path, RunProgress(every_s=0), max_steps=20)
    said = capsys.readouterr().out
    assert [line.split()[1] for line in lines(said)] == [f"{n}/20" for n in (*range(2, 21, 2), 20)]
    assert lines(said)[-1].split("  ")[1] == "trained"
    assert "images/s" in lines(said)[3]
    assert "loss" in lines(said)[0]
    assert "\x1b" not in said
    assert "\r" not in said


def test_a_quick_run_gets_the_last_line_alone(tmp_path, capsys):
    fit(tmp_path, RunProgress(), max_steps=20)
    assert [line.split()[1] for line in lines(capsys.readouterr().out)] == ["20/20"]


@pytest.mark.parametrize("bar", [RunProgress(refresh_rate=0), None])
def test_what_is_switched_off_is_silent(tmp_path, capsys, bar):
    if bar:
        fit(tmp_path, bar)
    else:
        main(["fit", *TOY, "--callbacks.progress.every_s=0", "--trainer.enable_progress_bar=false"])
    assert not lines(capsys.readouterr().out)


def test_other_ranks_are_silent(tmp_path, capsys):
    bar = RunProgress(every_s=0)
    bar.setup = lambda *_, **__: bar.disable()  # as Lightning does where the rank is not the first
    fit(tmp_path, bar)
    assert not lines(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"max_steps": -1, "max_epochs": 2}, "8/8"), ({"max_steps": 7, "max_time": "00:01:00:00"}, "7/7"),
     ({"max_steps": 40, "max_epochs": 1}, "4/4"), ({"accumulate_grad_batches": 2, "max_steps": 3}, "3/3")],
)  # fmt: skip
def test_runs_of_other_lengths(tmp_path, capsys, options, steps):
    fit(tmp_path, RunProgress(every_s=0), **options)
    assert lines(capsys.readouterr().out)[-1].startswith(f"step {steps} (100%)")


def test_the_loss_is_that_of_the_step_and_is_read_only_to_be_shown(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(progress, "_phase", lambda *_: reads.append(1) or "training")
    fit(tmp_path, RunProgress(), max_steps=20)
    assert len(reads) == 1  # at the start; no step of a log was due


def test_a_terminal_has_one_line_and_nothing_is_left_of_the_evaluation(tmp_path):
    first, second = os.openpty()
    process = forked(
        "-m", "cm_lightning", "fit", *TOY, "--trainer.max_steps=30", "--trainer.val_check_interval=10",
        cwd=tmp_path, said=[Path(os.ttyname(second))], env={"COLUMNS": "80", "TERM": "xterm"},
    )  # fmt: skip
    process.join()
    os.close(second)
    text = b""
    while True:
        try:
            text += (part := os.read(first, 65536))
        except OSError:
            break
        if not part:
            break
    shown, longest = screen(text.decode())
    assert process.exitcode == 0, shown
    assert longest < 80
    assert max(map(len, shown)) <= 80
    assert text.count(b"/30") > 1  # it was drawn again and again
    assert len([line for line in shown if "/30" in line]) == 1
    assert not [line for line in shown if line.startswith("evaluation")]
    assert shown[-1].startswith("to draw: cm-lightning sample --ckpt_path runs/toy/version_0 ")


def test_a_resumed_run_continues_where_it_was(capsys):
    main(["fit", *TOY, "--trainer.max_steps=6"])
    capsys.readouterr()
    main(["fit", *TOY, "--ckpt_path=last", "--callbacks.progress.every_s=0"])
    said = [line.split()[1] for line in lines(capsys.readouterr().out)]
    assert said == ["8/12", "9/12", "10/12", "11/12", "12/12", "12/12"]  # 7 of 12 does not reach a new tenth


def test_the_end_says_what_there_is_and_its_command_works(capsys):
    main(["fit", *TOY])
    run = Path("runs/toy/version_0")
    said = capsys.readouterr().out.splitlines()
    assert f"checkpoint: {run}/checkpoints/last.ckpt" in said
    assert f"curves:     {run}/metrics.csv" in said
    assert not [line for line in said if line.startswith("pictures")]  # points in the plane have none
    (command,) = [line.removeprefix("to draw:").strip() for line in said if line.startswith("to draw:")]
    name, subcommand, *arguments = shlex.split(command)
    assert (name, subcommand) == ("cm-lightning", "sample")
    sample(arguments)
    assert Path("samples.npz").is_file()


def test_the_command_names_the_packages_that_a_checkpoint_needs(capsys):
    main(["fit", *TOY, "--model.backbone=tests.helpers.OwnMLP"])
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to draw:")]
    assert "--trust=tests" in command
    sample(shlex.split(command.removeprefix("to draw:"))[2:])
    assert Path("samples.npz").is_file()
