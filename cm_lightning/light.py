"""Imports Lightning without the metrics and the compiler, which most commands do not need.

Lightning takes two classes of torchmetrics, whose packages import all metrics at once, and with them torchvision, scipy
and transformers. Here that import is deferred until another name of a package is used. Lightning, torchvision and
optimizers take a few names of torch's compiler, which stand-ins have until another of its names is used.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping, MutableSequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


def light_lightning() -> None:
    """Import Lightning, unless it is imported already, without torchmetrics' metrics and torch's compiler."""
    given = {"__version__": version("torchmetrics"), "_logger": logging.getLogger("torchmetrics")}
    _put_off("torchmetrics", given, {"Metric": _metric, "MetricCollection": _collection})
    _put_off("torchmetrics.functional")  # so that a single metric can be imported from its file
    _put_off("torchmetrics.image")
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = _StandIn(
            _COMPILER, OptimizedModule=_Compiled, disable=_uncompiled, graph_break=_no_break
        )
        sys.modules[f"{_COMPILER}.utils"] = _StandIn(f"{_COMPILER}.utils", is_compile_supported=_is_compile_supported)
        sys.meta_path.insert(0, _OtherFiles())
    import_module("lightning.pytorch.cli")


class _StandIn(ModuleType):
    """Stands for a file of the compiler: it has a few names, and another name imports the compiler in its place."""

    __path__: MutableSequence[str] = []  # noqa: RUF012

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=True)  # for code that asks whether there is a compiler
        vars(self).update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # code that looks through all modules asks for these
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _import_compiler()
        return getattr(import_module(self.__name__), name)


class _OtherFiles(MetaPathFinder):
    """Imports the whole compiler when one of its files is imported, as they import one another."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{_COMPILER}.") or not isinstance(sys.modules.get(_COMPILER), _StandIn):
            return None
        _import_compiler()
        return spec_from_loader(fullname, _Imported(import_module(fullname)))


class _Imported(Loader):
    """Gives a module that is imported already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


def _import_compiler() -> Any:
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            del sys.modules[name]
    return import_module(_COMPILER)


class _OfCompiler(type):
    def __instancecheck__(cls, instance: object) -> bool:
        compiler = sys.modules.get(f"{_COMPILER}.eval_frame")  # nothing is compiled without it
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class _Compiled(metaclass=_OfCompiler):
    """Stands for the class of compiled modules, which Lightning uses only to test whether a module is one."""


def _uncompiled(function: Any = None, *given: Any, **options: Any) -> Any:
    """Stands for the decorator of a function that must not be compiled, and applies it once there is a compiler."""
    if function is None:
        return lambda function: _uncompiled(function, *given, **options)
    if not isinstance(function, FunctionType | MethodType):  # a module, or a class of one
        return _import_compiler().disable(function, *given, **options)
    marked = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal marked
        if marked is None:
            compiler = sys.modules.get(_COMPILER)
            if compiler is None or isinstance(compiler, _StandIn):
                return function(*args, **kwargs)
            marked = compiler.disable(function, *given, **options)
        return marked(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # or the compiler would trace through it
    return call


def _no_break(*_: Any, **__: Any) -> None:
    """Stands for the end of a graph, which optimizers ask for around each step."""


def _is_compile_supported(device: Any) -> Any:
    """Stands for the function of this name, which torchvision calls only in code that is compiled."""
    return import_module(_COMPILER).utils.is_compile_supported(device)


def _metric() -> Any:
    import_module("torchmetrics.utilities")  # it and the metric import each other; this order works
    return import_module("torchmetrics.metric").Metric


def _collection() -> Any:
    _metric()
    return import_module("torchmetrics.collections").MetricCollection


def _put_off(
    package: str, given: Mapping[str, Any] | None = None, made: Mapping[str, Callable[[], Any]] | None = None
) -> None:
    """Import a package only when a name of it is used that is neither given nor made here nor imported already."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is None or spec.loader is None or spec.origin is None:
        return
    loader, module, source = spec.loader, module_from_spec(spec), Path(spec.origin).read_text()

    def find(name: str) -> Any:
        if made and name in made:
            return made[name]()
        # code that looks through all modules asks for names that no package has
        if name.startswith("__") or not re.search(rf"\b{re.escape(name)}\b", source):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        known = _imported(package, name)
        if known is not None:
            return known
        del vars(module)["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    vars(module).update(given or {}, __getattr__=find)
    sys.modules[package] = module


def _imported(package: str, name: str) -> Any:
    """A class or function of a package whose file is imported already; None if there is none of this name."""
    for file, module in list(sys.modules.items()):
        found = vars(module).get(name) if file.startswith(f"{package}.") else None
        if getattr(found, "__module__", None) == file:
            return found
    return None
