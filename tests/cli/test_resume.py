"""Changes of options in a resumed run: which are applied, and which are refused."""

import csv
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.core.schedule import HoldThenCosine
from cm_lightning.resume import changes

CONF = Path(__file__).parents[1] / "conf"
TOY = f"--config={CONF}/toy.yaml"


@pytest.fixture(scope="module")
def half_run(tmp_path_factory):
    """A toy run that was stopped after 6 of its 12 steps; its epochs have 5."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cm-lightning"])
        main(["fit", TOY, "--trainer.callbacks+=tests.helpers.InterruptAt", "--trainer.callbacks.step=6"])
    return folder / "runs/toy/version_0"


@pytest.fixture(autouse=True)
def beside_it(half_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    shutil.copytree(half_run.parents[2], tmp_path, dirs_exist_ok=True)


def rows(version=1):
    with open(f"runs/toy/version_{version}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def last(version=1):
    return read_checkpoint(f"runs/toy/version_{version}/checkpoints/last.ckpt")


def resume(log, *options):
    """The line that lists the changes."""
    main(["fit", TOY, "--ckpt_path=last", *options])
    (line,) = [line for line in log if line.startswith("resumed at")]
    return line.replace("; changed: trainer.callbacks.InterruptAt present -> none, ", "; changed: ")


def rates(base, total=12, scheduled=True):
    return [base * (HoldThenCosine()(step, total) if scheduled else 1) for step in (7, 9, 11)]


@pytest.mark.parametrize(
    ("options", "said", "expected"),
    [
        (["--model.optimizer.lr=0.005"], "model.optimizer.init_args.lr 0.01 -> 0.005", rates(0.005)),
        (["--trainer.max_steps=20"], "trainer.max_steps 12 -> 20", rates(0.01, 20)),
        (["--model.lr_scheduler=null"], "model.lr_scheduler", rates(0.01, scheduled=False)),
        (
            ["--model.lr_scheduler=null", "--model.optimizer.lr=0.002"],
            "model.optimizer.init_args.lr 0.01 -> 0.002",
            rates(0.002, scheduled=False),
        ),
        (
            ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=8"],
            "model.lr_scheduler.class_path",
            [0.01, 0.001, 0.001],
        ),
        (["--model.optimizer.betas=[0.5, 0.9]"], "model.optimizer.init_args.betas", rates(0.01)),
    ],
)
def test_a_changed_rate_is_applied_and_said(log, options, said, expected):
    assert said in resume(log, *options)
    logged = {int(row["step"]): float(row["train/lr"]) for row in rows() if row["train/lr"]}
    assert [logged[step] for step in (7, 9, 11)] == pytest.approx(expected, rel=1e-5)
    if "betas" in said:
        assert last()["optimizer_states"][0]["param_groups"][0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    "changed",
    [  # those of one resume do not touch one another
        {
            "--model.optimizer.weight_decay=0.1": "model.optimizer.init_args.weight_decay 0 -> 0.1",
            "--model.optimizer.eps=1e-6": "model.optimizer.init_args.eps 1e-08 -> 1e-06",
            "--trainer.gradient_clip_val=1": "trainer.gradient_clip_val none -> 1",
            "--trainer.val_check_interval=3": "trainer.val_check_interval 6 -> 3",
            "--trainer.log_every_n_steps=1": "trainer.log_every_n_steps 2 -> 1",
        },
        {
            "--trainer.precision=bf16-true": "trainer.precision none -> bf16-true",
            "--callbacks.ema.decay=0.99": "callbacks.ema.decay 0.9 -> 0.99",
        },
        {
            "--trainer.precision=bf16-mixed": "trainer.precision none -> bf16-mixed",
            "--callbacks.throughput=null": "callbacks.throughput cm_lightning.Throughput -> none",
            "--callbacks.watch=LearningRateMonitor":
                "callbacks.watch none -> lightning.pytorch.callbacks.LearningRateMonitor",
        },
        {
            "--trainer.precision=64-true": "trainer.precision none -> 64-true",
            "--data.seed=7": "data.seed 0 -> 7",
            "--data.num_points=300": "data.num_points 200 -> 300",
        },
        {
            "--data.batch_size=30": "data.batch_size 40 -> 30",
            "--model.sigma_max=40": "model.sigma_max 80 -> 40",
            "--model.target_rate.mu=0.9": "model.target_rate.init_args.mu 0.5 -> 0.9",
            "--seed_everything=3": "seed_everything 0 -> 3",
        },
    ],
)  # fmt: skip
def test_what_a_resume_may_change(log, changed):
    line = resume(log, *changed)
    assert [said for said in changed.values() if said not in line] == [], line
    assert last()["global_step"] == 12


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9"],
         ["model.optimizer.class_path", "torch.optim.RAdam", "torch.optim.SGD"]),
        (["--model.optimizer=torch.optim.Adam"], ["model.optimizer.class_path", "torch.optim.Adam"]),
        (["--model.backbone.width=32"], ["model.backbone.init_args.width", "16", "32"]),
        (["--model.backbone.depth=3"], ["model.backbone.init_args.depth", "2", "3"]),
        (["--model.backbone.num_classes=0"], ["model.backbone.init_args.num_classes", "2", "0"]),
        (["--model=DiffusionModule"], ["model.class_path", "ConsistencyTraining", "DiffusionModule"]),
        (["--model.image_shape=[3]"], ["model.image_shape", "[2]", "[3]"]),
    ],
)  # fmt: skip
def test_what_a_resume_refuses(capsys, options, named):
    with pytest.raises(SystemExit) as stop:
        main(["fit", TOY, "--ckpt_path=last", *options])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert all(part in line for part in [*named, "without --ckpt_path"])
    assert not Path("runs/toy/version_1").exists()


def test_an_unchanged_resume_is_the_whole_run_to_the_bit_and_warns_of_nothing(log):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = resume(log)
    assert line == "resumed at step 6; changed: trainer.callbacks.InterruptAt present -> none"
    said = " ".join(str(warning.message) for warning in caught)
    assert not re.search("resumable|unreliable|dirpath|ckpt_path", said)
    main(["fit", TOY])
    torch.testing.assert_close(last(1)["state_dict"], last(2)["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(last(1)["optimizer_states"], last(2)["optimizer_states"], rtol=0, atol=0)


def test_the_cure_for_a_loss_that_is_not_finite_works(capsys):
    def failure(*options):
        with pytest.raises(SystemExit) as stop:
            main(["fit", TOY, *options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    short = ["--trainer.logger.init_args.name=bad", "--trainer.log_every_n_steps=1", "--model.lr_scheduler=null"]
    # a rate that is too high from step 4 on
    assert "lower the learning rate" in failure(
        *short, "--model.optimizer.lr=0.01", "--trainer.callbacks+=tests.helpers.RaiseRate"
    )
    assert read_checkpoint("runs/bad")["global_step"] == 3
    main(["fit", TOY, *short, "--model.optimizer.lr=0.001", "--ckpt_path=runs/bad"])
    assert read_checkpoint("runs/bad")["global_step"] == 12
    assert yaml.safe_load(Path("runs/bad/version_1/config.yaml").read_text())["model"]["init_args"]["optimizer"][
        "init_args"]["lr"] == 0.001  # fmt: skip


def test_a_run_at_its_end_says_so(capsys):
    main(["fit", TOY])
    for options, said in {
        (): "has trained 12 of 12 steps: to train longer, raise --trainer.max_steps",
        ("--trainer.max_steps=5",): "has trained 12 of 5 steps",
        ("--trainer.max_epochs=2", "--trainer.max_steps=-1"):
            "of 2 epochs: to train longer, raise --trainer.max_epochs",
    }.items():  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(["fit", TOY, "--ckpt_path=last", *options])
        assert stop.value.code == 0
        assert said in capsys.readouterr().out
        assert not Path("runs/toy/version_2").exists()
    main(["fit", TOY, "--ckpt_path=last", "--trainer.max_steps=14"])
    assert last(2)["global_step"] == 14


LONG = ["--trainer.logger.init_args.name=long", "--trainer.val_check_interval=1", "--model.lr_scheduler=null"]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """The log of a run of 20 steps."""
    folder = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cm-lightning"])
        main(["fit", TOY, *LONG, "--trainer.max_steps=20"])
    return list(csv.DictReader((folder / "runs/long/version_0/metrics.csv").read_text().splitlines()))


@pytest.mark.parametrize("steps", [7, 9, 10, 11, 15])  # an epoch has 5; saved every 3
def test_a_run_that_is_made_longer_logs_and_validates_at_the_same_steps(long_run, steps):
    main(["fit", TOY, *LONG, f"--trainer.max_steps={steps}"])
    main(["fit", TOY, *LONG, "--ckpt_path=last", "--trainer.max_steps=20"])
    longer = list(csv.DictReader(Path("runs/long/version_1/metrics.csv").read_text().splitlines()))
    for name in ("train/loss", "val/loss"):
        logged = [[row["step"] for row in r if row[name] and int(row["step"]) >= steps] for r in (longer, long_run)]
        assert logged[0] == logged[1] != []


def test_weights_alone_are_not_a_run_to_resume(capsys):
    checkpoint = last(0)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, "weights.ckpt")
    with pytest.raises(SystemExit):
        main(["fit", TOY, "--ckpt_path=weights.ckpt"])
    assert "--model.start_from weights.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [10, 64, 200])
def test_other_batches_continue_after_the_images_seen(log, batch):
    resume(log, f"--data.batch_size={batch}")
    assert last()["Toy"] == {"step": 12, "images": 6 * 40 + 6 * batch}
    seen = {int(row["step"]) + 1: float(row["train/images"]) for row in rows() if row["train/images"]}
    assert seen == {step: 6 * 40 + (step - 6) * batch for step in (8, 10, 12)}


@pytest.mark.parametrize(("batch", "accumulate"), [(40, 2), (40, 4), (40, 7), (100, 3), (200, 2), (150, 5)])
def test_a_step_takes_all_its_batches_and_validation_counts_steps(batch, accumulate):
    options = [f"--data.batch_size={batch}", f"--trainer.accumulate_grad_batches={accumulate}"]
    main(["fit", TOY, *options])
    logged = [row for row in rows() if row["train/images"]]
    steps = [int(row["step"]) + 1 for row in logged]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert [float(row["train/images"]) for row in logged] == [step * batch * accumulate for step in steps]
    assert [int(row["step"]) + 1 for row in rows() if row["val/loss"]] == [6, 12]


def test_an_accumulating_run_resumes_to_the_bit_and_one_may_begin_to_accumulate(log):
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.logger.init_args.name=acc"]
    main(["fit", TOY, *options])
    main(["fit", TOY, *options, "--trainer.callbacks+=tests.helpers.InterruptAt", "--trainer.callbacks.step=7"])
    main(["fit", TOY, *options, "--ckpt_path=last"])
    whole, resumed = (read_checkpoint(f"runs/acc/version_{n}")["state_dict"] for n in (0, 2))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    log.clear()
    assert "trainer.accumulate_grad_batches 1 -> 2" in resume(log, "--trainer.accumulate_grad_batches=2")
    assert last()["Toy"] == {"step": 12, "images": 6 * 40 + 6 * 80}


def test_a_run_that_was_interrupted_within_a_step_continues_with_whole_steps(log):
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.logger.init_args.name=acc"]
    signal = ["--trainer.callbacks+=tests.helpers.SignalAt", "--trainer.callbacks.hook=on_after_backward"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", TOY, *options, *signal, "--trainer.callbacks.step=4"])
    assert stop.value.code == 130
    assert read_checkpoint("runs/acc")["global_step"] == 4
    main(["fit", TOY, *options, "--ckpt_path=last"])
    assert read_checkpoint("runs/acc")["Toy"] == {"step": 12, "images": 12 * 120}
    with open("runs/acc/version_1/metrics.csv") as file:
        logged = list(csv.DictReader(file))
    assert [int(row["step"]) + 1 for row in logged if row["train/loss"]] == [6, 8, 10, 12]
    assert [int(row["step"]) + 1 for row in logged if row["val/loss"]] == [6, 12]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"model": {"class_path": "A", "init_args": {"a": 1}}}, {"model": {"class_path": "A", "init_args": {"a": 2}}},
         ["model.a 1 -> 2"]),
        ({"seed_everything": 0}, {"seed_everything": 0, "of_a_later_version": 1}, []),
        ({"trainer": {"logger": {"class_path": "x"}}}, {"trainer": {"logger": False}}, []),
        ({"trainer": {"callbacks": [{"class_path": "a.EMA", "init_args": {"decay": 0.9}}]}},
         {"trainer": {"callbacks": []}},
         ["callbacks.ema a.EMA -> none"]),
        ({"trainer": {"callbacks": {"class_path": "a.EMA", "init_args": {"decay": 0.9, "ramp": True}}}},
         {"trainer": {"callbacks": None}, "callbacks": {"ema": {"class_path": "a.EMA", "init_args": {"decay": 0.99}}}},
         ["callbacks.ema.decay 0.9 -> 0.99"]),
        ({"trainer": {"callbacks": [{"class_path": "a.Other"}]}, "callbacks": {"ema": None, "mine": None}},
         {"trainer": {"callbacks": []}, "callbacks": None},
         ["trainer.callbacks.Other present -> none"]),
        ({"trainer": {}, "callbacks": {"mine": {"class_path": "a.A", "init_args": {"x": 1}}}},
         {"trainer": {}, "callbacks": {"mine": {"class_path": "b.B", "init_args": {"x": 1}}}},
         ["callbacks.mine.class_path a.A -> b.B"]),
        ({"trainer": {"x": 1}}, {"trainer": {"x": True}}, ["trainer.x 1 -> True"]),
        ({"model": {"init_args": {"s": {2: [1.0]}}}}, {"model": {"init_args": {"s": {"2": [1.0]}}}}, []),
        ({"model": {"init_args": {"optimizer": None}}},
         {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.RAdam", "init_args": {"lr": 1}}}}}, []),
    ],
)  # fmt: skip
def test_configurations_are_compared_by_option(old, new, said):
    assert [str(change) for change in changes(old, new)] == said
