"""CLIP score: how alike an image and its prompt are to a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from cm_lightning.errors import CheckpointError
from cm_lightning.latent.quiet import quiet

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, of images in [0, 1]
_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 100


class ClipScore:
    """100 max(cos(image, text), 0), a mean over the images (Hessel et al. 2021, without its factor of 2.5).

    Args:
        path: folder or hub name of a CLIP model with its tokenizer, such as ``openai/clip-vit-base-patch16``.
        standardize: whether images are brought to the mean and deviation of CLIP's training; not for the small CLIP of
            :class:`cm_lightning.modules.contrastive.ContrastiveModule`, which sees [-1, 1].

    Raises:
        CheckpointError: no such model, or a damaged one.
    """

    def __init__(self, path: str, standardize: bool = True) -> None:
        try:
            with quiet():
                self.model = CLIPModel.from_pretrained(path).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(path)
        except Exception as error:
            raise CheckpointError(f"--clip {path} holds no CLIP model: give a folder, or a name on the hub") from error
        self.standardize = standardize

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> float:
        """Images (N, 3, H, W) in [-1, 1] and N prompts -> their mean score, 0 to 100."""
        scores = [self._score(images[i : i + _BATCH], prompts[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return float(torch.cat(scores).mean())

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        side = self.model.config.vision_config.image_size
        x = nnf.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
        if self.standardize:
            x = ((x + 1) / 2 - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        output = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=x)
        return 100 * nnf.cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0)
