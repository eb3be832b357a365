"""Adapting a model to a folder of images in the sizes that the user has not given."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from cm_lightning.complaints import given_options
from cm_lightning.data.folder import ImageFolder
from cm_lightning.errors import DataError


def adapt_to_data(config: Any, arguments: Sequence[str]) -> None:
    """Set image_shape of the model, and image_channels and num_classes of its backbone, to those of an ImageFolder.

    Args:
        config: configuration of a subcommand, before anything is built; changed in place.
        arguments: arguments of the command line; options that they or their files give are not changed.
    """
    data, model = config.get("data"), config.get("model")
    cls = _class(data)
    if cls is None or not issubclass(cls, ImageFolder) or model is None or "image_shape" not in model.init_args:
        return
    folder = cls(**data.init_args.as_dict())
    given = {path for path, _ in given_options(arguments)}
    sizes = getattr(model.init_args.get("backbone"), "init_args", {})
    try:
        if model.init_args.image_shape is None:
            model.init_args.image_shape = list(folder.image_shape)
        if ("model", "backbone", "image_channels") not in given and "image_channels" in sizes:
            sizes["image_channels"] = folder.image_shape[0]
        if ("model", "backbone", "num_classes") not in given and "num_classes" in sizes:
            sizes["num_classes"] = folder.num_classes
    except DataError:  # loading reports it later; a dry run does not need images
        return


def _class(config: Any) -> type | None:
    package, _, name = str(config.class_path if config is not None else "").rpartition(".")
    found = getattr(import_module(package), name, None) if package else None
    return found if isinstance(found, type) else None
