"""Networks of other programs in place of a checkpoint: ``openai:FILE``, ``edm:FILE``, ``diffusers:FOLDER``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from cm_lightning.errors import CheckpointError
from cm_lightning.interop.diffusers import read_folder, read_sigmas
from cm_lightning.interop.edm import network_from_edm
from cm_lightning.interop.openai import NOISE_SCALE, adm_from_openai
from cm_lightning.interop.weights import read_tensors


@dataclass(frozen=True)
class Foreign:
    """A network with its weights.

    Attributes:
        backbone: the network, in eval mode.
        noise_scale: the network takes noise_scale * ln sigma.
        channels: number of channels of its images.
        side: side of its images, in pixels.
        consistency: whether such files usually hold consistency models rather than denoisers.
        sigmas: ``sigma_min``, ``sigma_max`` and ``sigma_data``, if the files give them.
    """

    backbone: nn.Module
    noise_scale: float
    channels: int
    side: int
    consistency: bool
    sigmas: Mapping[str, float] = field(default_factory=dict)


def _openai(path: str) -> Foreign:
    network = adm_from_openai(read_tensors(path))
    # both published shapes go down to 8 pixels, and the file does not say which it is
    return Foreign(network, NOISE_SCALE, network.stem.in_channels, 8 * network.pyramid.factor, consistency=True)


def _edm(path: str) -> Foreign:
    network, side = network_from_edm(read_tensors(path))
    return Foreign(network, 0.25, network.stem.in_channels, side, consistency=False)


def _diffusers(path: str) -> Foreign:
    network, side = read_folder(path)
    return Foreign(network, NOISE_SCALE, network.image_channels, side, consistency=True, sigmas=read_sigmas(path))


_FORMATS: dict[str, Callable[[str], Foreign]] = {"openai": _openai, "edm": _edm, "diffusers": _diffusers}


def is_foreign(path: object) -> bool:
    """Whether a path begins with the name of a format and a colon."""
    return str(path).partition(":")[0] in _FORMATS


def read_foreign(path: object) -> Foreign:
    """Read the network at ``FORMAT:PATH``.

    Raises:
        CheckpointError: the file is missing, damaged, or holds another network.
    """
    name, _, file = str(path).partition(":")
    try:
        return _FORMATS[name](file)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if file in message else f"{file}: {message}") from error
    except Exception as error:  # tensors of unexpected names and shapes raise many kinds of errors
        raise CheckpointError(f"{file} does not hold a complete network of that kind") from error


#: Programs by the beginnings of their tensors' names.
_STARTS = {"openai": ("input_blocks.0.", "time_embed.0."), "edm": ("map_layer0.", "enc.")}


def origin(path: str | Path) -> str | None:
    """The program that wrote a file or folder, by its names: ``openai``, ``edm`` or ``diffusers``; else None."""
    path = Path(path)
    if path.is_dir():
        return "diffusers" if _of_diffusers(path) else None
    try:
        return _by_names(read_tensors(path)) if path.is_file() else None
    except CheckpointError:
        return None


def _by_names(names: Iterable[str]) -> str | None:
    known = list(names)
    return next((program for program, starts in _STARTS.items() if any(n.startswith(starts) for n in known)), None)


def _of_diffusers(folder: Path) -> bool:
    index = next((folder / name for name in ("model_index.json", "config.json") if (folder / name).is_file()), None)
    return index is not None and '"_class_name"' in index.read_text(errors="replace")
