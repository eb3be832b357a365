import csv
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cm_lightning.cli import main
from cm_lightning.commands.compare import main as compare
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.report.figures import losses, styled
from cm_lightning.report.runs import read_runs
from cm_lightning.report.tables import difference_table, few_step_table, measure_table, target_table
from tests.helpers import few_digits
from tests.processes import CONF


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def write_run(directory, values, seconds_a_step=1.0, method="ConsistencyTraining", sampler=None, stage="val", **config):
    """A run of 10 images per step; its Frechet distance at one evaluation is values[i] at step 10 (i + 1)."""
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


def test_a_real_run_resumed_and_tested_is_one_run(capsys, monkeypatch):
    few_digits(monkeypatch, 20)
    saving = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_last: true, save_top_k: 0}}"
    callbacks = "{ema: null, throughput: {}, quality: {num_samples: 20}, samples: {num_samples: 4, nfe: [1]}"
    image = [
        f"--config={CONF}/image.yaml",
        "--trainer.log_every_n_steps=1",
        f"--callbacks={callbacks}, save_last: null, saving: {saving}}}",
        "--trainer.val_check_interval=2",
    ]
    main(["fit", *image, "--trainer.max_steps=2"])
    main(["fit", *image, "--ckpt_path=last", "--trainer.max_steps=4"])
    main(["test", *image, "--ckpt_path=last"])
    (run,) = read_runs([f"runs/image/version_{i}" for i in (1, 2)])  # version_0 is found by itself
    assert [entry[0] for entry in run.progress] == [0, 1, 2, 3]
    assert run.images == 4 * 50
    assert [entry[2] for entry in run.progress] == sorted(entry[2] for entry in run.progress)
    assert len(run.curve("frechet_mnist", 1)) == 2  # a test is not a point of the curve
    compare(["runs/image/version_1", "runs/image/version_2", "--target=1e9", "--output=deep/folder"])
    markdown, page = (Path(f"deep/folder/compare.{suffix}").read_text() for suffix in ("md", "html"))
    assert "First measurement with frechet_mnist <= 1e+09 at 1 evaluation" in markdown
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page
    assert "<style>body{" in page
    assert "name=viewport" in page
    for name in ("train/loss", "train/raw"):
        assert [step for step, _ in run.losses[name]] == [0, 1, 2, 3]
    for name in ("curves", "losses", "samples_nfe1"):
        assert f"({name}.png)" in markdown
        assert Image.open(f"deep/folder/{name}.png").size[0] > 300
    assert f"| {run.parameters:,} |" in capsys.readouterr().out


def write_losses(directory, rows):
    """A run of 10 images per step that logs its loss, and its raw error where a row has one."""
    directory = write_run(directory, [9])
    with open(directory / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train/images", "train/seconds", "train/loss", "train/raw", "val/frechet_mnist_nfe1"])
        writer.writerows([step, 10 * step, step, loss, raw, 9] for step, loss, raw in rows)
    return directory


@pytest.fixture
def panels(monkeypatch):
    """The scales of the panels of each figure that is saved, and its lines by the name of the vertical axis."""
    found = {}

    def save(figure, path):
        found[path.name] = {
            axis.get_ylabel(): (axis.get_yscale(), [line.get_xydata().tolist() for line in axis.lines])
            for axis in figure.axes
        }

    monkeypatch.setattr("cm_lightning.report.figures.save_figure", save)
    return found


def test_losses_are_drawn_beside_the_raw_errors(panels, tmp_path):
    flat = write_losses("runs/meanflow/version_0", [(5, 0.9, 4.0), (10, 0.9, 2.0), (15, 0.9, 1.0)])
    plain = write_losses("runs/teacher/version_0", [(5, 3.0, ""), (10, 2.0, "")])
    assert losses(read_runs([flat, plain]), tmp_path / "losses.png")
    assert panels["losses.png"] == {
        "train/loss": ("log", [[[50, 0.9], [100, 0.9], [150, 0.9]], [[50, 3], [100, 2]]]),
        "train/raw": ("log", [[[50, 4], [100, 2], [150, 1]]]),
    }
    assert losses(read_runs([plain]), tmp_path / "one.png")
    assert list(panels["one.png"]) == ["train/loss"]
    negative = write_losses("runs/sct/version_0", [(5, 0.9, 0.1), (10, -0.9, 0.01)])
    assert losses(read_runs([negative]), tmp_path / "negative.png")
    assert [scale for scale, _ in panels["negative.png"].values()] == ["symlog", "log"]
    assert not losses(read_runs([write_run("runs/none/version_0", [9])]), tmp_path / "none.png")


def test_losses_that_a_resumed_run_repeats_are_drawn_once():
    first = write_losses("runs/cd/version_0", [(5, 3.0, 3.0), (10, 2.0, 2.0), (15, 1.9, 1.9)])
    second = write_losses("runs/cd/version_1", [(15, 1.5, 1.5), (20, 1.0, 1.0)])
    config = yaml.safe_load((second / "config.yaml").read_text())
    (second / "config.yaml").write_text(yaml.safe_dump({**config, "ckpt_path": str(first / "checkpoints/last.ckpt")}))
    (run,) = read_runs([second])
    for name in ("train/loss", "train/raw"):
        assert run.losses_by_images(name) == [(50, 3.0), (100, 2.0), (150, 1.5), (200, 1.0)]


def test_the_seeds_of_a_method_are_drawn_alike():
    folders = [f"runs/m{number:02}/version_{seed}" for number in range(11) for seed in (0, 1)]
    styles = [style for _, style in styled(read_runs([write_losses(folder, [(5, 1, 1)]) for folder in folders]))]
    assert [style["label"] for style in styles[:3]] == ["m00", None, "m01"]
    looks = {(style["color"], style["ls"]) for style in styles}
    assert len(looks) == 11
    assert all((a["color"], a["ls"]) == (b["color"], b["ls"]) for a, b in zip(styles[::2], styles[1::2], strict=True))


def write_measures(directory, seed=0, mid_grey=0.08, real=0.05):
    """A run with all measures of digits at one and two evaluations."""
    write_run(directory, [], seed_everything=seed)
    kinds = {"frechet_mnist2": 60.0, "accuracy2": 0.9, "frechet_mnist": 20.0, "accuracy": 0.95, "kid_mnist": 0.0123,
             "recall_mnist": 0.4, "mid_grey": mid_grey}  # fmt: skip
    rows = {f"val/{name}_nfe{nfe}": value * nfe for name, value in kinds.items() for nfe in (1, 2)}
    row = {"step": 10, "val/mid_grey_floor": real, "val/frechet_mnist_floor": 3.0, **rows}
    progress = {"step": 10, "train/images": 100, "train/seconds": 5}
    with open(Path(directory) / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(progress | row))
        writer.writeheader()
        writer.writerows([progress, row, {**row, "step": 20}])
    return directory


def test_all_other_measures_have_a_table_with_those_of_real_images():
    runs = read_runs([write_measures("runs/ct/version_0"), write_measures("runs/ct/version_1", 1, mid_grey=0.10)])
    table = measure_table(runs, "frechet_mnist")
    assert table.heads == ["run", "evaluations", "frechet_mnist2", "accuracy2", "kid_mnist", "recall_mnist", "mid_grey"]
    assert table.rows == [
        ["real images", "", "", "", "", "", "0.050"],
        ["ct", "1", "60.0", "0.900", "0.01230", "0.400", "0.090"],
        ["ct", "2", "120.0", "1.800", "0.02460", "0.800", "0.180"],
    ]
    assert measure_table(read_runs([write_run("runs/cd/version_0", [9])]), "frechet_mnist").rows == []


def test_a_distance_has_the_accuracy_of_its_own_classifier_beside_it():
    runs = read_runs([write_measures("runs/ct/version_0")])
    for metric, title in (
        ("frechet_mnist", "frechet_mnist / accuracy by"),
        ("frechet_mnist2", "frechet_mnist2 / accuracy2 by"),
        ("kid_mnist", "kid_mnist / accuracy by"),
        ("accuracy2", "accuracy2 by"),
        ("accuracy", "accuracy by"),
    ):
        assert few_step_table(runs, metric).title.startswith(title)


def test_shares_of_pixels_have_curves_and_no_target():
    run = str(write_measures("runs/ct/version_0"))
    compare([run, "--metric=mid_grey"])
    assert "mid_grey / accuracy by evaluations" in Path("compare/compare.md").read_text()
    assert "| real images |" in Path("compare/compare.md").read_text()
    compare([run, "--metric=accuracy2", "--target=0.9", "--output=other"])
    assert "First measurement with accuracy2 >= 0.9 at 1" in Path("other/compare.md").read_text()
    with pytest.raises(ConfigError, match=r"^--target: neither more nor less black is better, but .* --metric$"):
        compare([run, "--metric=black", "--target=0.8", "--output=third"])


def test_the_default_metric_is_the_first_classifiers():
    compare([str(write_measures("runs/ct/version_0"))])
    assert "## frechet_mnist / accuracy by" in Path("compare/compare.md").read_text()


def test_errors_name_the_folder_and_the_metric(capsys):
    with pytest.raises(DataError, match=r"nowhere is not a run: expected config.yaml and metrics.csv"):
        compare(["nowhere"])
    run = str(write_run("runs/cd/version_0", [9]))
    with pytest.raises(DataError, match=r"--metric fid: these runs have accuracy, frechet_mnist"):
        compare([run, "--metric=fid"])
    write_run("runs/none/version_0", [])
    with pytest.raises(DataError, match="add the callback Quality"):
        compare(["runs/none/version_0"])


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("config.yaml", "", "config.yaml is empty: it is not the configuration of a run"),
        ("config.yaml", "- a\n", "config.yaml does not name a model"),
        ("config.yaml", "trainer: {}\n", "config.yaml does not name a model"),
        ("config.yaml", "model: text\n", "config.yaml does not name a model"),
        ("config.yaml", "a: [1\nb: 2\n", "config.yaml, line 2: "),
        ("metrics.csv", "", "metrics.csv is empty: the run has logged nothing yet"),
        ("metrics.csv", "epoch,st", "metrics.csv holds no whole line"),
        ("metrics.csv", "epoch,val/accuracy_nfe1\n0,1\n", "metrics.csv lacks the column step"),
    ],
)
def test_a_broken_run_is_passed_over_with_the_name_of_its_file(name, text, line, capsys):
    write_run("runs/good/version_0", [9])
    broken = write_run("runs/broken/version_0", [9])
    (broken / name).write_text(text)
    compare(["runs/good", "runs/broken", "--output=out"])
    err = capsys.readouterr().err
    assert f"note: skipped: runs/broken/version_0/{line}" in err
    assert f"runs/broken/version_0/{line}" in Path("out/compare.md").read_text()
    with pytest.raises(DataError, match=line.split(":")[0]):
        compare(["runs/broken", "--output=other"])


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ("40,1,1,abc,0.9\n", r"line 8: 'abc' in val/frechet_mnist_nfe1 is not a number; 1 line is left out"),
        ("inf,1,1,,\n", "line 8: cannot convert float infinity to integer; 1 line is left out"),
        ("40,1\n", "line 8: it does not have as many values as there are columns; 1 line is left out"),
        ("40,,,5.0,0.", "its last line is cut short and is left out"),
    ],
)
def test_a_broken_line_is_left_out_with_a_note(last, line):
    run = write_run("runs/cd/version_0", [9, 8])
    with open(run / "metrics.csv", "a", newline="") as file:
        file.write(last)
    notes = []
    (read,) = read_runs([run], notes.append)
    assert [note.endswith(line) for note in notes] == [True]
    assert read.final("frechet_mnist", 1) == 8


def test_a_run_that_just_began_is_not_an_error(capsys):
    write_run("runs/cd/version_0", [9])
    (write_run("runs/cd/version_1", [9]) / "metrics.csv").unlink()
    Path("runs/wandb").mkdir()
    compare(["runs/cd", "runs/wandb"])
    err = capsys.readouterr().err
    assert "note: skipped: runs/cd/version_1/metrics.csv is missing: the run has logged nothing yet" in err
    assert "note: skipped: runs/wandb is not a run" in err


def test_the_last_comparison_is_kept_unless_asked():
    run = str(write_run("runs/cd/version_0", [9]))
    compare([run])
    for old in ("samples_nfe4", "losses"):
        Path(f"compare/{old}.png").write_text("old")
    with pytest.raises(ConfigError, match="--output compare holds a comparison: name another folder, or add --over"):
        compare([run])
    compare([run, "--overwrite"])
    assert [path.name for path in sorted(Path("compare").glob("*.png"))] == ["curves.png", "samples_nfe1.png"]
    Path("file").write_text("")
    with pytest.raises(ConfigError, match=r"--output file/compare.md"):
        compare([run, "--output=file"])


@pytest.mark.parametrize(
    "wrong", ["--nfe=0", "--nfe=-1", "--nfe=x", "--nfe=1.5", "--target=nan", "--target=inf", "--target=x"]
)
def test_numbers_without_meaning_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        compare(["runs/cd", wrong])
    assert wrong.partition("=")[0] in capsys.readouterr().err


def test_a_metric_has_a_near_match_and_evaluations_a_list():
    run = str(write_run("runs/cd/version_0", [9]))
    with pytest.raises(DataError, match=r"--metric acuracy: these runs have accuracy, frechet_mnist; did you mean acc"):
        compare([run, "--metric=acuracy"])
    with pytest.raises(ConfigError, match="--nfe 3: these runs measured frechet_mnist at 1"):
        compare([run, "--nfe=3"])


def test_runs_of_one_name_and_two_configurations_are_told_apart():
    write_run("runs/cd/version_0", [10], data={"class_path": "cm_lightning.MNIST", "init_args": {"batch_size": 1}})
    write_run("runs/cd/version_1", [20], data={"class_path": "cm_lightning.MNIST", "init_args": {"batch_size": 2}})
    runs = read_runs(["runs/cd"])
    assert [run.label for run in runs] == ["cd/version_0", "cd/version_1"]
    assert [row[-1] for row in few_step_table(runs, "frechet_mnist").rows] == ["10.0 / 0.900", "20.0 / 0.900"]
    assert difference_table(runs).rows == [["data.batch_size", "1", "2"]]
    assert [run.data for run in runs] == ["MNIST", "MNIST"]


def test_not_a_number_is_shown_and_never_first():
    write_run("runs/nan/version_0", [float("nan")])
    write_run("runs/cd/version_0", [20])
    runs = read_runs(["runs/nan", "runs/cd"])
    assert few_step_table(runs, "frechet_mnist").rows[0][-1] == "nan / 0.900"
    assert [row[0] for row in target_table(runs, "frechet_mnist", 1, 30).rows] == ["cd", "nan"]
    compare(["runs/nan", "runs/cd", "--target=30"])
