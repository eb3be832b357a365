"""The script of experiments/mnist/compare, on runs whose scores are known."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cm_lightning.report.logs import Score
from cm_lightning.report.runs import Run
from tests.helpers import digits_checkpoint, script
from tests.processes import ROOT

FOLDER = ROOT / "experiments/mnist/compare"


@pytest.fixture(scope="module")
def page():
    return script(FOLDER / "page.py")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run's directory with a checkpoint."""
    return digits_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints/last.ckpt").parents[1]


def run(name, *scores, directory=Path("runs"), teacher=None):
    model = {"class_path": "ConsistencyTraining", "init_args": {"teacher": teacher} if teacher else {}}
    logger = {"class_path": "CSVLogger", "init_args": {"name": name}}
    found = [Score("val", step, metric, nfe, value) for step, metric, nfe, value in scores]
    config = {"trainer": {"logger": logger}, "model": model}
    return Run(directory, config, progress=[(9, 640.0, 2.5)], scores=found)


def test_a_staged_student_is_measured_when_its_stage_ends(page):
    scores = [(step - 1, "accuracy2", nfe, step / 1000) for step in (100, 200, 300, 400) for nfe in (1, 2, 4, 8)]
    staged, other = run("mnist-progressive", *scores), run("mnist-cd", *scores)
    assert [page.value(staged, "accuracy2", steps) for steps in (8, 4, 2, 1)] == [0.1, 0.2, 0.3, 0.4]
    assert [page.value(other, "accuracy2", steps) for steps in (8, 4, 2, 1)] == [0.4] * 4
    assert page.value(other, "accuracy2", 16) is None
    assert page.value(other, "frechet_mnist2", 1) is None


def test_the_ends_of_the_stages_are_those_of_the_recipes(page):
    read = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in page.STAGES}
    progressive, lightning = (read[name]["model"]["init_args"] for name in ("progressive", "lightning"))
    lengths = {name: read[name]["trainer"]["max_steps"] for name in read}
    each = lengths["progressive"] // progressive["stages"]
    halved = {progressive["steps"] // 2**i: each * (i + 1) for i in range(progressive["stages"])}
    assert page.STAGES["progressive"] == halved
    each = lengths["lightning"] // len(lightning["stages"])
    last = {stage["student_steps"]: each * (i + 1) for i, stage in enumerate(lightning["stages"])}
    assert page.STAGES["lightning"] == last
    assert all(value["trainer"]["val_check_interval"] in page.STAGES[name].values() for name, value in read.items())


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("accuracy2", [0.9314, None, 1.0], ".931, 1.000"),
        ("mid_grey", [0.0], ".000"),
        ("frechet_mnist2", [12.46, 1234.5], "12.5, 1234.5"),
        ("kid_mnist2", [-0.18], "-0.2"),
        ("recall_mnist2", [], ""),
    ],
)
def test_shares_and_distances_are_shown_in_their_own_ways(page, metric, values, text):
    assert page.shown(metric, values) == text


def test_the_table_names_the_teacher_and_has_the_values_of_all_seeds(page):
    seeds = [
        run("mnist-cd", (9, "frechet_mnist2", 1, value), (9, "accuracy2", 1, 0.9), teacher="runs/mnist-teacher/seed0")
        for value in (3.0, 4.0)
    ]
    (cells,) = page.main_table({"cd": seeds}).rows
    assert cells == ["cd", "teacher", "640", "2", "3.0, 4.0 / .900, .900", "", "", ""]
    assert page.main_table({"ct": [run("mnist-cm-ct")]}).rows[0][:2] == ["ct", "data"]
    assert page.method(run("mnist-cm-ct")) == "ct"
    assert page.method(run("mnist-ect-teacher")) == "ect_teacher"


def test_the_picture_has_a_row_for_each_method_and_a_gap_where_nothing_was_measured(page, checkpoint, tmp_path):
    both = run("mnist-ect", (0, "accuracy", 4, 0.1), directory=checkpoint)
    one = run("mnist-dmd2", directory=checkpoint)
    assert page.digits(both, 4).shape == page.digits(one, 1).shape == (10, 1, 28, 28)
    assert page.digits(one, 4) is None
    assert page.digits(run("mnist-lightning", (0, "accuracy", 4, 0.1)), 4) is None  # its last student has one step
    for rows in (1, 3):
        page.picture({f"{i}": [both, one][i % 2 :][:1] for i in range(rows)}, tmp_path / f"{rows}.png")
    small, large = (Image.open(tmp_path / f"{rows}.png").size for rows in (1, 3))
    assert small[0] == large[0]
    assert large[1] > 1.5 * small[1]


def test_every_recipe_s_passes_make_up_the_budget():
    """``max_steps: N   # P passes`` of each recipe: N P is the budget, or less by less than a step."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        said = re.search(r"max_steps: (\d+)   # ([\d.]+) passes", path.read_text())
        if said:
            found[path.stem] = int(said[1]) * float(said[2]), float(said[2])
    assert len(found) > 20
    wrong = {name: total for name, (total, each) in found.items() if not 2000 - 3 * each <= total <= 2001}
    assert not wrong  # lightning's five stages are of equal length
