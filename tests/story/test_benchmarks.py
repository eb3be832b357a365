"""The scripts of experiments/benchmarks run, each at a small size."""

import re

import pytest

from tests.processes import ROOT, fork

FOLDER = ROOT / "experiments/benchmarks"


@pytest.mark.parametrize(
    ("script", "options", "line"),
    [
        ("steps.py", "--channels 8 --side 8 --images 2 --rounds 1 --only EDM DMD2", r"\| DMD2 \| [\d.]+ \|"),
        ("overhead.py", "--small --steps 3", r"ratio full / bare: [\d.]+"),
    ],
)
def test_a_benchmark_prints_its_table(script, options, line, tmp_path):
    done = fork(str(FOLDER / script), *options.split(), cwd=tmp_path)
    assert re.search(line, done.stdout), done.stdout


def test_the_check_of_a_gpu_names_scripts_and_options_that_exist():
    text = (FOLDER / "gpu_check.sh").read_text()
    called = re.findall(r"python (experiments/\S+)(.*)", text)
    assert len(called) == 2
    for script, options in called:
        source = (ROOT / script).read_text()
        assert all(f'"{option}"' in source for option in re.findall(r"--\w+", options))
