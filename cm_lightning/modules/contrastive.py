"""A small CLIP: the text encoder of a small latent model, which also measures CLIP scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cm_lightning.core.schedule import RateSchedule
from cm_lightning.domains import COUNT, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.latent.tokenizer import train_tokenizer
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.quiet import quiet


class ContrastiveModule(TrainedModule):
    """Trains a CLIP model and its tokenizer on captioned images (Radford et al. 2021).

    Equal captions in a batch, which are frequent in a small set of captions, count as matches of each other.

    Args:
        vision_size: height of the images; for wider ones the positions of their patches are interpolated.
        patch: side of a patch of the vision encoder.
        width: width of both encoders, and of the text conditions.
        layers: number of layers of each encoder.
        heads: number of attention heads of each encoder.
        vocabulary: the largest number of tokens that are learned from the captions.
        length: number of tokens of a caption, including those of start and end.
        optimizer, lr_scheduler, start_from: see :class:`TrainedModule`.
    """

    backbone: CLIPModel

    def __init__(
        self,
        vision_size: int = 32,
        patch: int = 8,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        vocabulary: int = 384,
        length: int = 16,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        COUNT.check(self, vision_size=vision_size, patch=patch, width=width, layers=layers, heads=heads)
        COUNT.check(self, vocabulary=vocabulary)
        at_least(3).check(self, length=length)  # start, a token, end
        if patch > vision_size or width % heads:
            raise ConfigError(
                f"{type(self).__name__}: patch must be at most vision_size, and width a multiple of heads, got patch "
                f"{patch} of {vision_size} and width {width} of {heads} heads"
            )
        shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
                  "num_attention_heads": heads, "projection_dim": width}  # fmt: skip
        text = {**shared, "vocab_size": vocabulary, "max_position_embeddings": length, "bos_token_id": 0,
                "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
        vision = {**shared, "image_size": vision_size, "patch_size": patch}
        super().__init__(
            CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)),
            optimizer,
            lr_scheduler,
            start_from,
        )
        self.vocabulary, self.length = vocabulary, length
        self.tokenizer: CLIPTokenizer | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        captions = getattr(data.training_set(), "all_captions", None)
        if captions is None:
            raise ConfigError("the text encoder is trained on CaptionedMNIST or a similar data module: use one of them")
        self.tokenizer = train_tokenizer(captions(), self.vocabulary, self.length)

    def forward_one(self) -> None:
        tokens = torch.zeros(1, self.length, dtype=torch.long)
        size = self.backbone.config.vision_config.image_size
        self.backbone(input_ids=tokens, pixel_values=torch.zeros(1, 3, size, size))

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        """Cross entropy of images against captions, and of captions against images."""
        images, captions = batch
        numbers: dict[str, int] = {}
        caption = torch.tensor([numbers.setdefault(text, len(numbers)) for text in captions], device=images.device)
        assert self.tokenizer is not None
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        output = self.backbone(
            input_ids=tokens.input_ids.to(images.device),
            attention_mask=tokens.attention_mask.to(images.device),
            pixel_values=images,
            interpolate_pos_encoding=images.shape[-1] != images.shape[-2],
        )
        matches = (caption[:, None] == caption).to(images.dtype)
        matches = matches / matches.sum(1, keepdim=True)
        log_p = torch.stack([output.logits_per_image.log_softmax(1), output.logits_per_text.log_softmax(1)])
        return -(matches * log_p).sum(2).mean()

    def export(self, directory: Path) -> None:
        """Write model and tokenizer to a folder, as transformers reads it."""
        assert self.tokenizer is not None
        with quiet():
            self.backbone.save_pretrained(directory)
        half = [0.5] * 3  # for images in [0, 1]: this model takes them in [-1, 1]
        CLIPImageProcessor(do_center_crop=False, image_mean=half, image_std=half).save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
