"""A model that takes its sizes from a folder of images, where the user has not given them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from cm_lightning.complaints import given_options
from cm_lightning.data.folder import ImageFolder


def adapt_to_data(config: Any, arguments: Sequence[str]) -> None:
    """Set image_shape of the model, and image_channels and num_classes of its backbone, to what an ImageFolder holds.

    Args:
        config: of a subcommand, before anything is built; changed in place.
        arguments: of the command line: what they or their files give stays as it is.
    """
    data, model = config.get("data"), config.get("model")
    cls = _class(data)
    if cls is None or not issubclass(cls, ImageFolder) or model is None or "image_shape" not in model.init_args:
        return
    folder = cls(**data.init_args.as_dict())
    if not folder.root.exists():
        return  # loading says so; a dry run needs no images
    given = {path for path, _ in given_options(arguments)}
    if model.init_args.image_shape is None:
        model.init_args.image_shape = list(folder.image_shape)
    sizes = getattr(model.init_args.get("backbone"), "init_args", {})
    for name, value in (("image_channels", folder.image_shape[0]), ("num_classes", folder.num_classes)):
        if name in sizes and ("model", "backbone", name) not in given:
            sizes[name] = value


def _class(config: Any) -> type | None:
    package, _, name = str(config.class_path if config is not None else "").rpartition(".")
    found = getattr(import_module(package), name, None) if package else None
    return found if isinstance(found, type) else None
