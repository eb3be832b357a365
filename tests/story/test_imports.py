"""What ``sample`` and ``edit`` import before they draw; the rest is there for code that uses it."""

import json

from cm_lightning.cli import main
from tests.processes import CONF, start

HEAVY = [
    "torchmetrics.functional", "torchvision", "scipy", "sympy", "torch._dynamo.eval_frame",
    "transformers", "diffusers", "wandb", "mlxtend",
    "cm_lightning.cli", "cm_lightning.data.base", "cm_lightning.callbacks.progress",
]  # fmt: skip
CODE = f"""
import json, os, sys
from cm_lightning.__main__ import main
sys.argv = ["cm-lightning", "sample", "--ckpt_path", "toy", "--num_samples", "1", "--output", "samples.npz"]
main()
import cm_lightning.commands.edit, cm_lightning.commands.pictures, cm_lightning.editing
found = [name for name in {HEAVY} if name in sys.modules]
import torchmetrics
absent = []
for name in ["NoSuchMetric", "__wrapped__"]:
    if (other := os.fork()) == 0:  # so that each is the first name that its process asks for
        os._exit(hasattr(torchmetrics, name))
    absent.append(os.waitpid(other, 0)[1] == 0)
import torch
from lightning.fabric.wrappers import OptimizedModule
plain = torch.nn.Linear(2, 2)
before = isinstance(plain, OptimizedModule)
compiled = torch.compile(plain, backend="eager")
assert torch.equal(compiled(torch.ones(1, 2)), plain(torch.ones(1, 2)))
kinds = [before, isinstance(plain, OptimizedModule), isinstance(compiled, OptimizedModule)]
assert torchmetrics.__version__
from torchmetrics import Accuracy, Metric
from torchmetrics.functional import accuracy
print(json.dumps([found, absent, issubclass(Accuracy, Metric), kinds]))
"""


def test_drawing_imports_nothing_heavy_that_it_need_not_and_the_rest_is_there_for_other_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cm-lightning"])
    main(["fit", f"--config={CONF}/toy.yaml", "--trainer.max_steps=2", "--trainer.logger.init_args.save_dir=."])
    done = start("-c", CODE, cwd=tmp_path)
    found, absent, accuracy, kinds = json.loads(done.stdout.splitlines()[-1])
    assert found == []
    assert absent == [True, True]  # names that are not there
    assert accuracy
    assert kinds == [False, False, True]  # whether Lightning takes a module as compiled
    assert (tmp_path / "samples.npz").is_file()
