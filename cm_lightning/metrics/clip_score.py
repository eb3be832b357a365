"""CLIP score: the similarity of an image and its prompt in a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms import v2
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cm_lightning.errors import CheckpointError
from cm_lightning.hub import loading, out_of_reach, silence


class ClipScore:
    """The mean of 100 max(cos(image, text), 0) over the images (Hessel et al. 2021, without its factor of 2.5).

    Images are prepared according to the model's ``preprocessor_config.json``.

    Args:
        path: folder or hub name of a CLIP model, such as ``openai/clip-vit-base-patch16``, or one that
            :class:`cm_lightning.modules.contrastive.ContrastiveModule` exported.
        device: device to work on.

    Raises:
        CheckpointError: the model was not found, or is damaged.
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        cached_only = out_of_reach(path)
        try:
            with loading():
                self.model = CLIPModel.from_pretrained(path, local_files_only=cached_only).eval().to(device)
            self.tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=cached_only)
            self.preparation = CLIPImageProcessor.from_pretrained(path, local_files_only=cached_only)
        except Exception as error:
            if cached_only:
                raise CheckpointError(silence("--clip", path)) from error
            raise CheckpointError(f"--clip {path} holds no CLIP model: give a folder, or a name on the hub") from error

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> float:
        """The mean score, 0 to 100, of images (N, 3, H, W) in [-1, 1] and their N prompts."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        x, device = self._prepared(images), self.model.device
        output = self.model(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            pixel_values=x.to(device),
            interpolate_pos_encoding=x.shape[-1] != x.shape[-2],
        )
        return float(100 * nnf.cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0).mean())

    def _prepared(self, images: Tensor) -> Tensor:
        """Resize images to the model's size on the shorter side, crop them if it takes squares, standardise them."""
        side = self.model.config.vision_config.image_size
        x = v2.functional.resize(images, [side], v2.InterpolationMode.BICUBIC, antialias=True)
        if self.preparation.do_center_crop:
            x = v2.functional.center_crop(x, [side, side])
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.preparation.image_mean, self.preparation.image_std)
        )
        prepared: Tensor = ((x + 1) / 2 - mean) / std
        return prepared
