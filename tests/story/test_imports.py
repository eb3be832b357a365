"""What ``sample`` and ``edit`` import before they draw; the rest is there for code that uses it."""

import json

import pytest

from cm_lightning.cli import main
from tests.processes import CONF, start

HEAVY = [
    "torchmetrics.functional", "torchvision", "scipy", "transformers", "diffusers", "wandb", "mlxtend",
    "cm_lightning.cli", "cm_lightning.data.base", "cm_lightning.callbacks.progress",
]  # fmt: skip
CODE = f"""
import json, sys
from cm_lightning.__main__ import main
sys.argv = ["cm-lightning", "sample", "--ckpt_path", "runs", "--num_samples", "1", "--output", "samples.npz"]
main()
import cm_lightning.commands.edit, cm_lightning.commands.pictures, cm_lightning.editing
found = [name for name in {HEAVY} if name in sys.modules]
import torchmetrics
from torchmetrics import Accuracy, Metric
from torchmetrics.functional import accuracy
print(json.dumps([found, issubclass(Accuracy, Metric)]))
"""


def test_drawing_imports_nothing_heavy_that_it_need_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cm-lightning"])
    main(["fit", f"--config={CONF}/toy.yaml", "--trainer.max_steps=2", "--trainer.logger.init_args.save_dir=."])
    code = CODE.replace('"runs"', '"toy"')
    done = start("-c", code, cwd=tmp_path)
    found, accuracy = json.loads(done.stdout.splitlines()[-1])
    assert found == []
    assert accuracy
    assert (tmp_path / "samples.npz").is_file()


@pytest.mark.parametrize("name", ["NoSuchMetric", "__wrapped__"])
def test_a_name_that_is_not_there_is_none(tmp_path, name):
    code = f"""
from cm_lightning.light import light_lightning
light_lightning()
import torchmetrics
assert torchmetrics.__version__
assert not hasattr(torchmetrics, {name!r})
"""
    start("-c", code, cwd=tmp_path)
