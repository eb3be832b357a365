"""Latents and text conditions that are computed once and kept in a file keyed by the model and the data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cm_lightning.cache import is_kept, keep
from cm_lightning.data.base import InMemory
from cm_lightning.digest import load_tensors, save_tensors
from cm_lightning.errors import CheckpointError
from cm_lightning.latent.base import Conditioning, TextToImageBase

_BATCH = 64  # images of 256 x 256


class Encoded(InMemory):
    """(latents, :class:`Conditioning`) in place of (images, captions); each distinct caption is kept once.

    Args:
        latents: (N, C, h, w).
        captions: (N,) the row of ``conditions`` for each latent.
        conditions: one row for each distinct caption.
    """

    def __init__(self, latents: Tensor, captions: Tensor, conditions: Conditioning) -> None:
        super().__init__(latents, captions)
        self.conditions = conditions

    def __getitem__(self, index: Any) -> Any:
        latents, captions = super().__getitem__(index)
        return latents, self.conditions.rows(captions)

    __getitems__ = __getitem__


def encoded(dataset: Any, base: TextToImageBase, folder: Path, write: bool = True, num_workers: int = 0) -> Encoded:
    """The latents and conditions of a data set, read from the folder, or computed by the first rank and kept there.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / f"latents-{fingerprint(base)}-{_data_fingerprint(dataset)}.safetensors"
    if not is_kept(path):
        rank_zero_info(f"encoding {len(dataset)} images and captions, once: {path}")
        tensors = _encode(dataset, base, num_workers)
        if write:
            keep(path, lambda temporary: save_tensors(tensors, temporary))
        return _from(tensors)
    try:
        return _from(load_tensors(path))
    except Exception as error:
        raise CheckpointError(f"{path} holds no latents: remove it, and they are computed again") from error


def _from(tensors: dict[str, Tensor]) -> Encoded:
    conditions = Conditioning(tensors["hidden"], tensors.get("pooled"), tensors.get("time_ids"))
    return Encoded(tensors["latents"], tensors["captions"], conditions)


def _encode(dataset: Any, base: TextToImageBase, num_workers: int) -> dict[str, Tensor]:
    numbers: dict[str, int] = {}
    size = tuple(dataset[0][0].shape[-2:])
    latents, captions, batch = [], [], max(1, _BATCH * 256**2 // max(256**2, size[0] * size[1]))
    # a separate generator: a run that encodes must train exactly as one that finds the file
    for images, texts in DataLoader(dataset, batch, num_workers=num_workers, generator=torch.Generator()):
        latents.append(base.encode_images(images).cpu())
        captions += [numbers.setdefault(text, len(numbers)) for text in texts]
    different = list(numbers)
    parts = [base.encode_prompts(different[i : i + _BATCH], size).to("cpu") for i in range(0, len(different), _BATCH)]
    conditions = {
        name: torch.cat([getattr(part, name) for part in parts]).contiguous()
        for name in Conditioning._fields
        if getattr(parts[0], name) is not None
    }
    return {"latents": torch.cat(latents).contiguous(), "captions": torch.tensor(captions), **conditions}


def fingerprint(base: TextToImageBase) -> str:
    """A digest of the encoders' weights and the autoencoder's scale, which distinguishes the latents of models."""
    pipe = base.pipe
    digest = hashlib.sha256(str(pipe.vae.config.scaling_factor).encode())
    for part in (pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        for tensor in part.state_dict().values() if isinstance(part, nn.Module) else ():
            flat = tensor.flatten()
            step = max(1, len(flat) // 64)
            digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _data_fingerprint(dataset: Any) -> str:
    """A digest of the length, 64 images, and all captions if the data set has them in memory."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    source = getattr(dataset, "dataset", dataset)  # the data set below mirror images
    captions = source.all_captions() if hasattr(source, "all_captions") else getattr(source, "targets", ())
    digest.update("\n".join(captions).encode())
    for i in range(0, len(dataset), -(-len(dataset) // 64)):
        image, caption = dataset[i]
        digest.update(image.numpy().tobytes())
        digest.update(caption.encode())
    return digest.hexdigest()[:16]
