import csv
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cm_lightning.cli import main
from cm_lightning.commands.compare import main as compare
from cm_lightning.errors import DataError
from cm_lightning.report.runs import read_runs
from cm_lightning.report.tables import few_step_table, target_table
from tests.cli.test_processes import CONF


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def write_run(directory, values, seconds_a_step=1.0, method="ConsistencyTraining", sampler=None, stage="val", **config):
    """A run of 10 images a step whose Frechet distance at one evaluation is values[i] at step 10 (i + 1)."""
    directory = Path(directory)
    (directory / "samples").mkdir(parents=True)
    model = {"class_path": f"cm_lightning.{method}", "init_args": {"sampler": sampler} if sampler else {}}
    trainer = {"logger": {"class_path": "CSVLogger", "init_args": {"name": directory.parent.name}}}
    content = {"seed_everything": 0, "trainer": trainer, "model": model, **config}
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    nfe = 79 if sampler else 1
    names = ["step", "train/images", "train/seconds", f"{stage}/frechet_mnist_nfe{nfe}", "val/accuracy_nfe1"]
    with open(directory / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i, value in enumerate(values):
            step = 10 * (i + 1)
            if stage == "val":
                writer.writerow([step - 5, 10 * (step - 5), seconds_a_step * (step - 5), "", ""])
                writer.writerow([step + 5, 10 * (step + 5), seconds_a_step * (step + 5), "", ""])
            writer.writerow([step, "", "", value, 0.9])
    Image.new("RGB", (20, 20), (200, 0, 0)).save(directory / f"samples/step_{10 * len(values):06d}_nfe1.png")
    return directory


def test_the_table_has_every_seed_and_their_mean():
    write_run("runs/cd/version_0", [90, 40])
    write_run("runs/cd/version_1", [80, 50], seed_everything=1)
    write_run("runs/ct/version_0", [99])
    table = few_step_table(read_runs(["runs/cd/version_0", "runs/cd/version_1", "runs/ct/version_0"]), "frechet_mnist")
    assert table.title == "frechet_mnist / accuracy by evaluations of the network"
    assert [row[0] + row[2] + row[-1] for row in table.rows] == [
        "cd040.0 / 0.900", "cd150.0 / 0.900", "cdmean of 245.0 / 0.900", "ct099.0 / 0.900",
    ]  # fmt: skip
    assert table.rows[0][5:7] == ["250", "25"]
    assert "| cd | ConsistencyTraining | 0 |" in table.markdown()
    assert "<td>45.0 / 0.900</td>" in table.html()


def test_the_target_says_who_was_first_and_by_how_much():
    write_run("runs/slow/version_0", [99, 60, 30], seconds_a_step=4)
    write_run("runs/fast/version_0", [99, 98, 40], seconds_a_step=1)
    write_run("runs/never/version_0", [99])
    runs = read_runs([f"runs/{name}/version_0" for name in ("slow", "fast", "never")])
    rows = target_table(runs, "frechet_mnist", 1, 60).rows
    assert rows == [
        ["fast", "0", "40.0", "300", "30", "1.00"],
        ["slow", "0", "60.0", "200", "80", "2.67"],
        ["never", "0", "not reached", "", "", ""],
    ]
    rising = target_table(runs, "accuracy", 1, 0.9)
    assert ">= 0.9" in rising.title
    assert all(row[2] == "0.900" for row in rising.rows)


def test_tests_belong_to_the_run_they_tested_and_solvers_to_the_baselines(capsys):
    teacher = write_run("runs/teacher/version_0", [30], method="DiffusionModule", sampler={"class_path": "x.core.Heun"})
    write_run("runs/teacher/version_1", [44], method="DiffusionModule", sampler={"class_path": "x.core.DDIM"},
              stage="test", ckpt_path=str(teacher / "checkpoints/last.ckpt"))  # fmt: skip
    write_run("runs/cd/version_0", [50])
    compare(["runs/teacher/version_0", "runs/teacher/version_1", "runs/cd/version_0"])
    out = capsys.readouterr().out
    assert "| teacher | 0 | Heun | 79 | 30.0 |" in out
    assert "| teacher | 0 | DDIM | 79 | 44.0 |" in out
    assert "| cd | ConsistencyTraining | 0 |" in out


def test_a_real_run_resumed_and_tested_is_one_run(capsys):
    quality = "{class_path: Quality, init_args: {nfe: [1, 2], num_samples: 20}}"
    grid = "{class_path: SampleGrid, init_args: {num_samples: 4, nfe: [1]}}"
    saving = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_last: true, save_top_k: 0}}"
    callbacks = f"--trainer.callbacks=[{{class_path: Throughput}}, {quality}, {grid}, {saving}]"
    image = [
        f"--config={CONF}/image.yaml",
        "--trainer.log_every_n_steps=1",
        callbacks,
        "--trainer.val_check_interval=2",
    ]
    main(["fit", *image, "--trainer.max_steps=2"])
    main(["fit", *image, "--ckpt_path=last", "--trainer.max_steps=4"])
    main(["test", *image, "--ckpt_path=last"])
    (run,) = read_runs([f"runs/image/version_{i}" for i in (1, 2)])  # version_0 is found by itself
    assert [entry[0] for entry in run.progress] == [0, 1, 2, 3]
    assert run.images == 4 * 50
    assert [entry[2] for entry in run.progress] == sorted(entry[2] for entry in run.progress)
    assert len(run.curve("frechet_mnist", 1)) == 2  # a test is no point of the curve
    compare(["runs/image/version_1", "runs/image/version_2", "--target=1e9", "--output=deep/folder"])
    markdown, page = (Path(f"deep/folder/compare.{suffix}").read_text() for suffix in ("md", "html"))
    assert "First measurement with frechet_mnist <= 1e+09 at 1 evaluation" in markdown
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    for name in ("curves", "samples_nfe1"):
        assert f"({name}.png)" in markdown
        assert Image.open(f"deep/folder/{name}.png").size[0] > 300
    assert f"| {run.parameters:,} |" in capsys.readouterr().out


def test_errors_name_the_folder_and_the_metric(capsys):
    with pytest.raises(DataError, match=r"nowhere is not a run: expected config.yaml and metrics.csv"):
        compare(["nowhere"])
    run = str(write_run("runs/cd/version_0", [9]))
    with pytest.raises(DataError, match=r"--metric fid: these runs have accuracy, frechet_mnist"):
        compare([run, "--metric=fid"])
    write_run("runs/none/version_0", [])
    with pytest.raises(DataError, match="add the callback Quality"):
        compare(["runs/none/version_0"])
