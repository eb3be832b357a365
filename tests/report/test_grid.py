"""Cells of a grid, and the tables and pictures made from them."""

import csv
from pathlib import Path

import pytest
import torch

from cm_lightning.commands import evaluate
from cm_lightning.errors import DataError
from cm_lightning.images import write_png
from cm_lightning.report.cells import Cell, best, cell_path, read_cells, settings
from cm_lightning.report.grids import best_table, grid_table, guidance_table, heat_maps


def cell(model="lora", weights="a", steps=1, guidance=1.0, frechet=10.0, accuracy=0.9, seconds=0.01, nfe=None):
    scores = {"frechet_mnist": frechet, "accuracy": accuracy}
    return Cell(model, weights, steps, guidance, {"num_samples": 100}, nfe or steps, seconds, 50, scores)


GRID = [
    cell(frechet=10.0, seconds=0.01),
    cell(weights="b", frechet=14.0, seconds=0.03),
    cell(steps=2, frechet=9.0, accuracy=0.95, seconds=0.05),
    cell(steps=2, guidance=4.0, frechet=30.0, accuracy=0.99, seconds=0.09, nfe=4),
    cell(model="base", frechet=80.0, accuracy=0.4),
]


def test_cells_are_kept_in_files_of_their_own(tmp_path):
    for one in GRID:
        one.write(tmp_path)
    assert sorted(read_cells(tmp_path), key=str) == sorted(GRID, key=str)
    assert (tmp_path / "cells" / cell_path("lora", "a", 1, 1.0)).is_file()
    assert len({cell_path("lora", w, s, g) for g in (1.0, 1.5) for w in "xy" for s in (1, 2)}) == 8
    Cell("lora", "c", 1, 1.0, {"num_samples": 1000}, 1, 0.1, 50, {}).write(tmp_path)
    with pytest.raises(DataError, match=r"holds measurements with num_samples \d+, not \d+: give another --output"):
        read_cells(tmp_path)
    (tmp_path / "cells/damaged.json").write_text("{")
    with pytest.raises(DataError, match=r"damaged.json is not a measurement: remove it"):
        read_cells(tmp_path)


def test_seeds_are_put_together():
    found = settings(GRID)
    assert [(s.model, s.steps, s.guidance, len(s.cells)) for s in found] == [
        ("base", 1, 1.0, 1), ("lora", 1, 1.0, 2), ("lora", 2, 1.0, 1), ("lora", 2, 4.0, 1),
    ]  # fmt: skip
    two, one = found[1], found[2]
    assert (two.value("frechet_mnist"), two.spread("frechet_mnist")) == (12.0, pytest.approx(8**0.5))
    assert one.spread("frechet_mnist") is None
    assert two.seconds == pytest.approx(0.02)


def test_the_best_setting_has_the_least_distance_or_the_most_accuracy_within_the_time():
    found = [s for s in settings(GRID) if s.model == "lora"]
    assert (best(found, "frechet_mnist").steps, best(found, "frechet_mnist").guidance) == (2, 1.0)
    assert best(found, "frechet_mnist", latency=0.02).steps == 1
    assert best(found, "accuracy").guidance == 4.0
    assert best(found, "accuracy", latency=0.06).guidance == 1.0
    assert best(found, "accuracy", latency=0.001) is None


def test_tables_say_value_and_spread(tmp_path):
    found = settings(GRID)
    rows = grid_table(found, ["frechet_mnist", "accuracy"]).rows
    assert rows[1] == ["lora", "1", "1", "1", "2", "12.0 ± 2.8", "0.900 ± 0.000", "20"]
    table = guidance_table(found, ["frechet_mnist"])
    assert table.heads == ["model", "steps", "guidance 1", "guidance 4"]
    assert table.rows == [["base", "1", "80.0", ""], ["lora", "1", "12.0 ± 2.8", ""], ["lora", "2", "9.0", "30.0"]]
    rows = best_table(found, ["frechet_mnist"], 0.02).rows
    assert ["lora", "frechet_mnist", "", "2", "1", "2", "9.0"] in rows
    assert ["lora", "frechet_mnist", "20 ms", "1", "1", "1", "12.0 ± 2.8"] in rows
    assert ["base", "frechet_mnist", "5 ms", "none", "", "", ""] in best_table(found, ["frechet_mnist"], 0.005).rows
    heat_maps(found, ["frechet_mnist", "accuracy"], tmp_path / "maps.png")
    from PIL import Image

    assert Image.open(tmp_path / "maps.png").size[0] > 400


def test_cells_of_before_and_with_more_measures_are_logged_and_reported_together(tmp_path):
    old, new = cell(), cell(steps=2)
    new.scores.update(frechet_mnist2=50.0, accuracy2=0.8, kid_mnist=0.00123)
    for one in (old, new):
        one.write(tmp_path)
        write_png(tmp_path / "samples" / Path(one.path).with_suffix(".png"), torch.zeros(3, 50, 50, dtype=torch.uint8))
    evaluate._log(evaluate.make_parser().parse_args([]), [old, new], tmp_path / "trial")
    with open(tmp_path / "trial/metrics.csv") as file:
        first, second = csv.DictReader(file)
    assert (first["frechet_mnist2"], second["frechet_mnist2"]) == ("", "50.0")
    evaluate._report(tmp_path, None)
    assert "frechet_mnist2" not in (tmp_path / "grid.md").read_text()


def test_the_summary_has_the_first_classifier_and_the_grid_has_all(tmp_path):
    one = cell()
    one.scores.update(frechet_mnist2=50.0, accuracy2=0.8, kid_mnist=0.00123, precision_mnist2=0.7)
    one.write(tmp_path)
    write_png(tmp_path / "samples" / Path(one.path).with_suffix(".png"), torch.zeros(3, 50, 50, dtype=torch.uint8))
    evaluate._report(tmp_path, None)
    page = (tmp_path / "grid.md").read_text()
    assert "## frechet_mnist / accuracy by guidance scale" in page
    assert "| frechet_mnist | accuracy | frechet_mnist2 | accuracy2 | kid_mnist | precision_mnist2 |" in page
    assert "| 10.0 | 0.900 | 50.0 | 0.800 | 0.00123 | 0.700 |" in page
