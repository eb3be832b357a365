"""Lightning without what it imports and ``sample`` does not need: all metrics, and torch's compiler.

Lightning asks torchmetrics for two classes and the compiler for one. Both packages import a great deal when they are
imported, and with it torchvision, scipy, transformers and sympy: four fifths of what ``sample`` would import beside
torch. Here that waits until another name of theirs is asked for, and then happens as it would have.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from typing import Any


def light_lightning() -> None:
    """Put off torchmetrics' metrics and torch's compiler, unless they are imported already."""
    given = {"__version__": version("torchmetrics"), "_logger": logging.getLogger("torchmetrics")}
    _put_off("torchmetrics", given, {"Metric": _metric, "MetricCollection": _collection})
    _put_off("torch._dynamo", {}, {"OptimizedModule": _compiled, "disable": lambda: _as_it_is})


def _metric() -> Any:
    import_module("torchmetrics.utilities")  # which, and the metric, import each other: this is the way round
    return import_module("torchmetrics.metric").Metric


def _collection() -> Any:
    _metric()
    return import_module("torchmetrics.collections").MetricCollection


def _compiled() -> Any:
    """A class of which there is no object: as long as it is not the real one, nothing is compiled."""
    return type("OptimizedModule", (import_module("torch.nn").Module,), {})


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """Keep the compiler out of a function that none is asked to compile."""
    return _as_it_is if function is None else function


def _put_off(package: str, given: Mapping[str, Any], made: Mapping[str, Callable[[], Any]]) -> None:
    """Import a package when a name of it is asked for that is neither given nor made."""
    parent, _, short = package.rpartition(".")
    spec = find_spec(package)
    if package in sys.modules or spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def find(name: str) -> Any:
        if name in made:
            return made[name]()
        if name.startswith("__"):  # whoever looks through all modules needs none of it
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        del vars(module)["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    vars(module).update(given, __getattr__=find)
    sys.modules[package] = module
    if parent:
        setattr(import_module(parent), short, module)
