"""The base of training in latent space: batches of images and captions become latents and conditions."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.schedule import RateSchedule
from cm_lightning.data.base import GenerativeDataModule
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import TOKENS, Conditioning, TextToImageBase
from cm_lightning.latent.encoded import encoded
from cm_lightning.modules.trained import TrainedModule


class LatentModule(TrainedModule):
    """Base of the methods on latents.

    Args:
        base: the text-to-image model that supplies the encoders; it stays outside the module and its checkpoints.
        backbone, optimizer, lr_scheduler, start_from: see :class:`TrainedModule`.
        cache: a folder for latents and text conditions, which are then computed once for a model and its data; if
            None, they are computed at every step.
        offload_encoders: whether the autoencoder and text encoders stay on the CPU, to save GPU memory; with a cache
            they always do, since training does not need them.
    """

    def __init__(
        self,
        base: TextToImageBase,
        backbone: nn.Module,
        cache: str | None = None,
        offload_encoders: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, start_from)
        self.base, self.cache, self.offload_encoders = base, cache, offload_encoders
        self._nothing: dict[tuple[int, int], Conditioning] = {}

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """The diffusers pipeline that draws with the weights that the module holds."""

    @abstractmethod
    def export(self, directory: Path) -> None:
        """Write the trained model to a folder that diffusers can load."""

    def sample_arguments(self, run: Path) -> list[str] | None:
        if not (run / "export").is_dir():
            return None
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        prompt = data.prompts(1)[0][0] if callable(getattr(data, "prompts", None)) else "a photograph of a cat"
        return [*self.exported(run / "export"), "--prompt", prompt]

    def exported(self, folder: Path) -> list[str]:
        """The arguments with which ``cm-lightning sample`` draws from what was exported to a folder."""
        return ["--pipeline", str(folder)]

    def one_sample(self) -> tuple[Tensor, Tensor, Conditioning]:
        config = self.base.unet.config
        x = torch.zeros(1, config["in_channels"], config["sample_size"], config["sample_size"])
        hidden, t = torch.zeros(1, TOKENS, config["cross_attention_dim"]), torch.zeros(1, dtype=torch.long)
        c = Conditioning(hidden)
        if self.base.is_xl:
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            c = Conditioning(hidden, torch.zeros(1, pooled), torch.zeros(1, 6))
        return x, t, c

    def forward_one(self) -> None:
        self.network_output(*self.one_sample(), torch.zeros(1))

    def network_output(self, x: Tensor, t: Tensor, c: Conditioning, w: Tensor) -> Tensor:
        """The trained network's output; w (B,) is the guidance, for a network conditioned on it."""
        return self.base.output(self.base.unet, x, t, c)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage not in ("fit", "validate") or self.cache is None:
            return
        if not isinstance(data, GenerativeDataModule):
            raise ConfigError("--model.cache needs a data module of this suite: leave it out")
        first = self.trainer.is_global_zero
        self.base.encoders_to(self.trainer.strategy.root_device)
        data.encoded = {
            "train": encoded(data.training_set(), self.base, Path(self.cache), first, data.num_workers),
            "val": encoded(data.split("val"), self.base, Path(self.cache), first, data.num_workers),
        }

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.place_encoders()

    def on_validation_start(self) -> None:
        self.place_encoders()

    def place_encoders(self) -> None:
        """Put the encoders on the device that training needs; sampling first moves them to the module's device."""
        self.base.encoders_to("cpu" if self.cache or self.offload_encoders else self.device)

    def predict_step(self, *_: Any) -> Any:
        raise ConfigError("predict does not draw from prompts: give the run's export to cm-lightning sample --pipeline")

    def latents_and_conditions(self, batch: Any) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and their conditions, from a batch of (images, captions) or of :class:`Encoded`.

        Raises:
            ConfigError: the batch is of neither kind.
        """
        x: Any
        x, texts = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (None, ())
        if isinstance(texts, Conditioning):
            return x, texts
        if not isinstance(x, Tensor) or isinstance(texts, Tensor) or not all(isinstance(text, str) for text in texts):
            raise ConfigError("the data does not have captions: use a captioned data module, such as CaptionedFolder")
        conditions = self.base.encode_prompts(texts, (x.shape[-2], x.shape[-1]))
        return self.base.encode_images(x).to(x.device), conditions.to(x.device)

    def no_prompt(self, latents: Tensor) -> Conditioning:
        """The empty condition, one row for each of the latents (B, C, h, w)."""
        size = (latents.shape[-2] * self.base.downsampling, latents.shape[-1] * self.base.downsampling)
        if size not in self._nothing:
            self._nothing[size] = self.base.no_prompt(size).to(latents.device)
        return self._nothing[size].rows(torch.zeros(len(latents), dtype=torch.long, device=latents.device))
