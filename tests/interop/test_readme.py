"""From README's training on a folder of images to a pipeline that plain diffusers draws with."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cm_lightning.cli import main as fit
from cm_lightning.commands import export
from cm_lightning.modules.loading import load_module

ROOT = Path(__file__).parents[2]


def test_a_network_trained_on_a_folder_draws_in_plain_diffusers(tmp_path, monkeypatch):
    from diffusers import ConsistencyModelPipeline

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    network = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "norm_groups": 32}
    options = {
        "data.root": "photos", "data.size": 16, "data.batch_size": 4, "data.num_workers": 0,
        "model.image_shape": [3, 16, 16], "model.backbone": "ADM",
        **{f"model.backbone.{name}": value for name, value in network.items()},
        "model.optimizer": "torch.optim.Adam", "model.optimizer.lr": 0.01, "model.lr_scheduler": "null",
        "trainer.max_steps": 2, "trainer.val_check_interval": 100, "callbacks.samples": "null",
        "callbacks.quality": "null", "trainer.precision": "32-true", "trainer.accelerator": "cpu",
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    fit(["fit", f"--config={ROOT / 'experiments/folder/ct.yaml'}", *arguments])
    checkpoint = "runs/folder-ct/version_0/checkpoints/last.ckpt"
    export.main([f"--ckpt_path={checkpoint}", "--format=diffusers", "--output=exported"])

    pipeline = ConsistencyModelPipeline.from_pretrained("exported")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    theirs = 2 * pipeline(batch_size=2, num_inference_steps=1, generator=generator, output_type="pt").images - 1
    ours = load_module(checkpoint).sample(2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert ours.std() > 0.05
