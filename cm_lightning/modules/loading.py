"""Loading a module from a checkpoint (of the command line or of Python) or from an export."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cm_lightning.checkpoint import CONFIG_KEY, averages, read_checkpoint, weights
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.folder import find_export
from cm_lightning.interop.foreign import is_foreign
from cm_lightning.interop.weights import read_tensors
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.foreign import foreign_module
from cm_lightning.modules.found_levels import take_found_levels
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.recording import UNRECORDED
from cm_lightning.states import difference, renamed_like

#: Packages with the parts of modules. The rest of the suite is excluded: a file that built the command line would run
#: it.
_PARTS = (*(f"cm_lightning.{room}" for room in ("backbones", "core", "latent", "modules")), "torch.nn")


def load_module(
    path: str | Path, which: str | None = None, trust: Sequence[str] = (), **given: Any
) -> GenerativeModule:
    """Load a method on images with :func:`load_trained`, ready to ``sample``.

    Raises:
        CheckpointError: as for :func:`load_trained`, or the checkpoint is of another kind of module.
    """
    module = load_trained(path, which, trust, **given)
    if not isinstance(module, GenerativeModule):
        raise CheckpointError(
            f"{path} holds a {type(module).__name__}, which draws from prompts: give its export to sample --pipeline"
        )
    return module


def load_trained(path: str | Path, which: str | None = None, trust: Sequence[str] = (), **given: Any) -> TrainedModule:
    """The module of a checkpoint, on the CPU, in eval mode.

    Noise levels that ``cm-lightning search`` found for the checkpoint are its ``sampling_sigmas``.

    Args:
        path: path of the checkpoint; a folder that ``cm-lightning export --format safetensors`` wrote, or the weights
            in it; or ``openai:FILE``, ``diffusers:FOLDER``, which are taken for consistency models, or ``edm:FILE``, a
            diffusion model.
        which: ``ema`` or ``raw`` backbone weights; if None, the averaged ones if there are any.
        trust: packages besides this one whose classes the checkpoint's configuration may name, ``["my_networks"]``.
        given: arguments of the module that replace those in the file: ``backbone=MyNet()`` for a network that did not
            record its own (see :class:`cm_lightning.recording.Recorded`).

    Raises:
        CheckpointError: the file is missing or damaged, names classes that are not trusted, or does not fit its module.
    """
    module = _trained(path, which, trust, given)
    if isinstance(module, GenerativeModule):
        take_found_levels(module, path)
    return module


def _trained(path: str | Path, which: str | None, trust: Sequence[str], given: Mapping[str, Any]) -> TrainedModule:
    exported = None if is_foreign(path) else find_export(path)
    if which is not None and (is_foreign(path) or exported):
        raise ConfigError(f"--weights {which}: {path} holds one kind of weights: leave the option out")
    if is_foreign(path):
        return foreign_module(path)
    if exported is not None:
        module = _module(exported.module, trust, path, given)
        _fill(module.backbone, read_tensors(exported.weights), path)
        module.trained_steps = exported.steps
        return module.eval()
    checkpoint = read_checkpoint(path)
    config = checkpoint.get(CONFIG_KEY)
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} does not record how its module was built: build it in Python and load the backbone's weights by "
            "cm_lightning.checkpoint.weights(read_checkpoint(PATH))"
        )
    module = _module(config, trust, path, given)
    try:
        module.load_state_dict(checkpoint["state_dict"])
        if which == "ema" or (which is None and averages(checkpoint)):
            _fill(module.backbone, weights(checkpoint, "ema"), path)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    module.trained_steps = int(checkpoint.get("trained_steps", checkpoint.get("global_step", 0)))
    return module.eval()


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    state = renamed_like(state, own := network.state_dict())
    if differing := difference(state, own):
        raise CheckpointError(f"{path}: its weights do not fit its configuration: {differing}")
    network.load_state_dict(state)


def _module(
    config: Mapping[str, Any], trust: Sequence[str], path: str | Path, given: Mapping[str, Any]
) -> TrainedModule:
    try:
        if not issubclass(cls := _trusted_class(config["class_path"], trust), TrainedModule):
            raise CheckpointError(f"it holds {config['class_path']}, which is not a module of this suite")
        # what only training needs is left out: an optimizer is a function to call, start_from a separate file
        training = {"optimizer", "lr_scheduler", "start_from"} - _required(cls)
        recorded = config.get("init_args") or {}
        arguments = {name: value for name, value in recorded.items() if name not in {*training, *given}}
        if isinstance(arguments.get("teacher"), dict):  # its weights are not in the file, nor needed to sample
            arguments["teacher"] = "the teacher that was given in Python"
        module = _build({**config, "init_args": arguments}, trust, given)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # constructors raise many kinds of errors for the arguments in a damaged file
        raise CheckpointError(f"{path}: its module cannot be built: {error}") from error
    assert isinstance(module, TrainedModule)
    return module


def _required(cls: type) -> set[str]:
    """The arguments without which a class is not built: a method of two stages requires ``start_from``."""
    return {name for name, p in inspect.signature(cls).parameters.items() if p.default is p.empty}


def _build(value: Any, trusted: Sequence[str], given: Mapping[str, Any] | None = None) -> Any:
    """Build objects from ``{class_path, init_args}``; anything else, including strings, is returned unchanged."""
    if isinstance(value, list):
        return [_build(item, trusted) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: _build(item, trusted) for key, item in value.items()}
    if value.get(UNRECORDED):
        raise CheckpointError(
            f"it does not hold the arguments of {value['class_path']}: build the object and pass it in Python, "
            "load_module(PATH, backbone=...)"
        )
    arguments = _build(value.get("init_args") or {}, trusted)
    if "trust" in arguments:
        arguments["trust"] = list(trusted)  # the user decides whom to trust, not a file
    return _trusted_class(value["class_path"], trusted)(**arguments, **(given or {}))


def _trusted_class(name: str, trusted: Sequence[str]) -> type:
    package, _, attribute = name.rpartition(".")
    if not _within(name, ("cm_lightning", "torch.nn", *trusted)):
        raise CheckpointError(
            f"it names the class {name}: if you trust that package, pass --trust {name.split('.', maxsplit=1)[0]} "
            "(for a teacher --model.trust; in Python load_module(PATH, trust=[...]), or the object, backbone=...)"
        )
    found = getattr(import_module(package), attribute, None)
    # a trusted module may have imported any class of any package
    if not isinstance(found, type) or not _within(f"{found.__module__}.", (*_PARTS, *trusted)):
        raise CheckpointError(f"it names {name}, which is not a class of that package")
    return found


def _within(name: str, packages: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{package}." for package in packages))
