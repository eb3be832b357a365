"""What LoRA files call the layers of a UNet, and the halves of what is added to each."""

from __future__ import annotations

import re
from typing import Any

from cm_lightning.latent import kohya
from cm_lightning.latent.lora import layers

# what a key says: a layer, and one of its halves or its alpha
_STYLES = (
    r"(.+)\.lora_(A|B)\.weight",  # peft
    r"(.+)\.lora_(A|B)\.[^.]+\.weight",  # peft, with the adapter's name
    r"(.+)\.lora_(down|up)\.weight",  # Kohya
    r"(.+)\.lora\.(down|up)\.weight",  # diffusers
    r"(.+)\.lora_(?:linear_)?layer\.(down|up)\.weight",  # diffusers' layers that held their own
    r"(.+?)(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight",  # diffusers' processors that held them
    r"(.+)\.(alpha)",
)
_HALVES = {"A": "down", "B": "up"}

# what may stand before a layer's path: wrappers, and what a model calls its UNet; any other word, such as controlnet or
# vae, says that the key is of another network, some of whose layers are called as the UNet's are
_BEFORE = re.compile(r"((module|_orig_mod|base_model|model|diffusion_model|unet|net|network|student)\.)+")


def split(key: str) -> tuple[str, str]:
    """``unet.to_q.lora_A.weight`` -> ``unet.to_q``, ``down``; a key of no LoRA has no second part."""
    for style in _STYLES:
        if match := re.fullmatch(style, key):
            *layer, part = match.groups()
            return ".".join(layer), _HALVES.get(part, part)
    return key, ""


def bare(layer: str) -> str:
    """``module.unet.to_q`` -> ``to_q``."""
    before = _BEFORE.match(layer)
    return layer[before.end() :] if before else layer


def names(unet: Any) -> dict[str, str]:
    """The layers of a UNet by whatever a file may call them, bare."""
    known = list(layers(unet))
    found = {layer.removesuffix(".0"): layer for layer in known if layer.endswith(".to_out.0")}
    found |= {kohya.diffusers_key(layer): layer for layer in known}
    if kohya.is_sdxl(unet.config):
        found |= {kohya.stability_key(layer): layer for layer in known}
        found |= {kohya.stability_path(layer): layer for layer in known}
    return found | {layer: layer for layer in known}
