"""A base hides the differences between SD 1.5, SD 2.1 and SDXL."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from huggingface_hub import constants

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent.base import Conditioning, PretrainedBase, TextToImageBase, load_pipeline
from cm_lightning.latent.structures import HUB, UNETS, small_unet
from tests.latent.tiny import tiny_sd, tiny_sdxl

PROMPTS = ["a seven", "a three"]


@pytest.mark.parametrize(
    ("structure", "parameters"), [("sd15", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684)]
)
def test_the_structures_are_the_published_networks(structure, parameters):
    with torch.device("meta"):
        network = UNet2DConditionModel(**UNETS[structure])
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("structure", list(UNETS))
@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 16, 16)])
def test_small_networks_have_the_same_kind_of_blocks(structure, widths):
    config = small_unet(structure, widths, 1, 16, 4)
    network = UNet2DConditionModel(**config)
    added = {"text_embeds": torch.zeros(2, 16), "time_ids": torch.zeros(2, 6)}
    hidden = torch.zeros(2, 5, 32 if structure == "sdxl" else 16)
    out = network(torch.zeros(2, 4, 4, 4), torch.tensor([1, 2]), hidden, added_cond_kwargs=added).sample
    assert out.shape == (2, 4, 4, 4)
    assert set(config["down_block_types"]) <= set(UNETS[structure]["down_block_types"])


def test_prompts_are_encoded_as_the_pipelines_do():
    for pipe in (tiny_sd(), tiny_sdxl()):
        base = TextToImageBase(pipe)
        c = base.encode_prompts(PROMPTS, (16, 24))
        expected = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        torch.testing.assert_close(c.hidden, expected[0])
        if base.is_xl:
            torch.testing.assert_close(c.pooled, expected[2])
            assert c.time_ids.tolist() == [[16, 24, 0, 0, 16, 24]] * 2
        else:
            assert c.pooled is c.time_ids is None


def test_without_a_prompt_sdxl_has_zeros_and_sd_the_empty_prompt():
    sd, xl = TextToImageBase(tiny_sd()), TextToImageBase(tiny_sdxl())
    torch.testing.assert_close(sd.no_prompt((16, 16)).hidden, sd.encode_prompts([""], (16, 16)).hidden)
    nothing = xl.no_prompt((16, 16))
    assert not nothing.hidden.any()
    assert not nothing.pooled.any()
    assert nothing.time_ids[0, 0] == 16
    xl.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert xl.no_prompt((16, 16)).pooled.any()


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_the_network_is_called_as_the_pipeline_calls_it(make):
    """Compare one evaluation by hand with that of the pipeline, taken from the input of its scheduler."""
    pipe, seen = make(), []
    base, z = TextToImageBase(pipe), torch.randn(2, 4, 8, 8)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, t, *a, **o: seen.append((output, t)) or step(output, t, *a, **o)
    pipe(prompt=PROMPTS, latents=z, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    t = torch.full((2,), 999)
    torch.testing.assert_close(base.output(base.unet, z, t, base.encode_prompts(PROMPTS, (16, 16))), seen[0][0])
    assert seen[0][1] == 999


def test_latents_are_scaled_and_come_back():
    base, images = TextToImageBase(tiny_sd()), torch.rand(3, 3, 16, 16) * 2 - 1
    latents = base.encode_images(images)
    assert latents.shape == (3, 4, 8, 8)
    assert base.image_size == 16
    vae = base.pipe.vae
    torch.testing.assert_close(latents / vae.config.scaling_factor, vae.encode(images).latent_dist.mean)
    decoded = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(base.decode(latents), decoded)


def test_a_tiny_autoencoder_serves_too():
    pipe = tiny_sd()
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    base = TextToImageBase(pipe)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(base.encode_images(images), pipe.vae.encode(images).latents)
    assert base.decode(base.encode_images(images)).shape == images.shape


def test_conditions_are_chosen_joined_and_moved():
    a = Conditioning(torch.zeros(2, 3, 4), torch.zeros(2, 5), torch.zeros(2, 6))
    b = Conditioning(torch.ones(2, 3, 4), torch.ones(2, 5), torch.ones(2, 6))
    mixed = a.where(torch.tensor([True, False]), b)
    assert [part[:, 0].flatten()[[0, -1]].tolist() for part in mixed] == [[0, 1]] * 3
    assert a.followed_by(b).pooled.sum() == 10
    assert a.to(torch.float64).hidden.dtype == torch.float64
    assert Conditioning(torch.zeros(2, 3, 4)).rows(torch.tensor([1, 1, 0])).hidden.shape == (3, 3, 4)


def test_a_folder_is_loaded_in_any_dtype_with_its_autoencoder_in_float32(tmp_path):
    tiny_sdxl().save_pretrained(tmp_path / "xl")
    base = PretrainedBase(str(tmp_path / "xl"), dtype="bfloat16")
    assert base.is_xl
    assert (base.unet.dtype, base.pipe.text_encoder_2.dtype) == (torch.bfloat16, torch.bfloat16)
    assert base.pipe.vae.dtype == torch.float32
    c = base.encode_prompts(PROMPTS, (16, 16))
    output = base.output(base.unet, torch.randn(2, 4, 8, 8), torch.tensor([1, 999]), c)
    assert (output.dtype, c.time_ids.dtype) == (torch.float32, torch.float32)
    assert not any(p.requires_grad for p in base.pipe.text_encoder.parameters())


def test_on_the_meta_device_only_the_structure_is_made(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "sd")
    with torch.device("meta"):
        base = PretrainedBase(str(tmp_path / "sd"))
        known = PretrainedBase("stabilityai/stable-diffusion-2-1")
        with pytest.raises(ConfigError, match="the size of some/model is not known here"):
            PretrainedBase("some/model")
    assert next(base.unet.parameters()).device.type == "meta"
    assert not hasattr(base, "pipe")
    assert base.unet.config.block_out_channels == [8, 16, 16]
    assert known.schedule.prediction == "v_prediction"
    assert HUB["stabilityai/stable-diffusion-2-1-base"] == ("sd21", "epsilon")
    assert {"stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"} < set(HUB)


def test_what_cannot_be_loaded_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"no model_index.json in .*nowhere"):
        load_pipeline(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"--pipeline nobody/nothing is not, .* in the cache.*HF_HUB_OFFLINE"):
        load_pipeline("nobody/nothing")
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    DDPMPipeline(UNet2DModel(sample_size=8, **blocks), DDPMScheduler()).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other is a DDPMPipeline: give a Stable Diffusion"):
        PretrainedBase(str(tmp_path / "other"))
    tiny_sd().save_pretrained(tmp_path / "cut")
    weights = next((tmp_path / "cut/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cut cannot be loaded") as caught:
        PretrainedBase(str(tmp_path / "cut"))
    assert "\n" not in str(caught.value)
