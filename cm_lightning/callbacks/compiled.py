"""Compiling networks by ``torch.compile`` for training steps."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from cm_lightning.errors import ConfigError, flat, near
from cm_lightning.modules.trained import TrainedModule

_DEFAULT = "inductor"
#: The largest number of graphs of the networks of one class: students, targets and teachers, with and without
#: gradients, in several shapes.
_MOST_GRAPHS = 64


class Compile(Callback):
    """Compiles every network that a training step calls: those that are trained, averages that teach, and teachers.

    Outside of a step the networks are unchanged. So checkpoints, averages and exports have plain names, and runs with
    and without this callback can resume each other. Validation and sampling use the plain forward: they run without
    gradients, in eval mode, with hooks, and on batches of other sizes, each of which would need another compilation.

    A line names what cannot be compiled and stays plain: a network in which the compiler fails, forward-mode
    derivatives, the student of a loss that compares gradients of its last layer, where only those of that layer are
    computed, and a UNet of diffusers with gradient checkpointing. Without the compiler that the backend needs the whole
    run stays uncompiled.

    Args:
        backend: a backend of ``torch.compile``.

    Raises:
        ConfigError: the backend is unknown.
    """

    def __init__(self, backend: str = _DEFAULT) -> None:
        if backend != _DEFAULT and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
            raise ConfigError(f"Compile: no backend {backend}{near(backend, known)}; choose one of {', '.join(known)}")
        self.backend = backend
        self.calls: list[CompiledCall] = []
        self._settings = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, TrainedModule):
            raise ConfigError(
                f"callbacks.compile: {type(pl_module).__name__} is not a module of this suite: leave the callback out"
            )
        self.prepare(pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.begin_step()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.end_step()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close()

    def prepare(self, module: TrainedModule) -> None:
        """Find the networks of a module, on its device; each is compiled when it is first called in a step."""
        if self.backend == _DEFAULT and (missing := missing_for(module.device)):
            rank_zero_warn(f"callbacks.compile: there is no {missing}, so the networks stay uncompiled: install it")
            return
        networks = dict.fromkeys(module.networks())  # each once
        objective = getattr(module, "objective", None)
        forward_mode, keeps_graph = (getattr(objective, name, False) for name in ("forward_mode", "keeps_graph"))
        if forward_mode:
            rank_zero_info(
                "callbacks.compile: forward-mode derivatives stay uncompiled; derivative: difference avoids them"
            )
        if keeps_graph:
            del networks[module.backbone]
            rank_zero_info(
                "callbacks.compile: the student stays uncompiled, because gradients in its last layer are compared; "
                "balanced: false avoids this"
            )
        self._set(partly_plain=forward_mode or keeps_graph, keeps_graph=keeps_graph)
        self.calls = [call for network in networks for call in _calls(network, self.backend)]

    def begin_step(self) -> None:
        """Replace plain calls by compiled ones."""
        for call in self.calls:
            call.enter()

    def end_step(self) -> None:
        """Restore the plain calls."""
        for call in self.calls:
            call.leave()

    def close(self) -> None:
        """Restore the state from before."""
        self.end_step()
        self._settings.close()

    def _set(self, partly_plain: bool, keeps_graph: bool) -> None:
        """Set the compiler up until :meth:`close`."""
        import torch._dynamo  # this import takes seconds
        import torch._functorch.config
        import torch._inductor.config

        limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        self._settings.enter_context(torch._dynamo.config.patch(recompile_limit=limit))
        if partly_plain:  # compiled and plain passes must draw the same dropout masks
            torch.compiler.reset()  # graphs are shared by all networks of a class, even those of an earlier run
            self._settings.callback(torch.compiler.reset)
            self._settings.enter_context(torch._inductor.config.patch(fallback_random=True))
        if keeps_graph:  # a buffer that is reused in a backward pass is lost for the next
            self._settings.enter_context(torch._functorch.config.patch(donated_buffer=False))


class CompiledCall:
    """One way to call a network, compiled between :meth:`enter` and :meth:`leave`.

    Args:
        network: the network.
        attribute: the entry of the network's own dictionary that takes the place of the plain call.
        plain: the plain call.
        backend: a backend of ``torch.compile``.
    """

    def __init__(self, network: nn.Module, attribute: str, plain: Callable[..., Any], backend: Any) -> None:
        self.network, self.attribute, self.plain = network, attribute, plain
        #: What a network does before each pass, outside of the graph.
        self.before: Callable[[], None] | None = getattr(network, "before_pass", None)
        self.compiled = torch.compile(plain, backend=backend)
        self.failed = False

    def enter(self) -> None:
        """Replace the plain call."""
        self.network.__dict__[self.attribute] = self
        if self.before is not None:
            self.network.__dict__["prepared"] = True

    def leave(self) -> None:
        """Restore the plain call."""
        self.network.__dict__.pop(self.attribute, None)
        self.network.__dict__.pop("prepared", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        # within a larger graph the network is traced unchanged; functorch cannot differentiate compiled graphs
        if torch.compiler.is_compiling() or self.failed or torch._C._functorch.maybe_current_level() is not None:
            return self.plain(*args, **kwargs)
        if self.before is not None:
            self.before()
        try:
            return self.compiled(*args, **kwargs)
        except TorchDynamoException as error:
            self.failed = True
            rank_zero_warn(
                f"callbacks.compile: {type(self.network).__name__} stays uncompiled, because the compiler failed: "
                f"{flat(str(error))[:200]}"
            )
            return self.plain(*args, **kwargs)


def missing_for(device: torch.device) -> str | None:
    """What torch's own compiler needs on a device but does not find, in a word or two."""
    if device.type != "cpu":
        return None if importlib.util.find_spec("triton") or device.type == "mps" else "triton"
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return None if shutil.which(compiler) else f"C++ compiler ({compiler}; CXX names another)"


def _calls(network: nn.Module, backend: str) -> list[CompiledCall]:
    """The ways to call a network: as a whole, and for its coarsest features if it gives them."""
    calls = [CompiledCall(network, "_compiled_call_impl", network._call_impl, backend)]
    bottleneck = getattr(network, "bottleneck", None)
    return calls if bottleneck is None else [*calls, CompiledCall(network, "bottleneck", bottleneck, backend)]
