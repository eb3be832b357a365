import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cm_lightning.callbacks.ema import EMA
from cm_lightning.cli import main
from cm_lightning.core.curriculum import ConstantRate
from cm_lightning.plan import plan
from tests.helpers import module

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p for p in (ROOT / "experiments").glob("[ci]*/*.yaml") if p.stem != "base")


class Square(nn.Module):
    """Keeps its input (for the weight's gradient), and one output of 4 bytes an entry to be squared."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1024, 1024))

    def forward(self, x, noise_label, class_label=None):
        return (x.flatten(1) @ self.weight).square().reshape(x.shape)


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [(torch.optim.SGD, 0), (lambda p: torch.optim.SGD(p, momentum=0.9), 1), (torch.optim.RAdam, 2)],
)
def test_memory_is_counted_by_what_the_parts_keep(optimizer, copies):
    m = module(backbone=Square(), image_shape=(1, 32, 32), optimizer=optimizer, target_rate=ConstantRate(0.5))
    text = plan(m, 100, 8, 2, 3, [EMA(), EMA(0.5, evaluate=False)])
    assert "Square: 1,048,576 parameters" in text
    assert "100 steps x 24 images = 2,400 images; 4 a rank on 2 rank(s)" in text
    assert f"{(5 + copies) * 4 / 1024:.2f} GiB = 1 x weights + 1 x gradients" in text
    assert (f"{copies} x optimizer" in text) == (copies > 0)
    assert "2 x averages + 1 x target of 0.00 GiB" in text
    assert f"{2 * 4096 / 2**20:.1f} MiB an image" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_published_recipe_says_what_it_would_be(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # without data, teacher or extractor
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={path}", "--dry_run", "--trainer.accelerator=cpu", "--trainer.precision=32-true"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert ("55,732,739" if "cifar10" in path.parts else "295,899,267") in text
    assert text.splitlines()[-5].startswith("0  ")
    assert not any(tmp_path.iterdir())


def test_schedules_are_the_papers(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    with pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT}/experiments/cifar10/ct.yaml", "--dry_run", "--trainer.accelerator=cpu"])
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split("  N ")[1].split()[0] for line in lines] == ["2", "76", "107", "131", "151"]  # recipes of CM
    assert "800,000" in lines[-1]
