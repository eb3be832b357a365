"""A network that is split over two ranks trains as one that is copied to both."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

pytest.importorskip("diffusers")

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.sample_grid import SampleGrid
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.student import LoRA
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from cm_lightning.sharding import Sharded
from tests.helpers import module, trainer
from tests.latent.tiny import tiny_sd
from tests.modules.every_method import made
from tests.processes import fork

ON_CPU = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch splits nothing on a CPU yet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    fork(str(Path(__file__).with_name("shard_ranks.py")), "found.json", cwd=folder)
    found = json.loads((folder / "found.json").read_text())
    return found, {path.parts[-3]: read_checkpoint(path) for path in folder.rglob("last.ckpt")}


@ON_CPU
def test_a_rank_holds_half_of_the_network_and_gets_the_losses_and_gradients_of_a_whole_one(runs):
    copied, split = (runs[0][name] for name in ("copied", "split"))
    assert (copied["part"], split["part"]) == (1, pytest.approx(0.5, abs=0.02))
    assert len(split["losses"]) == 3  # of two batches, and of a validation
    assert split["losses"] == pytest.approx(copied["losses"], rel=1e-5)
    assert split["norms"] == pytest.approx(copied["norms"], rel=1e-5)


@ON_CPU
def test_checkpoints_are_whole_and_each_kind_of_run_resumes_the_other(runs):
    files = runs[1]
    for one, other in (("split", "copied"), ("split_on", "copied_on")):
        torch.testing.assert_close(files[one]["state_dict"], files[other]["state_dict"], rtol=0, atol=1e-5)
        torch.testing.assert_close(files[one]["optimizer_states"][0]["state"],
                                   files[other]["optimizer_states"][0]["state"], rtol=1e-4, atol=1e-6)  # fmt: skip
    assert files["split_on"]["global_step"] == files["copied_on"]["global_step"] == 2


def test_a_torch_that_cannot_split_on_a_cpu_gets_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cpu.Stream", object)
    own = module()
    own.trainer = trainer(tmp_path, strategy=Sharded())
    with pytest.raises(ConfigError, match="cannot split a network on a CPU: update torch"):
        own.trainer.strategy.shard(own)


@pytest.mark.parametrize(
    ("options", "callbacks", "line"),
    [
        ({}, [EMA()], "leave out EMA by --callbacks.ema null"),
        (
            {},
            [SampleGrid(), EMA()],
            "EMA by --callbacks.ema null; leave out SampleGrid by --callbacks.samples null",
        ),
        ({"target_rate": ConstantRate(0.5)}, [], "leave out target_rate"),
    ],
)
def test_what_needs_whole_weights_is_refused(options, callbacks, line, tmp_path):
    own = module(**options)
    own.trainer = trainer(tmp_path, strategy=Sharded(), callbacks=callbacks)
    with pytest.raises(ConfigError, match=line):
        own.trainer.strategy.shard(own)


def test_an_adapter_is_refused(tmp_path):
    own = LatentConsistencyDistillation(TextToImageBase(tiny_sd()), LoRA(2))
    own.trainer = trainer(tmp_path, strategy=Sharded())
    with pytest.raises(ConfigError, match="an adapter is small enough for every rank; or take ddp"):
        own.trainer.strategy.shard(own)


def test_methods_and_strategies_that_cannot_be_split_are_refused(tmp_path):
    for method in ("MeanFlow", "Lightning", "CTM"):
        own = made(method)
        own.trainer = trainer(tmp_path, strategy=Sharded())
        with pytest.raises(ConfigError, match=f"{type(own).__name__} does not train one network by plain gradients"):
            own.trainer.strategy.shard(own)
    own = module()
    own.trainer, own._device_mesh = trainer(tmp_path, strategy=ModelParallelStrategy()), object()
    with pytest.raises(ConfigError, match="ModelParallelStrategy is not supported: take ddp, or"):
        own.configure_model()
