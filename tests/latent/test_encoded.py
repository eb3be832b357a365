"""Latents and conditions computed once."""

import pytest
import torch

pytest.importorskip("diffusers")

from cm_lightning.data.captions import CaptionedMNIST
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.encoded import encoded, fingerprint
from cm_lightning.latent.student import LoRA
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from tests.helpers import points, trainer
from tests.latent.tiny import tiny_sd, tiny_sdxl

ITEMS = [(torch.full((3, 16, 16), i / 10 - 0.5), f"a {'abc'[i % 3]}") for i in range(7)]


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_what_is_kept_is_what_would_be_computed(make, tmp_path):
    base = TextToImageBase(make())
    found = [encoded(ITEMS, base, tmp_path) for _ in range(2)]  # computed, then read
    images, captions = torch.stack([image for image, _ in ITEMS]), [caption for _, caption in ITEMS]
    for data in found:
        latents, conditions = data.__getitems__(list(range(7)))
        torch.testing.assert_close(latents, base.encode_images(images))
        expected = base.encode_prompts(captions, (16, 16))
        for ours, theirs in zip(conditions, expected, strict=True):
            assert ours is theirs is None or torch.allclose(ours, theirs, atol=1e-6)
        assert len(data.conditions.hidden) == 3  # each different caption once
    assert len(list(tmp_path.iterdir())) == 1


def test_other_models_and_data_have_files_of_their_own(tmp_path):
    base, other = TextToImageBase(tiny_sd()), TextToImageBase(tiny_sd())
    other.pipe.vae.encoder.conv_in.weight.data *= 2
    assert fingerprint(base) != fingerprint(other)
    rescaled = TextToImageBase(tiny_sd())
    rescaled.pipe.vae.register_to_config(scaling_factor=2.0)
    for model, data in ((base, ITEMS), (other, ITEMS), (rescaled, ITEMS), (base, ITEMS[:5]),
                        (base, [(image, caption + " b") for image, caption in ITEMS])):  # fmt: skip
        encoded(data, model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_encoding_draws_no_number_of_the_training_s_and_an_edited_caption_is_noticed(tmp_path):
    base, state = TextToImageBase(tiny_sd()), torch.get_rng_state()
    encoded(ITEMS, base, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)

    class Captions(list):
        targets = ("a", "b")

    data, edited = Captions(ITEMS * 40), Captions(ITEMS * 40)
    edited.targets = ("a", "c")
    encoded(data, base, tmp_path)
    encoded(edited, base, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_file_is_named(tmp_path):
    base = TextToImageBase(tiny_sd())
    encoded(ITEMS, base, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"latents-.* holds no latents: remove it"):
        encoded(ITEMS, base, tmp_path)


def test_a_run_with_a_cache_encodes_once_and_draws_its_batches_from_there(tmp_path):
    pipe = tiny_sd()
    pipe.unet.register_to_config(sample_size=16)
    m = LatentConsistencyDistillation(TextToImageBase(pipe), LoRA(2), cache=str(tmp_path / "cache"))
    data = CaptionedMNIST(batch_size=8)
    full = data.labelled
    data.labelled = lambda split: tuple(part[:20] for part in full(split))
    calls = []
    encode = m.base.encode_images
    m.base.encode_images = lambda images: calls.append(len(images)) or encode(images)
    for _ in range(2):
        trainer(tmp_path, max_steps=3).fit(m, datamodule=data)
    assert sum(calls) == 20 * 5 + 20 * 3  # each image under each phrasing, of both splits, in the first run
    assert data.split("train")[0][0].shape == (3, 32, 32)  # what others see are images still
    with pytest.raises(ConfigError, match=r"--model.cache needs a data module"):
        trainer(tmp_path).fit(m, points())
