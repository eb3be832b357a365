"""The weights that training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from cm_lightning.checkpoint import CONFIG_KEY, averages, read_checkpoint, weights
from cm_lightning.errors import ConfigError
from cm_lightning.interop.folder import find_export
from cm_lightning.interop.foreign import is_foreign, read_foreign
from cm_lightning.interop.weights import read_tensors


def first_weights(module: nn.Module, path: str) -> Mapping[str, Tensor]:
    """The backbone's first weights: a checkpoint's averaged ones if it has any, or those of another program's network.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: the network in the file takes another noise label than the module's network.
    """
    if not is_foreign(path):
        if (exported := find_export(path)) is not None:
            require_noise_scale(module, _noise_scale(exported.module), path)
            return read_tensors(exported.weights)
        checkpoint = read_checkpoint(path)
        require_noise_scale(module, _noise_scale(checkpoint.get(CONFIG_KEY)), path)
        return weights(checkpoint, "ema" if averages(checkpoint) else "raw")
    foreign = read_foreign(path)
    require_noise_scale(module, foreign.noise_scale, path)
    return cast(Mapping[str, Tensor], foreign.backbone.state_dict())


def _noise_scale(config: object) -> float | None:
    """The noise scale in a module's configuration: None means t itself; 0.25 if it is not given."""
    options = config.get("init_args", {}) if isinstance(config, dict) else {}
    parameterization = options.get("parameterization")
    chosen = parameterization.get("init_args", {}) if isinstance(parameterization, dict) else {}
    scale = chosen.get("noise_scale", 0.25)
    return None if scale is None else float(scale)


def require_noise_scale(module: nn.Module, scale: float | None, origin: str) -> None:
    """Raise ConfigError if the module's network takes another noise label than the network at ``origin``."""
    parameterization = getattr(module, "parameterization", None)
    own = None if getattr(parameterization, "told_t", False) else getattr(parameterization, "noise_scale", scale)
    if own != scale:
        raise ConfigError(
            f"the network of {origin} takes {_label(scale)}, this one takes {_label(own)}: "
            f"set noise_scale of the parameterization to {'null' if scale is None else f'{scale:g}'}"
        )


def _label(scale: float | None) -> str:
    return "t" if scale is None else f"{scale:g} ln sigma"
