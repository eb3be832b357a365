"""What ``fit``, ``sample`` and ``edit`` import before they work; the rest is there for code that uses it."""

import json

from tests.processes import CONF, start

HEAVY = [
    "torchmetrics.functional.text", "torchvision", "scipy", "sympy", "torch._dynamo.eval_frame",
    "transformers", "diffusers", "wandb", "mlxtend",
    "cm_lightning.cli", "cm_lightning.data.base", "cm_lightning.callbacks.progress",
]  # fmt: skip
FIT = f"""
import json, sys
from cm_lightning.__main__ import main
sys.argv = [
    "cm-lightning", "fit", "--config={CONF}/toy.yaml", "--trainer.max_steps=2", "--trainer.logger.init_args.save_dir=.",
]
main()
import importlib.util, torch
assert importlib.util.find_spec("torch._dynamo") is not None
@torch.compiler.disable
def apart(x): return x.sin()
class Net(torch.nn.Module):
    def forward(self, x): return apart(x.cos()) + 1
heavy = ["torchmetrics.text", "scipy.signal", "transformers", "diffusers", "sympy", "torch._dynamo.eval_frame"]
found = [name for name in heavy if name in sys.modules]
import torch._dynamo.config as config  # a file of the compiler, which imports all of it
import torch
compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
same = config is torch._dynamo.config and "_dynamo" in type(compiled).__module__
graphs = []
def backend(graph, example):
    graphs.append([node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"] + [
        node.target for node in graph.graph.nodes if node.op == "call_method"
    ])
    return graph.forward
x = torch.ones(2)
equal = torch.equal(torch.compile(Net(), backend=backend)(x), x.cos().sin() + 1)
held = torch.compiler.disable(torch.nn.Linear(2, 2))
from torchmetrics.functional.text import bleu_score
from torchmetrics.image import FrechetInceptionDistance
print(json.dumps([found, same, equal, "sin" in str(graphs), len(graphs), len(list(held.parameters()))]))
"""
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


def test_nothing_heavy_is_imported_that_is_not_needed_and_the_rest_is_there_for_other_code(tmp_path):
    trained = start("-c", FIT, cwd=tmp_path)
    assert json.loads(trained.stdout.splitlines()[-1]) == [[], True, True, False, 2, 2]
    done = start("-c", CODE, cwd=tmp_path)
    found, absent, accuracy, kinds = json.loads(done.stdout.splitlines()[-1])
    assert found == []
    assert absent == [True, True]  # names that are not there
    assert accuracy
    assert kinds == [False, False, True]  # whether Lightning takes a module as compiled
    assert (tmp_path / "samples.npz").is_file()
