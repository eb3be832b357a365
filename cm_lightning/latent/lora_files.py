"""LoRA files, which are written without loss and read so that nothing is lost silently.

diffusers' own export renames only the keys of attention layers. Its loader looks only at the first key, and drops keys
of another kind with only a warning. Here a file is written with one kind of key, and every tensor that is read must
match a layer before the pipeline is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.files import replacing
from cm_lightning.latent import kohya, lora_keys
from cm_lightning.latent.lora import adapter_names, layers
from cm_lightning.latent.lora_keys import bare, split
from cm_lightning.latent.lora_source import WEIGHTS, find, read

# the fields of an adapter's configuration that change its output; the others differ between versions of peft, which
# refuse unknown fields
_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_TEXT = ("lora_te", "text_encoder")


class _Pair(NamedTuple):
    """A layer's A (rank, in, ...) and B (out, rank, ...), and alpha if the file gives it."""

    down: Tensor
    up: Tensor
    alpha: float | None


def save_lora(unet: Any, pipeline_class: type[Any], directory: str | Path, name: str = "lcm") -> Path:
    """Write an adapter so that ``pipe.load_lora_weights(directory)`` of plain diffusers gives exactly this UNet.

    Args:
        unet: the UNet with the adapter.
        pipeline_class: StableDiffusionPipeline or StableDiffusionXLPipeline.
        directory: the folder, which is made if it is missing.
        name: name of the adapter in the UNet.

    Returns:
        The file, ``pytorch_lora_weights.safetensors``: peft's keys, with rank and alpha in the metadata.

    Raises:
        ConfigError: the UNet does not have such an adapter.
    """
    tensors = _tensors(unet, name)
    config = unet.peft_config[name]
    metadata = {field: getattr(config, field) for field in _FIELDS}
    path = Path(directory) / WEIGHTS
    with replacing(path) as temporary:
        pipeline_class.save_lora_weights(
            temporary.parent,
            unet_lora_layers=tensors,
            weight_name=temporary.name,
            unet_lora_adapter_metadata={**metadata, "target_modules": sorted(config.target_modules)},
        )
    return path


def save_kohya(unet: Any, directory: str | Path, name: str = "lcm") -> Path:
    """Write an adapter in the Kohya format, which AUTOMATIC1111, ComfyUI and diffusers read.

    A UNet with SDXL's blocks gets the keys of Stability's layout, any other those of diffusers (see
    :mod:`cm_lightning.latent.kohya`). diffusers loads the file exactly; it was not tested with the other two programs.

    Returns:
        The file, ``<name>_kohya.safetensors``; it may lie beside that of :func:`save_lora`, which diffusers prefers.

    Raises:
        ConfigError: the UNet does not have such an adapter.
    """
    key_of = kohya.stability_key if kohya.is_sdxl(unet.config) else kohya.diffusers_key
    tensors: dict[str, Tensor] = {}
    for key, tensor in _tensors(unet, name).items():
        layer, half = split(key)
        tensors[f"{key_of(layer)}.lora_{half}.weight"] = tensor.contiguous()
        tensors[f"{key_of(layer)}.alpha"] = torch.tensor(_alpha(unet, layer, name))
    path = Path(directory) / f"{name}_kohya.safetensors"
    with replacing(path) as temporary:
        save_file(tensors, temporary)  # no metadata: AUTOMATIC1111 takes any that is not the Kohya trainer's for SD 1.x
    return path


def load_lora(pipe: Any, path: str | Path, name: str = "lcm") -> None:
    """Load a LoRA into a pipeline completely, or raise an error and leave the pipeline as it was.

    It reads files of :func:`save_lora` and :func:`save_kohya`, Kohya files of either dialect (the published LCM-LoRA
    is said to be one), diffusers' official export and its older ones, peft's files with their ``adapter_config.json``,
    and LoRA of the text encoders besides the UNet's; :mod:`cm_lightning.latent.lora_keys` lists the keys. If a file
    does not give alpha, alpha is the rank. The new adapter is the only active one of the UNet, until
    :func:`cm_lightning.latent.lora.combine` changes that.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline.
        path: a .safetensors file or a state dict by ``torch.save``, or a folder that holds such a file, alone or under
            a usual name (``pytorch_lora_weights``, ``adapter_model``).
        name: name of the adapter in the pipeline.

    Raises:
        CheckpointError: the file is missing or damaged, or is not for this kind of model.
        ConfigError: the name is taken.
    """
    loaded = pipe.get_list_adapters()
    if any(name in names for names in loaded.values()):
        raise ConfigError(f"the pipeline already has an adapter {name!r}: choose another name")
    file = find(Path(path))
    tensors, metadata = read(file)
    text = {key: tensor for key, tensor in tensors.items() if key.startswith(_TEXT)}
    pairs = _pairs(pipe.unet, {key: tensor for key, tensor in tensors.items() if key not in text}, file)
    try:
        if text:  # these come first, because only they can fail to fit when they are loaded
            _load_text(pipe, text, metadata, name)
        if pairs:
            _load_unet(pipe, pairs, metadata, name)
    except Exception as error:  # diffusers, transformers and peft raise many kinds of errors for what does not fit
        pipe.delete_adapters(name) if loaded else pipe.unload_lora_weights()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file} does not fit this pipeline: {reason}") from error


def _tensors(unet: Any, name: str) -> dict[str, Tensor]:
    if name not in adapter_names(unet):
        raise ConfigError(
            f"the UNet does not have an adapter {name!r}: it has {', '.join(adapter_names(unet)) or 'none'}"
        )
    tensors: dict[str, Tensor] = get_peft_model_state_dict(unet, adapter_name=name)
    return tensors


def _alpha(unet: Any, layer: str, name: str) -> float:
    """The alpha for which alpha / rank is the scale; the rank-stabilised LoRA of peft has alpha / sqrt(rank)."""
    adapted = unet.get_submodule(layer)
    correction = adapted.r[name] ** 0.5 if unet.peft_config[name].use_rslora else 1.0
    return float(adapted.lora_alpha[name] * correction)


def _pairs(unet: Any, tensors: Mapping[str, Tensor], file: Path) -> dict[str, _Pair]:
    """The pairs of tensors by the layer's name in the UNet."""
    known, names = layers(unet), lora_keys.names(unet)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        told, part = split(key)
        layer = names.get(bare(told))
        if not part or layer is None:
            raise CheckpointError(f"{file} is not for this kind of model: its {key} does not belong to the UNet")
        if part in parts.setdefault(layer, {}):
            raise CheckpointError(f"{file} is ambiguous: it holds {layer} twice")
        parts[layer][part] = tensor
    return {layer: _pair(layer, known[layer], halves, file) for layer, halves in parts.items()}


def _pair(name: str, layer: nn.Module, parts: Mapping[str, Tensor], file: Path) -> _Pair:
    if not {"down", "up"} <= set(parts):
        raise CheckpointError(f"{file} is incomplete: it lacks half of {name}")
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha")
    out, *rest = layer.get_parameter("weight").shape
    rank = down.shape[0] if down.ndim else 0
    if rank == 0 or list(down.shape) != [rank, *rest] or list(up.shape) != [out, rank, *[1] * (len(rest) - 1)]:
        raise CheckpointError(
            f"{file} is not for this kind of model: its {name} of shapes {tuple(down.shape)} and {tuple(up.shape)} "
            f"does not fit the UNet's of {(out, *rest)}"
        )
    return _Pair(down, up, None if alpha is None else alpha.item())


def _load_unet(pipe: Any, pairs: Mapping[str, _Pair], metadata: Mapping[str, Any], name: str) -> None:
    state = {f"{layer}.lora_A.weight": pair.down for layer, pair in pairs.items()}
    state |= {f"{layer}.lora_B.weight": pair.up for layer, pair in pairs.items()}
    config = {**_config(pairs), **_own(metadata, "unet")}
    pipe.unet.load_lora_adapter(
        state, prefix=None, adapter_name=name, metadata=config, _pipeline=pipe, low_cpu_mem_usage=True
    )
    lost = state.keys() ^ get_peft_model_state_dict(pipe.unet, adapter_name=name).keys()
    if lost:
        raise RuntimeError(f"{min(lost)} was dropped")


def _config(pairs: Mapping[str, _Pair]) -> dict[str, Any]:
    """The LoraConfig that follows from the tensors: the most common rank and alpha, and the layers that differ."""
    ranks = {layer: pair.down.shape[0] for layer, pair in pairs.items()}
    alphas = {layer: ranks[layer] if pair.alpha is None else pair.alpha for layer, pair in pairs.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{layer}": own for layer, own in ranks.items() if own != rank},
        "alpha_pattern": {f"^{layer}": own for layer, own in alphas.items() if own != alpha},
        "target_modules": list(pairs),
    }


def _own(metadata: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The part of diffusers' metadata for one component."""
    return {field: metadata[key] for field in _FIELDS if (key := f"{component}.{field}") in metadata}


def _load_text(pipe: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], name: str) -> None:
    """Load with diffusers' own loader, one encoder at a time."""
    state, alphas = pipe.lora_state_dict(dict(tensors))
    count = 0
    for component in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, component, None)
        if encoder is None or not any(key.startswith(f"{component}.") for key in state):
            continue
        pipe.load_lora_into_text_encoder(
            state,
            network_alphas=alphas,
            text_encoder=encoder,
            prefix=component,
            adapter_name=name,
            metadata={key: value for key, value in metadata.items() if key.startswith(f"{component}.")} or None,
            _pipeline=pipe,
        )
        count += len(get_peft_model_state_dict(encoder, adapter_name=name))
    if count != len(state):
        raise RuntimeError(f"{len(state) - count} tensors of its text encoders were dropped")
