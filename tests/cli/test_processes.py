"""Real processes: what starts quickly, what survives a kill, what several ranks do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cm_lightning.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
CONF = Path(__file__).parents[1] / "conf"


def start(*arguments, cwd, check=True, env=None):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def test_light_commands_do_not_import_torch(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['cm-lightning', '{}']\n"
        "runpy.run_module('cm_lightning', run_name='__main__')\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    assert start("-c", code.format("--version"), cwd=tmp_path).stdout.startswith("cm-lightning ")
    assert "sample" in start("-c", code.format("--help"), cwd=tmp_path).stdout


def test_the_mathematics_needs_no_lightning(tmp_path):
    names = (
        "curriculum distance ideal latent lipschitz noise oracle parameterization sampler schedule solver trajectory "
        "weighting"
    )
    code = f"import sys\nfor n in '{names}'.split(): __import__('cm_lightning.core.' + n)\n"
    start("-c", code + "assert not {'lightning', 'wandb', 'torchmetrics'} & set(sys.modules)", cwd=tmp_path)


def test_unknown_commands_are_named(tmp_path):
    done = start("-m", "cm_lightning", "fti", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'fti'; perhaps fit is meant; choose one of fit,")


@pytest.mark.parametrize("config", ["toy", "image"])
def test_a_killed_run_resumes_to_the_bit_equal_weights(tmp_path, config):
    fit = ("-m", "cm_lightning", "fit", f"--config={CONF}/{config}.yaml")
    kill = {"toy": 8, "image": 3}[config]  # between two checkpoints; toy is in its second epoch then
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    start(*fit, cwd=tmp_path / "whole")
    killer = ("--trainer.callbacks+=tests.helpers.KillAt", f"--trainer.callbacks.step={kill}")
    assert start(*fit, *killer, cwd=tmp_path / "killed", check=False).returncode == -9
    first = tmp_path / f"killed/runs/{config}/version_0/checkpoints/last.ckpt"
    assert 0 < read_checkpoint(first)["global_step"] < kill
    start(*fit, "--ckpt_path=last", cwd=tmp_path / "killed")

    whole = read_checkpoint(tmp_path / f"whole/runs/{config}/version_0/checkpoints/last.ckpt")
    resumed = read_checkpoint(tmp_path / f"killed/runs/{config}/version_1/checkpoints/last.ckpt")
    assert whole["global_step"] == resumed["global_step"]
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    (average,) = (s["average"] for s in whole["callbacks"].values() if "average" in s)
    (again,) = (s["average"] for s in resumed["callbacks"].values() if "average" in s)
    torch.testing.assert_close(again, average, rtol=0, atol=0)


def test_two_ranks_draw_different_noise_and_hold_equal_weights(tmp_path):
    (tmp_path / "ranks.py").write_text(
        "import torch, lightning as L\n"
        "from tests.helpers import module, points, trainer\n"
        "class Watch(L.Callback):\n"
        "    def on_train_batch_end(self, trainer, pl_module, *_):\n"
        "        noise = trainer.strategy.all_gather(torch.rand(3))\n"
        "        weights = trainer.strategy.all_gather(pl_module.backbone.head.bias.detach())\n"
        "        target = trainer.strategy.all_gather(pl_module.target.head.bias)\n"
        "        assert not torch.equal(noise[0], noise[1])\n"
        "        assert torch.equal(weights[0], weights[1]) and torch.equal(target[0], target[1])\n"
        "if __name__ == '__main__':\n"
        "    from cm_lightning.core.curriculum import ConstantRate\n"
        "    L.seed_everything(0)\n"
        "    t = trainer('.', strategy='ddp', devices=2, callbacks=[Watch()], max_steps=2)\n"
        "    m = module(target_rate=ConstantRate(0.5))\n"
        "    t.fit(m, points())\n"
        "    t.save_checkpoint('two.ckpt')\n"
        "    if t.is_global_zero: print('ranks done', t.world_size)\n"
    )
    assert "ranks done 2" in start("ranks.py", cwd=tmp_path).stdout
    states = read_checkpoint(tmp_path / "two.ckpt")["random_states"]
    assert len(states) == 2
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])


def test_someone_elses_trainer_network_and_data(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "import lightning as L, torch\n"
        "from torch import nn\n"
        "from cm_lightning import EMA, ConsistencyTraining\n"
        "class MyNet(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(4, 3, 3, padding=1)\n"
        "    def forward(self, x, noise_label, class_label=None):\n"
        "        noise = noise_label.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])\n"
        "        return self.conv(torch.cat([x, noise], 1))\n"
        "class MyData(L.LightningDataModule):\n"
        "    def train_dataloader(self):\n"
        "        return torch.utils.data.DataLoader(torch.rand(32, 3, 8, 8) * 2 - 1, batch_size=8)\n"
        "module = ConsistencyTraining(backbone=MyNet(), image_shape=(3, 8, 8))\n"
        "trainer = L.Trainer(callbacks=[EMA(decay=0.9999)], max_epochs=2, logger=False, accelerator='cpu')\n"
        "trainer.fit(module, MyData())\n"
        "assert trainer.global_step == 8\n"
        "print('sampled', tuple(module.sample(16, steps=1).shape))\n"
    )
    assert "sampled (16, 3, 8, 8)" in start("theirs.py", cwd=tmp_path).stdout
