"""The keys of LoRA files: names of a UNet's layers, and of the two factors that are added to each."""

from __future__ import annotations

import re
from typing import Any

from cm_lightning.latent import kohya
from cm_lightning.latent.lora import layers

# a key consists of a layer and one of its factors or its alpha
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

# prefixes of a layer's path: wrappers, and names of the UNet in a model; any other word, such as controlnet or vae,
# marks a key of another network, some layers of which have the same names as the UNet's
_BEFORE = re.compile(r"((module|_orig_mod|base_model|model|diffusion_model|unet|net|network|student)\.)+")


def split(key: str) -> tuple[str, str]:
    """Split ``unet.to_q.lora_A.weight`` into ``unet.to_q`` and ``down``, which is "" if the key is not of a LoRA."""
    for style in _STYLES:
        if match := re.fullmatch(style, key):
            *layer, part = match.groups()
            return ".".join(layer), _HALVES.get(part, part)
    return key, ""


def bare(layer: str) -> str:
    """Strip the prefixes: ``module.unet.to_q`` -> ``to_q``."""
    before = _BEFORE.match(layer)
    return layer[before.end() :] if before else layer


def names(unet: Any) -> dict[str, str]:
    """The layers of a UNet by all the names that a file may use, without prefixes."""
    known = list(layers(unet))
    found = {layer.removesuffix(".0"): layer for layer in known if layer.endswith(".to_out.0")}
    found |= {kohya.diffusers_key(layer): layer for layer in known}
    if kohya.is_sdxl(unet.config):
        found |= {kohya.stability_key(layer): layer for layer in known}
        found |= {kohya.stability_path(layer): layer for layer in known}
    return found | {layer: layer for layer in known}
