"""A module from a checkpoint that the command line made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from cm_lightning.checkpoint import CONFIG_KEY, averages, read_checkpoint, weights
from cm_lightning.errors import CheckpointError
from cm_lightning.modules.base import GenerativeModule

_TRUSTED = ("cm_lightning", "torch.nn")


def load_module(path: str | Path, which: str | None = None, trust: Sequence[str] = ()) -> GenerativeModule:
    """The module of a checkpoint, on the CPU, in eval mode, ready to ``sample``.

    A checkpoint of a module that was built in Python has no configuration: build the module and load the weights with
    :func:`cm_lightning.checkpoint.weights`.

    Args:
        path: of the checkpoint.
        which: ``ema`` or ``raw`` backbone weights; None: the averaged ones if there are any.
        trust: packages besides this one whose classes the checkpoint's configuration may name, ``["my_networks"]``.

    Raises:
        CheckpointError: the file is missing or damaged, names classes that are not trusted, or does not fit them.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.get(CONFIG_KEY)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not say how its module was built: it was not made by cm-lightning fit")
    for name in _class_paths(config):
        if not name.startswith(tuple(f"{package}." for package in (*_TRUSTED, *trust))):
            package = name.split(".")[0]
            raise CheckpointError(f"{path} names the class {name}: if you trust that package, pass --trust {package}")
    module = _build(config, path)
    try:
        module.load_state_dict(checkpoint["state_dict"])
        if which == "ema" or (which is None and averages(checkpoint)):
            module.backbone.load_state_dict(weights(checkpoint, "ema"))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its configuration") from error
    return module.eval()


def _build(config: dict[str, Any], path: str | Path) -> GenerativeModule:
    # what only training needs is left out: optimizers may be functions, and start_from is a file of its own
    training = {"optimizer", "lr_scheduler", "start_from"}
    arguments = {name: value for name, value in config.get("init_args", {}).items() if name not in training}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GenerativeModule, "model", required=True)
    try:
        parsed = parser.parse_object({"model": {**config, "init_args": arguments}})
        module = parser.instantiate_classes(parsed).model
    except (ArgumentError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its module cannot be built: {error}") from error
    assert isinstance(module, GenerativeModule)
    return module


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "class_path" in config:
            yield str(config["class_path"])
        for key, value in config.items():
            if key not in ("optimizer", "lr_scheduler"):
                yield from _class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_paths(value)
