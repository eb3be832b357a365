"""torchmetrics without its metrics, for commands that do not train.

Lightning needs two classes of torchmetrics, whose package imports all of its metrics when it is imported, and with
them torchvision, scipy and transformers: more than half of what ``sample`` would import beside torch.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

_HOMES = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}


def light_torchmetrics() -> None:
    """Put off what the package imports until a name is asked for that Lightning does not need."""
    spec = find_spec("torchmetrics")
    if "torchmetrics" in sys.modules or spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def find(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        if name.startswith("__") and name != "__version__":  # whoever looks through all modules needs no metrics
            raise AttributeError(f"module 'torchmetrics' has no attribute {name!r}")
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    vars(module).update(__getattr__=find, _logger=logging.getLogger("torchmetrics"))
    sys.modules["torchmetrics"] = module
