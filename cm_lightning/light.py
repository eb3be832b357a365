"""Imports Lightning without the metrics and the compiler, which ``sample`` does not need.

Lightning takes two classes of torchmetrics, whose package imports all metrics at once, and with them torchvision, scipy
and transformers. Here that import is deferred until another name of the package is used. Lightning takes one class and
one decorator of torch's compiler; here substitutes take their place, and the compiler is not imported.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


def light_lightning() -> None:
    """Import Lightning, unless it is imported already, without torchmetrics' metrics and torch's compiler."""
    given = {"__version__": version("torchmetrics"), "_logger": logging.getLogger("torchmetrics")}
    _put_off("torchmetrics", given, {"Metric": _metric, "MetricCollection": _collection})
    if "torch._dynamo" not in sys.modules:
        stand_in = ModuleType("torch._dynamo")
        vars(stand_in).update(OptimizedModule=_Compiled, disable=_uncompiled)
        sys.modules["torch._dynamo"] = stand_in
        import_module("lightning.pytorch.cli")
        del sys.modules["torch._dynamo"]  # from now on, code that needs the compiler imports it


class _OfCompiler(type):
    def __instancecheck__(cls, instance: object) -> bool:
        compiler = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled without it
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class _Compiled(metaclass=_OfCompiler):
    """Stands for the class of compiled modules, which Lightning uses only to test whether a module is one."""


def _uncompiled(function: Any = None, *_: Any, **__: Any) -> Any:
    """Stands for the decorator of a function that must not be compiled."""
    return _uncompiled if function is None else function


def _metric() -> Any:
    import_module("torchmetrics.utilities")  # it and the metric import each other; this order works
    return import_module("torchmetrics.metric").Metric


def _collection() -> Any:
    _metric()
    return import_module("torchmetrics.collections").MetricCollection


def _put_off(package: str, given: Mapping[str, Any], made: Mapping[str, Callable[[], Any]]) -> None:
    """Import a package only when a name of it is used that is neither given nor made here."""
    spec = find_spec(package)
    if package in sys.modules or spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def find(name: str) -> Any:
        if name in made:
            return made[name]()
        if name.startswith("__"):  # code that looks through all modules does not use the package
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        del vars(module)["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    vars(module).update(given, __getattr__=find)
    sys.modules[package] = module
