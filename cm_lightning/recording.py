"""Objects that record the arguments they were built with, so that they can be rebuilt from a checkpoint."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any

#: The key of a description, in place of ``init_args``, for an object that did not record its arguments.
UNRECORDED = "unrecorded"


#: Kinds of values that are kept, and their types; bool comes first, because it is an Integral too.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    NoneType: lambda value: value,
    bool: bool,
    str: str,
    Path: str,
    Integral: int,
    Real: float,
}


class Recorded:
    """Base of classes that record the arguments of their objects: ``class MyNet(Recorded, nn.Module)``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remember(self: Any, *args: Any, **options: Any) -> None:
        if (
            "_recorded" not in self.__dict__
        ):  # otherwise this is a base class, called by the constructor of its subclass
            self.__dict__["_recorded"] = _arguments(signature, self, args, options)
        init(self, *args, **options)

    return remember


def _arguments(
    signature: inspect.Signature, self: Any, args: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arguments by name, described; None if a call cannot be written with names, or does not fit the signature."""
    try:
        bound = signature.bind(self, *args, **options)
    except TypeError:
        return None
    bound.apply_defaults()
    _, *parameters = signature.parameters.values()
    result: dict[str, Any] = {}
    for parameter in parameters:
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            result |= {name: describe(item) for name, item in value.items()}
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            if value:
                return None
        else:
            result[parameter.name] = describe(value)
    return result


def describe(value: Any) -> Any:
    """Describe a value: numbers, text, lists and dictionaries as they are, objects as ``{class_path, init_args}``.

    An object with unknown arguments becomes ``{class_path, unrecorded: True}``.
    """
    for kind, plain in _PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {key: describe(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):  # the command line takes its fields without a class_path
        return {field.name: describe(getattr(value, field.name)) for field in fields(value)}
    value = getattr(value, "_orig_mod", value)  # inside the wrapper of torch.compile
    arguments = _known_arguments(value)
    name = value.__qualname__ if inspect.isroutine(value) or inspect.isclass(value) else type(value).__qualname__
    path = f"{value.__module__ if hasattr(value, '__module__') else type(value).__module__}.{name}"
    if arguments is None or "<locals>" in path:
        return {"class_path": path, UNRECORDED: True}
    return {"class_path": path, "init_args": arguments}


def _known_arguments(value: Any) -> dict[str, Any] | None:
    """The recorded arguments of an object, or no arguments if its constructor takes none."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return None
    if "_recorded" in getattr(value, "__dict__", {}):
        recorded: dict[str, Any] | None = value.__dict__["_recorded"]
        return recorded
    try:
        parameters = list(inspect.signature(type(value).__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        return None
    takes_none = type(value).__init__ is object.__init__ or not parameters
    return {} if takes_none else None


def foreign_packages(described: Any) -> list[str]:
    """The third-party packages that sampling needs, by a description, without those that only training needs."""
    found: set[str] = set()
    if isinstance(described, Mapping):
        name = str(described.get("class_path", "torch.nn."))
        if not name.startswith(("cm_lightning.", "torch.nn.")):
            found.add(name.partition(".")[0])
        parts = [part for key, part in described.items() if key not in ("optimizer", "lr_scheduler", "teacher")]
        return sorted(found.union(*map(foreign_packages, parts)))
    return sorted(found.union(*map(foreign_packages, described))) if isinstance(described, list) else []
