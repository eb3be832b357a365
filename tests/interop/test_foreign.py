import warnings

import pytest
import torch
from safetensors.torch import save_file

from cm_lightning.backbones.adm import ADM
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.pickles import read_pickle
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.training import ConsistencyTraining
from tests.backbones.zoo import unet2d
from tests.helpers import images, trainer
from tests.interop.snapshot import snapshot
from tests.interop.test_edm import reference as edm
from tests.interop.test_openai import SIZES
from tests.interop.test_openai import reference as openai

SHAPE = (3, 16, 16)


@pytest.fixture
def openai_file(tmp_path):
    torch.save(openai(**SIZES[0]).state_dict(), tmp_path / "cd.pt")
    return f"openai:{tmp_path / 'cd.pt'}"


def adm():
    return ADM(channels=128, multipliers=(1, 2), blocks=1, attention_levels=(1,), num_classes=3)


def test_openai_s_file_samples_teaches_and_starts_a_training(openai_file, tmp_path):
    m = load_module(openai_file)
    assert m.image_shape == SHAPE
    assert m.parameterization.noise_scale == 250
    assert m.sample(2, 2, labels=[0, 2]).shape == (2, *SHAPE)

    scaled = BoundaryShifted(noise_scale=250)
    student = ConsistencyDistillation(adm(), SHAPE, openai_file, parameterization=scaled)
    trainer(tmp_path, max_steps=1).fit(student, images(SHAPE, classes=3))
    assert isinstance(student.teacher, DiffusionModule)
    assert student.teacher.parameterization.noise_scale == 250

    tuned = ConsistencyTraining(adm(), SHAPE, parameterization=scaled, start_from=openai_file)
    tuned.setup("fit")
    torch.testing.assert_close(tuned.backbone.state_dict(), m.backbone.state_dict(), rtol=0, atol=0)


def test_a_noise_label_of_another_scale_is_refused(openai_file, tmp_path):
    line = r"250 ln sigma, this one takes 0\.25 ln sigma: set noise_scale of the parameterization"
    with pytest.raises(ConfigError, match=line):
        ConsistencyTraining(adm(), SHAPE, start_from=openai_file).setup("fit")
    with pytest.raises(ConfigError, match="set noise_scale"):
        ConsistencyDistillation(adm(), SHAPE, openai_file).setup("fit")


def test_edm_s_file_is_a_diffusion_model(tmp_path):
    torch.save(edm("ddpmpp").state_dict(), tmp_path / "edm.pt")
    m = load_module(f"edm:{tmp_path / 'edm.pt'}")
    assert isinstance(m, DiffusionModule)
    assert m.image_shape == SHAPE
    assert m.sample(1, 3).shape == (1, *SHAPE)


def test_a_missing_file_and_the_wrong_network_are_named(openai_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at nowhere\.pt"):
        load_module("openai:nowhere.pt")
    with pytest.raises(CheckpointError, match=r"cd\.pt: these are not the tensors of a network of EDM"):
        load_module(openai_file.replace("openai:", "edm:"))


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_the_attention_of_old_unet2d_models_is_read_as_diffusers_reads_it(file, tmp_path):
    theirs = unet2d(3).network
    theirs.save_config(tmp_path)
    state = dict(theirs.state_dict())
    for present, old in OLD.items():
        state = {name.replace(f".{present}.", f".{old}."): tensor for name, tensor in state.items()}
    assert sum(".proj_attn." in name for name in state) == 2 * sum(name.endswith("group_norm.bias") for name in state)
    save_file(state, tmp_path / file) if file.endswith("s") else torch.save(state, tmp_path / file)
    ours = load_module(f"diffusers:{tmp_path}").backbone.network
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_a_snapshot_of_edm_is_read_without_a_warning(tmp_path):
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)})
    (tmp_path / "x.pkl").write_bytes(snapshot(network))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_pickle(tmp_path / "x.pkl")
    torch.testing.assert_close(read, dict(network.state_dict()), rtol=0, atol=0)
