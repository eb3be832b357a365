"""Low-rank adapters on a UNet: added, switched, combined and merged.

An adapter adds ``alpha / rank * B A x`` to the output of a linear layer or a convolution at x (Hu et al. 2021).
LCM-LoRA (Luo et al. 2023) trains one that lets the base model sample in few steps; it also works on other models of
the same family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from cm_lightning.errors import ConfigError

#: The layers that the published LCM-LoRA adapts, by the end of their names.
TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)


def add_lora(
    unet: Any, rank: int = 64, alpha: float | None = None, targets: Sequence[str] = TARGETS, name: str = "lcm"
) -> dict[str, nn.Parameter]:
    """Freeze the UNet and add a new adapter, the only active one; at first it changes nothing, because B is 0.

    Args:
        unet: a diffusers UNet2DConditionModel, changed in place.
        rank: rank of B A in each layer.
        alpha: the adapter is scaled by alpha / rank; if None, alpha is the rank. Programs that do not read the metadata
            of the saved file (diffusers before 0.35) lose any other value.
        targets: ends of the names of the layers to adapt.
        name: name of the adapter, for :func:`combine` and for saving.

    Returns:
        The trainable parameters by their names in the UNet: float32, even for a half-precision UNet.

    Raises:
        ConfigError: the rank is below 1, the name is taken, or the targets match no layer.
    """
    if rank < 1:
        raise ConfigError(f"rank {rank}: a LoRA needs a rank of at least 1")
    if name in adapter_names(unet):
        raise ConfigError(f"the UNet already has an adapter {name!r}: choose another name")
    if not any(f".{layer}".endswith(f".{target}") for layer in layers(unet) for target in targets):
        raise ConfigError(f"no layer of the UNet is called {', '.join(targets)}: choose other targets")
    unet.requires_grad_(False)
    alpha = rank if alpha is None else alpha
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), adapter_name=name)
    trainable = {key: p for key, p in unet.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()  # updates of 1e-4 vanish in bfloat16
    return trainable


@contextmanager
def adapter_off(unet: nn.Module) -> Iterator[None]:
    """Make the UNet the base model within the block, without its adapters; gradients are not affected.

    This is faster than diffusers' ``disable_adapters``, which reads the versions of installed packages each time.

    Raises:
        ConfigError: an adapter is merged into the weights.
    """
    adapted = _adapted(unet)
    if any(module.merged for module in adapted):
        raise ConfigError("an adapter is merged into the UNet's weights, so the base model is gone: load it again")
    before = [module.disable_adapters for module in adapted]
    _switch(adapted, [True] * len(adapted))
    try:
        yield
    finally:
        _switch(adapted, before)


def switch_adapters(unet: nn.Module, on: bool) -> None:
    """Switch the adapters of a UNet on or off until the next switch; gradients are not affected."""
    adapted = _adapted(unet)
    _switch(adapted, [not on] * len(adapted))


def combine(pipe: Any, weights: Mapping[str, float]) -> None:
    """Activate these adapters of a pipeline, each scaled by its weight: ``{"lcm": 1.0, "style": 0.8}``.

    Raises:
        ConfigError: an adapter is missing, or none is named.
    """
    loaded = {name for names in pipe.get_list_adapters().values() for name in names}
    missing = [name for name in weights if name not in loaded]
    if missing or not weights:
        raise ConfigError(
            f"no adapter {', '.join(missing) or 'named'}: the pipeline has {', '.join(sorted(loaded)) or 'none'}"
        )
    pipe.set_adapters(list(weights), list(weights.values()))


def merge(pipe: Any) -> None:
    """Add the active adapters to the weights and remove all adapters, so that the model is as fast as the base.

    This cannot be undone except by loading the base model again.
    """
    pipe.fuse_lora()
    pipe.unload_lora_weights()


@torch.no_grad()
def merge_and_restart(unet: nn.Module, name: str, seed: int) -> None:
    """Add an adapter to the weights and start it again, so that the UNet computes the same as before, up to rounding.

    Args:
        unet: the UNet, changed in place.
        name: name of the adapter.
        seed: seed of its new weights A; B is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in _adapted(unet):
        module: Any = layer
        weight, (a, b) = module.get_base_layer().weight, (half[name].weight for half in (module.lora_A, module.lora_B))
        weight += module.get_delta_weight(name).to(weight)
        # as peft starts an adapter, but from a generator of its own
        a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=generator))
        b.zero_()


def adapter_names(unet: Any) -> list[str]:
    """The names of the UNet's adapters."""
    return list(getattr(unet, "peft_config", {}))


def layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions of the UNet itself by name, adapted or not."""
    found: dict[str, nn.Module] = {}
    for name, module in unet.named_modules():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name and not name.endswith(".base_layer"):
            found[name] = layer
    return found


def _adapted(unet: nn.Module) -> list[BaseTunerLayer]:
    # unet.modules() would also walk through the adapters, which takes several times as long
    found, waiting = [], [unet]
    while waiting:
        module = waiting.pop()
        if isinstance(module, BaseTunerLayer):
            found.append(module)
        else:
            waiting.extend(module.children())
    return found


def _switch(adapted: Sequence[Any], disabled: Sequence[bool]) -> None:
    # peft's own enable_adapters also changes which parameters need gradients
    for module, off in zip(adapted, disabled, strict=True):
        module._disable_adapters = off
