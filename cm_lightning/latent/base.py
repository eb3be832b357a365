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
from cm_lightning.hub import loading, on_hub, out_of_reach, silence
from cm_lightning.latent.structures import HUB, NOISE, UNETS
from cm_lightning.recording import Recorded
from cm_lightning.run import find_export

#: Number of tokens of a prompt in CLIP.
TOKENS = 77

# the name of the dtype in a pipeline's loader: since 0.40 the old one is deprecated, before it the new has no effect
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

#: A UNet2DConditionModel; called through :meth:`TextToImageBase.output`.
UNet: TypeAlias = Any


class Conditioning(NamedTuple):
    """The condition of the network on text, one row for each sample.

    ``hidden`` (B, L, D) holds the states of the text encoders. SDXL also has ``pooled`` (B, P) and ``time_ids``
    (B, 6): original height and width, top and left of the crop, target height and width in pixels.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Apply ``to`` to each tensor."""
        return self.each(lambda part: part.to(*args, **kwargs))

    def rows(self, index: Tensor | slice) -> Conditioning:
        """Select some of the samples."""
        return self.each(lambda part: part[index])

    def each(self, change: Callable[..., Tensor], *others: Conditioning) -> Conditioning:
        """Apply a function to every part that is present, together with the same part of others."""
        parts: list[Any] = [None if part[0] is None else change(*part) for part in zip(self, *others, strict=True)]
        return Conditioning(*parts)

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """Take this batch's rows where ``chosen`` (B,) is true, and those of ``other`` elsewhere."""
        return self.each(lambda a, b: torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b), other)

    def followed_by(self, other: Conditioning) -> Conditioning:
        """Concatenate this batch and another."""
        return self.each(lambda a, b: torch.cat([a, b]), other)


class TextToImageBase(Recorded):
    """Encodes prompts and images, decodes latents, and interprets the network's output.

    It is not an ``nn.Module``: a frozen base is not part of the module that learns from it, nor of its checkpoints.

    Args:
        pipe: the diffusers pipeline of the model: StableDiffusionPipeline or StableDiffusionXLPipeline.
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
        """Whether the model has SDXL's second text encoder and time ids."""
        return bool(self.unet.config.get("addition_embed_type") == "text_time")

    @property
    def image_size(self) -> int:
        """Side of the images that the model draws, in pixels."""
        return int(self.unet.config["sample_size"] * self.downsampling)

    @property
    def downsampling(self) -> int:
        """Pixels of an image for each latent, along a side."""
        return int(self.pipe.vae_scale_factor)

    def encoders_to(self, device: torch.device | str) -> None:
        """Move the text encoders and the autoencoder; code that trains or calls the network moves the network."""
        for part in self._encoders():
            part.to(device)

    def _encoders(self) -> list[Any]:
        parts = (self.pipe.vae, self.pipe.text_encoder, getattr(self.pipe, "text_encoder_2", None))
        return [part for part in parts if part is not None]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """Encode B prompts for images of (height, width) pixels, on the device of the encoders."""
        device = self.pipe.text_encoder.device
        encoded = self.pipe.encode_prompt(list(prompts), device=device, num_images_per_prompt=1,
                                          do_classifier_free_guidance=False)  # fmt: skip
        if not self.is_xl:
            return Conditioning(encoded[0])
        return Conditioning(encoded[0], encoded[2], self._time_ids(len(prompts), size).to(encoded[0].device))

    def no_prompt(self, size: tuple[int, int]) -> Conditioning:
        """The unconditional row for guidance: the empty prompt, or zeros if SDXL requires them."""
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
        """Encode (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) of about unit variance, their distribution's means.

        This uses the autoencoder's own precision even under autocast: SDXL's autoencoder and the solver need more than
        16 bits.
        """
        vae = self.pipe.vae
        with torch.autocast(vae.device.type, enabled=False):
            encoded = vae.encode(images.to(vae.device, vae.dtype))
        latents: Tensor = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
        scaled: Tensor = latents.float() * vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        with torch.autocast(vae.device.type, enabled=False):
            images: Tensor = vae.decode(scaled, return_dict=False)[0]
        return images.float().clamp(-1, 1)

    def drawing(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which pipelines draw: autocast if some of their parts have 16 bits and others do not."""
        dtypes = {part.dtype for part in (self.unet, *self._encoders())} - {torch.float32}
        return torch.autocast(device.type, dtypes.pop()) if dtypes else nullcontext()

    @staticmethod
    def arguments(unet: UNet, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> dict[str, Any]:
        """The arguments of a network at noisy latents x (B, C, h, w), timesteps t (B,), in its dtype."""
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
        """The prediction of a network of this structure, to be read by ``schedule``: (B, C, h, w) float32.

        Args:
            unet: the network of the base, or one like it.
            x: noisy latents (B, C, h, w).
            t: timesteps (B,).
            c: conditions, B rows.
            w: embedded guidance (B, width), for a network that takes one.
        """
        predicted: Tensor = unet(**self.arguments(unet, x, t, c, w))[0]
        return predicted.float()


class PretrainedBase(TextToImageBase):
    """Any folder or hub name that diffusers loads: SD 1.5, SD 2.1 (768 and base), SDXL, and models derived from them.

    On the meta device, as for ``--dry_run``, it has only the structure of the network and does not need files.

    Args:
        path: path of the folder, or of a run that exported one, or a name on the hub.
        dtype: dtype of network and text encoders; the autoencoder stays in float32, which SDXL's requires.
        variant: variant of the weights' files, such as ``fp16``.

    Raises:
        CheckpointError: the model was not found, is damaged or of another family.
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
    """Load the diffusers pipeline of a folder or hub name, without the safety checker and without output.

    If the hub does not answer, a name is read only from the cache.

    Args:
        path: path of the folder, or a name on the hub.
        dtype: dtype of the weights.
        variant: variant of the weights' files, such as ``fp16``.
        option: the option with which the user gave the path, for messages.

    Raises:
        CheckpointError: it is missing or damaged, or neither in the cache nor available from the hub.
    """
    path = find_export(path)
    if not on_hub(path) and not (Path(path) / "model_index.json").is_file():
        raise CheckpointError(f"no model_index.json in {path}: give a folder of diffusers, or a name on the hub")
    cached_only = out_of_reach(path)
    options: dict[str, Any] = {_DTYPE: getattr(torch, dtype), "variant": variant, "local_files_only": cached_only}
    try:
        with loading():
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
