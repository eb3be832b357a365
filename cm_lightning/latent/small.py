"""Small untrained text-to-image models with the structures of Stable Diffusion 1.5, 2.1 and XL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cm_lightning.domains import COUNT, at_least, multiple_of
from cm_lightning.errors import CheckpointError
from cm_lightning.hub import loading
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.structures import NOISE, PREDICTIONS, Structure, small_unet
from cm_lightning.run import find_export


class SmallBase(TextToImageBase):
    """A small network of a published structure with a trained autoencoder and text encoder.

    Args:
        structure: ``sd15`` (epsilon), ``sd21`` (v-prediction, linear projections) or ``sdxl`` (two text encoders,
            pooled text and time ids, several transformer layers).
        autoencoder: folder of an AutoencoderKL or AutoencoderTiny, as exported by :class:`AutoencoderModule`.
        text_encoder: folder of a CLIP model and its tokenizer, as exported by :class:`ContrastiveModule`.
        image_size: side of the images that the model draws by default, in pixels.
        widths: channels of each level of the network, multiples of 8.
        layers: number of residual blocks in a level.

    Raises:
        CheckpointError: a folder is missing or damaged.
    """

    def __init__(
        self,
        structure: Structure,
        autoencoder: str,
        text_encoder: str,
        image_size: int = 32,
        widths: Sequence[int] = (32, 64),
        layers: int = 1,
    ) -> None:
        COUNT.check(self, image_size=image_size, layers=layers)
        multiple_of(8).check_each(self, widths=widths)
        with torch.device("cpu"):  # even in a dry run, because it is small
            parts = Path(find_export(autoencoder)), Path(find_export(text_encoder))
            pipe = _assemble(structure, *parts, image_size, widths, layers)
        super().__init__(pipe)


def _assemble(
    structure: Structure, autoencoder: Path, text: Path, image_size: int, widths: Sequence[int], layers: int
) -> DiffusionPipeline:
    vae = _autoencoder(autoencoder)
    tokenizer, encoder = _clip(text, CLIPTokenizer), _clip(text, CLIPTextModel)
    side = 2 ** (
        len(vae.config.block_out_channels) + len(widths) - 2
    )  # the side of an image with one latent at the deepest level
    at_least(side).check(image_size=image_size)
    latent_size = image_size // 2 ** (len(vae.config.block_out_channels) - 1)
    config = small_unet(structure, widths, layers, encoder.config.hidden_size, latent_size)
    config["in_channels"] = config["out_channels"] = vae.config.latent_channels
    parts = {"vae": vae, "unet": UNet2DConditionModel(**config), "tokenizer": tokenizer, "text_encoder": encoder}
    noise = {**NOISE, "prediction_type": PREDICTIONS[structure]}
    if structure == "sdxl":
        del noise["clip_sample"], noise["set_alpha_to_one"]
        return StableDiffusionXLPipeline(
            **parts, tokenizer_2=tokenizer, text_encoder_2=_clip(text, CLIPTextModelWithProjection),
            scheduler=EulerDiscreteScheduler(**noise, timestep_spacing="leading"), add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        **parts, scheduler=DDIMScheduler(**noise), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _autoencoder(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    try:
        kind = AutoencoderKL.load_config(str(folder))["_class_name"]
        return {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[kind].from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(f"{folder} holds no autoencoder: train one, and set --model.base.autoencoder") from error


def _clip(folder: Path, kind: Any) -> Any:
    try:
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        with loading():
            return kind.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(f"{folder} holds no CLIP: train one, and set --model.base.text_encoder") from error
