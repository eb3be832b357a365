"""A text-to-image model of the Stable Diffusion family behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import diffusers
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from packaging.version import Version
from torch import Tensor

from cm_lightning.core.latent import LatentSchedule
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.hub import on_hub, out_of_reach, silence
from cm_lightning.latent.structures import HUB, NOISE, UNETS
from cm_lightning.quiet import quiet
from cm_lightning.recording import Recorded
from cm_lightning.run import find_export

#: Tokens of a prompt, as CLIP has them.
TOKENS = 77

# what a pipeline's loader calls the dtype: since 0.40 the old name is deprecated, before it the new one has no effect
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

#: A UNet2DConditionModel; called through :meth:`TextToImageBase.output`.
UNet: TypeAlias = Any


class Conditioning(NamedTuple):
    """What the network is told of each sample's text, a row a sample.

    ``hidden`` (B, L, D): the text encoders' states; SDXL's further ``pooled`` (B, P) and ``time_ids`` (B, 6): original
    height and width, crop's top and left, target height and width in pixels.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Each tensor's ``to``."""
        return self.each(lambda part: part.to(*args, **kwargs))

    def rows(self, index: Tensor | slice) -> Conditioning:
        """Some of the samples."""
        return self.each(lambda part: part[index])

    def each(self, change: Callable[..., Tensor], *others: Conditioning) -> Conditioning:
        """A change of every part that there is, given the same part of others too."""
        parts: list[Any] = [None if part[0] is None else change(*part) for part in zip(self, *others, strict=True)]
        return Conditioning(*parts)

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """Its own rows where ``chosen`` (B,) holds, and the other's elsewhere."""
        return self.each(lambda a, b: torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b), other)

    def followed_by(self, other: Conditioning) -> Conditioning:
        """One batch after the other."""
        return self.each(lambda a, b: torch.cat([a, b]), other)


class TextToImageBase(Recorded):
    """Encodes prompts and images, decodes latents, and says what the network's output means.

    Not an ``nn.Module``: a frozen base is no part of the module that learns from it, nor of its checkpoints.

    Args:
        pipe: diffusers' pipeline of the model: StableDiffusionPipeline or StableDiffusionXLPipeline.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe
        self.pipe.set_progress_bar_config(disable=True)
        self.unet: UNet = pipe.unet
        scheduler = pipe.scheduler
        self.schedule = LatentSchedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)
        for part in self._encoders():
            part.requires_grad_(False).eval()

    @property
    def is_xl(self) -> bool:
        """Whether it has SDXL's second text encoder and time ids."""
        return bool(self.unet.config.get("addition_embed_type") == "text_time")

    @property
    def image_size(self) -> int:
        """Side of the images that it draws, in pixels."""
        return int(self.unet.config["sample_size"] * self.downsampling)

    @property
    def downsampling(self) -> int:
        """Pixels of an image along a side for each of its latents."""
        return int(self.pipe.vae_scale_factor)

    def encoders_to(self, device: torch.device | str) -> None:
        """Move text encoders and autoencoder; the network belongs to who trains or calls it."""
        for part in self._encoders():
            part.to(device)

    def _encoders(self) -> list[Any]:
        parts = (self.pipe.vae, self.pipe.text_encoder, getattr(self.pipe, "text_encoder_2", None))
        return [part for part in parts if part is not None]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """The conditions of B prompts, for images of (height, width) pixels, on the encoders' device."""
        device = self.pipe.text_encoder.device
        encoded = self.pipe.encode_prompt(list(prompts), device=device, num_images_per_prompt=1,
                                          do_classifier_free_guidance=False)  # fmt: skip
        if not self.is_xl:
            return Conditioning(encoded[0])
        return Conditioning(encoded[0], encoded[2], self._time_ids(len(prompts), size).to(encoded[0].device))

    def no_prompt(self, size: tuple[int, int]) -> Conditioning:
        """The condition that guidance leads away from, one row: the empty prompt, or zeros where SDXL wants them."""
        empty = self.encode_prompts([""], size)
        if self.is_xl and self.pipe.config.get("force_zeros_for_empty_prompt", True):
            assert empty.pooled is not None
            return Conditioning(torch.zeros_like(empty.hidden), torch.zeros_like(empty.pooled), empty.time_ids)
        return empty

    @staticmethod
    def _time_ids(n: int, size: tuple[int, int]) -> Tensor:
        return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(n, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) of about unit variance: the mean of the encoder's density.

        In the autoencoder's own precision, also under autocast: SDXL's does not bear 16 bits, nor does the solver.
        """
        vae = self.pipe.vae
        with torch.autocast(vae.device.type, enabled=False):
            encoded = vae.encode(images.to(vae.device, vae.dtype))
        latents: Tensor = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
        scaled: Tensor = latents.float() * vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, 3, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        with torch.autocast(vae.device.type, enabled=False):
            images: Tensor = vae.decode(scaled, return_dict=False)[0]
        return images.float().clamp(-1, 1)

    def drawing(self, device: torch.device) -> AbstractContextManager[Any]:
        """Where its pipelines draw: autocast, if some of their parts are of 16 bits and others are not."""
        dtypes = {part.dtype for part in (self.unet, *self._encoders())} - {torch.float32}
        return torch.autocast(device.type, dtypes.pop()) if dtypes else nullcontext()

    @staticmethod
    def arguments(unet: UNet, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> dict[str, Any]:
        """The call of a network at noisy latents x (B, C, h, w), timesteps t (B,), in the network's dtype."""
        dtype = unet.dtype
        added = None if c.pooled is None else {"text_embeds": c.pooled.to(dtype), "time_ids": c.time_ids}
        return {
            "sample": x.to(dtype),
            "timestep": t,
            "encoder_hidden_states": c.hidden.to(dtype),
            "timestep_cond": None if w is None else w.to(dtype),
            "added_cond_kwargs": added,
            "return_dict": False,
        }

    def output(self, unet: UNet, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> Tensor:
        """What a network of this structure predicts, to be read by ``schedule``: (B, C, h, w) float32.

        Args:
            unet: the base's own, or one like it.
            x: noisy latents (B, C, h, w).
            t: timesteps (B,).
            c: conditions, B rows.
            w: embedded guidance (B, width), for a network that takes one.
        """
        predicted: Tensor = unet(**self.arguments(unet, x, t, c, w))[0]
        return predicted.float()


class PretrainedBase(TextToImageBase):
    """Any folder or hub name that diffusers loads: SD 1.5, SD 2.1 (768 and base), SDXL, and what was made of them.

    Made on the meta device, as for ``--dry_run``, it has the network's structure only and needs no files.

    Args:
        path: of the folder, of a run that exported one, or a name on the hub.
        dtype: of network and text encoders; the autoencoder stays in float32, which SDXL's needs.
        variant: of the weights' files, such as ``fp16``.

    Raises:
        CheckpointError: no such model, a damaged one, or one of another family.
    """

    def __init__(
        self,
        path: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        variant: str | None = None,
    ) -> None:
        self.path = path = find_export(path)
        if torch.get_default_device().type == "meta":
            self._outline(path, getattr(torch, dtype))
            return
        pipe = load_pipeline(path, dtype, variant, option="--model.base.path")
        if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
            raise CheckpointError(f"{path} is a {type(pipe).__name__}: give a Stable Diffusion 1.5, 2.1 or XL model")
        pipe.vae.float()
        super().__init__(pipe)

    def _outline(self, path: str, dtype: torch.dtype) -> None:
        folder = Path(path) / "unet" / "config.json"
        if folder.is_file():
            config = UNet2DConditionModel.load_config(str(folder.parent))
        elif path in HUB:
            config = UNETS[HUB[path][0]]
        else:
            raise ConfigError(f"the size of {path} is not known here: give a folder, or one of {', '.join(HUB)}")
        self.unet = UNet2DConditionModel.from_config(config).to(dtype)
        noise = {name: value for name, value in NOISE.items() if name not in ("set_alpha_to_one", "steps_offset")}
        with torch.device("cpu"):
            scheduler = DDPMScheduler(**noise, prediction_type=HUB.get(path, ("", "epsilon"))[1])
        self.schedule = LatentSchedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)


def load_pipeline(
    path: str, dtype: str = "float32", variant: str | None = None, option: str = "--pipeline"
) -> DiffusionPipeline:
    """Diffusers' pipeline of a folder or hub name, without the safety checker, quiet.

    A name is read from the cache alone where the hub does not answer.

    Args:
        path: of the folder, or a name on the hub.
        dtype: of the weights.
        variant: of the weights' files, such as ``fp16``.
        option: by which the user gave the path, for messages.

    Raises:
        CheckpointError: it is missing or damaged, or neither in the cache nor to be had from the hub.
    """
    path = find_export(path)
    if not on_hub(path) and not (Path(path) / "model_index.json").is_file():
        raise CheckpointError(f"no model_index.json in {path}: give a folder of diffusers, or a name on the hub")
    cached_only = out_of_reach(path)
    options: dict[str, Any] = {_DTYPE: getattr(torch, dtype), "variant": variant, "local_files_only": cached_only}
    try:
        with quiet():
            if "safety_checker" in DiffusionPipeline.load_config(path, local_files_only=cached_only):
                options |= {"safety_checker": None, "requires_safety_checker": False}
            pipe = DiffusionPipeline.from_pretrained(path, **options)
    except Exception as error:
        if cached_only:
            raise CheckpointError(silence(option, path)) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be loaded as a diffusers model: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe
