"""Fully sharded data parallelism (FSDP2): each rank holds a part of the trained network, its gradients and moments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from cm_lightning.errors import ConfigError

if TYPE_CHECKING:
    from cm_lightning.modules.trained import TrainedModule

#: A block that holds at least this part of a network's weights is gathered by itself.
_PART = 0.01


class Sharded(ModelParallelStrategy):
    """Splits the trained network over all ranks, which gather the weights of a block only while they compute it.

    Each rank keeps its part of the weights, of their gradients and of the optimizer's moments; frozen networks, such as
    a teacher, stay whole on every rank. Losses and gradients are those of ``ddp``. A checkpoint is one file with whole
    tensors under plain names, so that runs with and without this strategy resume one another.

    What reads whole weights during a run, or calls the network on some ranks alone, is refused: averages, samples,
    exports, adapters, networks besides the trained one that follow it or compete with it, and losses that take
    forward-mode derivatives or gradients of the last layer.

    Args:
        timeout: how long the ranks wait for one another.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, module: TrainedModule) -> None:
        """Split the trained network of a module over the ranks.

        Raises:
            ConfigError: the method or a callback needs whole weights, or torch is too old for a CPU.
        """
        from torch.distributed.fsdp import fully_shard  # which takes long to import

        if why := "; ".join(_hindrances(module)):
            raise ConfigError(f"trainer.strategy: Sharded does not work here: {why}; or take ddp")
        if self.root_device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ConfigError(
                f"trainer.strategy: torch {torch.__version__} cannot split a network on a CPU: update torch"
            )
        for block in [*_blocks(module.backbone), module.backbone]:
            fully_shard(block, mesh=self.device_mesh["data_parallel"])


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that are gathered one at a time, inner ones first."""
    least = _PART * _size(network)
    blocks = [block for part in network.modules() if isinstance(part, nn.ModuleList) for block in part]
    return [block for block in reversed(blocks) if _size(block) >= least]


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _hindrances(module: TrainedModule) -> Iterator[str]:
    """What needs whole weights, each with its remedy."""
    from cm_lightning.callbacks.compiled import Compile
    from cm_lightning.callbacks.ema import EMA
    from cm_lightning.callbacks.export import Export
    from cm_lightning.callbacks.prompt_grid import PromptGrid
    from cm_lightning.callbacks.quality import Quality
    from cm_lightning.callbacks.sample_grid import SampleGrid

    names: dict[type, str] = {
        Compile: "compile", EMA: "ema", SampleGrid: "samples", PromptGrid: "prompts", Quality: "quality",
        Export: "export",
    }  # fmt: skip
    callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
    for kind, name in names.items():
        if any(isinstance(callback, kind) for callback in callbacks):
            yield f"leave out {kind.__name__} by --callbacks.{name} null"
    if type(module.backbone).forward is nn.Module.forward:
        yield "an adapter is small enough for every rank"
    if module.followers:
        yield "a copy follows the network: leave out target_rate"
    trained = {p for p in module.parameters() if p.requires_grad}
    objective = getattr(module, "objective", None)
    special = any(getattr(objective, name, False) for name in ("forward_mode", "keeps_graph"))
    if special or trained != set(module.backbone.parameters()):
        yield f"{type(module).__name__} does not train one network by plain gradients alone"
