"""Real processes: what starts quickly, what survives a kill."""

import pytest
import torch

from cm_lightning.checkpoint import read_checkpoint
from tests.processes import CONF, ROOT, fork, start


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
    fit = ("-m", "cm_lightning", "fit", f"--config={CONF}/{config}.yaml", "--callbacks.quality=null")
    kill = {"toy": 8, "image": 3}[config]  # between two checkpoints; toy is in its second epoch then
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    fork(*fit, cwd=tmp_path / "whole")
    killer = ("--trainer.callbacks+=tests.helpers.KillAt", f"--trainer.callbacks.step={kill}")
    assert fork(*fit, *killer, cwd=tmp_path / "killed", check=False).returncode == -9
    first = tmp_path / f"killed/runs/{config}/version_0/checkpoints/last.ckpt"
    assert 0 < read_checkpoint(first)["global_step"] < kill
    fork(*fit, "--ckpt_path=last", cwd=tmp_path / "killed")

    whole = read_checkpoint(tmp_path / f"whole/runs/{config}/version_0/checkpoints/last.ckpt")
    resumed = read_checkpoint(tmp_path / f"killed/runs/{config}/version_1/checkpoints/last.ckpt")
    assert whole["global_step"] == resumed["global_step"]
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    (average,) = (s["average"] for s in whole["callbacks"].values() if "average" in s)
    (again,) = (s["average"] for s in resumed["callbacks"].values() if "average" in s)
    torch.testing.assert_close(again, average, rtol=0, atol=0)


def test_without_the_extra_someone_elses_trainer_network_and_data_work_and_a_line_says_how_to_get_the_rest(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "import sys\n"
        "sys.modules['diffusers'] = None\n"
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
        "from cm_lightning.__main__ import main\n"
        f"recipe = '{ROOT}/experiments/lcm_lora/digits/lora.yaml'\n"
        "for command in (['fit', '--config', recipe], ['sample', '--pipeline=x', '--prompt=x']):\n"
        "    sys.argv = ['cm-lightning', *command]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert stop.code == 2\n"
        "    else: raise AssertionError\n"
    )
    done = start("theirs.py", cwd=tmp_path)
    assert "sampled (16, 3, 8, 8)" in done.stdout
    assert done.stderr.count("pip install 'cm-lightning[lcm]'") == 2
    assert "Traceback" not in done.stderr
