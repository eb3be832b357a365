"""The autoencoder and the text encoder of a small base."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from transformers import CLIPTokenizer

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.export import Export
from cm_lightning.data.captions import CaptionedMNIST
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent.base import PretrainedBase
from cm_lightning.latent.small import SmallBase
from cm_lightning.latent.tokenizer import train_tokenizer
from cm_lightning.metrics.clip_score import ClipScore
from cm_lightning.modules.autoencoder import AutoencoderModule
from cm_lightning.modules.contrastive import ContrastiveModule
from cm_lightning.modules.latent_diffusion import LatentDiffusionModule
from tests.helpers import module, trainer

TINY = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1), "latent_channels": 4}  # fmt: skip


def adam(parameters):
    return torch.optim.Adam(parameters, 2e-3)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A tiny autoencoder and CLIP, trained for some steps and exported as by their runs."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.set_num_threads(1)  # this comes before the fixture that does it for each test
    torch.manual_seed(0)
    autoencoder = AutoencoderModule(widths=(8, 8, 8), optimizer=adam)
    trainer(folder, max_steps=60).fit(autoencoder, datamodule=CaptionedMNIST(batch_size=16))
    autoencoder.export(folder / "vae")
    torch.manual_seed(1)
    clip = ContrastiveModule(width=32, patch=16, layers=1, heads=2, optimizer=lambda p: torch.optim.Adam(p, 1e-3))
    trainer(folder, max_steps=120, gradient_clip_val=1.0).fit(clip, datamodule=CaptionedMNIST(batch_size=32))
    clip.export(folder / "clip")
    return folder, autoencoder, clip


def test_an_autoencoder_s_latents_have_unit_variance(encoders):
    folder, m, _ = encoders
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    images = CaptionedMNIST().split("train")
    images = torch.stack([images[i][0] for i in range(0, 4000, 80)])
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        reconstructed = vae.decode(latents / vae.config.scaling_factor).sample
    assert latents.std().item() == pytest.approx(1, abs=0.15)
    assert (reconstructed - images).square().mean() < 0.5 * images.var()  # it has learnt something
    assert m.variance.item() != 1


def test_the_loss_of_autoencoders():
    torch.manual_seed(0)
    m = AutoencoderModule(widths=(8, 8), kl_weight=0.0).eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    noise = torch.Generator().manual_seed(1)
    loss = m.batch_loss((x, ["a", "b"]), 0, noise)
    density = m.backbone.encode(x).latent_dist
    z = density.mean + density.std * torch.randn(density.mean.shape, generator=torch.Generator().manual_seed(1))
    difference = m.backbone.decode(z).sample - x
    torch.testing.assert_close(loss, difference.abs().mean() + difference.square().mean())
    m.kl_weight = 0.5
    expected = loss + 0.5 * density.kl().sum() / density.mean.numel()
    torch.testing.assert_close(m.batch_loss(x, 0, torch.Generator().manual_seed(1)), expected)


def test_a_tiny_autoencoder_is_trained_too(tmp_path):
    m = AutoencoderModule(AutoencoderTiny(**TINY), optimizer=adam)
    trainer(tmp_path, max_steps=2).fit(m, datamodule=CaptionedMNIST(batch_size=4))
    m.export(tmp_path / "vae")
    assert AutoencoderTiny.from_pretrained(tmp_path / "vae").config.scaling_factor == pytest.approx(
        m.variance.item() ** -0.5
    )


def test_clip_tells_captions_apart_and_its_tokenizer_knows_the_words(encoders):
    folder, _, _ = encoders
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    tokens = tokenizer("a handwritten seven").input_ids
    assert tokenizer.convert_ids_to_tokens(tokens) == [
        "<|startoftext|>", "a</w>", "handwritten</w>", "seven</w>", "<|endoftext|>",
    ]  # fmt: skip
    assert max(tokens) < 384
    data = CaptionedMNIST()
    images = torch.stack([data.split("val")[i][0] for i in range(0, 1000, 5)])
    captions = [data.split("val")[i][1] for i in range(0, 1000, 5)]
    score = ClipScore(str(folder / "clip"))
    assert score(images, captions) > score(images, captions[100:] + captions[:100]) + 2
    with pytest.raises(CheckpointError, match="holds no CLIP model"):
        ClipScore(str(folder / "vae"))


def test_the_same_captions_give_the_same_tokens():
    captions = CaptionedMNIST().split("train").all_captions()
    one, two = (train_tokenizer(texts, 384, 16) for texts in (captions, captions[::-1]))
    assert one.get_vocab() == two.get_vocab()
    assert len(one.get_vocab()) <= 384
    tokens = one("A drawing of the digit: seven").input_ids
    assert tokens == two("A drawing of the digit: seven").input_ids
    assert one.decode(tokens, skip_special_tokens=True).split() == ["a", "drawing", "of", "the", "digit", ":", "seven"]
    assert len(train_tokenizer(captions, 300, 16).get_vocab()) == 300
    assert one("x" * 50, truncation=True).input_ids[-1] == one.eos_token_id


def test_equal_captions_are_each_other_s_matches():
    m = ContrastiveModule(width=16, patch=16, layers=1, heads=2)
    m.trainer = trainer("/tmp")
    data = m.trainer.datamodule = CaptionedMNIST(batch_size=4)
    m.setup("fit")
    images = torch.stack([data.split("train")[i][0] for i in (0, 1, 2, 3)])
    loss = m.batch_loss((images, ["the digit zero"] * 4), 0)
    assert loss.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.05)  # nothing to tell apart


@pytest.mark.parametrize("structure", ["sd15", "sd21", "sdxl"])
def test_a_small_base_of_each_structure_is_trained_exported_and_loaded(encoders, structure, tmp_path):
    folder, _, _ = encoders
    base = SmallBase(structure, str(folder / "vae"), str(folder / "clip"), widths=(8, 16))
    m, ema = LatentDiffusionModule(base, optimizer=adam), EMA(0.5)
    trainer(tmp_path, max_steps=2, callbacks=[ema, Export()]).fit(m, datamodule=CaptionedMNIST(batch_size=4))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(dict(pipe.unet.state_dict()), ema.average)  # the averaged weights, not the raw
    loaded = PretrainedBase(str(tmp_path / "export"))
    assert (loaded.image_size, loaded.is_xl) == (32, structure == "sdxl")
    assert loaded.schedule.prediction == ("v_prediction" if structure == "sd21" else "epsilon")
    torch.testing.assert_close(loaded.encode_prompts(["a seven"], (32, 32)), base.encode_prompts(["a seven"], (32, 32)))


def test_missing_encoders_and_wrong_modules_are_named(encoders, tmp_path):
    folder, _, _ = encoders
    with pytest.raises(CheckpointError, match=r"clip holds no autoencoder: .*--model.base.autoencoder"):
        SmallBase("sd15", str(folder / "clip"), str(folder / "clip"))
    with pytest.raises(CheckpointError, match=r"nowhere holds no CLIP: .*--model.base.text_encoder"):
        SmallBase("sd15", str(folder / "vae"), str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="Export: ConsistencyTraining does not export to another format"):
        trainer(tmp_path, callbacks=[Export()]).fit(module())
