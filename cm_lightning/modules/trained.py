"""The base of everything that is trained: an optimizer, the clock of the schedules, failures, and exact resume."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cm_lightning.checkpoint import CONFIG_KEY
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.noise import derived_seed
from cm_lightning.core.random import gather_states, set_state
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.errors import CheckpointError, ConfigError, NonFiniteLossError
from cm_lightning.modules import faults
from cm_lightning.modules.batch import division_of_a_step, number_of_samples
from cm_lightning.modules.first_failure import FirstFailure
from cm_lightning.modules.frozen import Frozen
from cm_lightning.modules.starting import first_weights
from cm_lightning.modules.target import Follower
from cm_lightning.parts import FORMAT, FORMAT_KEY
from cm_lightning.recording import Recorded, describe
from cm_lightning.states import are_finite, difference, renamed_like

_SCHEDULES_END = 1_000_000


class TrainedModule(Recorded, L.LightningModule):
    """Base of the trained modules: a network under ``backbone``, and a loss.

    Args:
        backbone: the network that is trained, averaged and saved.
        optimizer: called with the parameters; RAdam with a learning rate of 1e-4 if None.
        lr_scheduler: a :class:`RateSchedule`, or called with the optimizer and stepped after each of its steps.
        start_from: a checkpoint of this suite; training starts from its (averaged) backbone weights. Or
            ``openai:FILE``, ``edm:FILE``, ``diffusers:FOLDER``.
    """

    #: How the command line configured this module; saved in its checkpoints so that ``load_module`` can rebuild it.
    #: If None, they hold the arguments that it was built with in Python.
    config: dict[str, Any] | None = None
    #: Whether a callback looks at the gradients of each step, so that a loss that is not finite does not end the run.
    skips_bad_steps = False
    #: The weights that follow the trained network, such as an average, in methods that have any.
    followers: tuple[Follower, ...] = ()

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.start_from = start_from
        #: Optimizer steps that the weights have had, including those before the checkpoint that the run resumes.
        #: ``global_step`` counts those of each optimizer, and starts from 0 with each Trainer.
        self.trained_steps = 0
        self._resumed = False
        self._random_states: list[dict[str, Tensor]] | None = None
        self._start_failure: CheckpointError | None = None
        self._failed_step, self._failed_batch = FirstFailure(), FirstFailure()
        self._batch_samples = 0

    @abstractmethod
    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        """The loss on a batch of the data, a scalar; a generator makes its noise reproducible."""

    def one_sample(self) -> tuple[Tensor, Tensor, Any]:
        """A noisy sample of zeros (1, ...), its level (1,) and its condition, on the device of new tensors.

        Raises:
            NotImplementedError: the method does not train on noisy samples.
        """
        raise NotImplementedError

    @abstractmethod
    def forward_one(self) -> None:
        """Run the trained network on one sample of zeros as a training step does, to measure the memory it keeps."""

    def pass_beside(self) -> None:
        """Run what a step evaluates without gradients beside that, on one sample, if it needs much memory; or nothing.

        A plain pass does not: it keeps little, and the estimate leaves room for it.
        """

    def frozen_networks(self) -> dict[str, nn.Module]:
        """The networks that training needs besides the trained one and its copies, by their roles."""
        found = {
            name.rpartition(".")[2].removeprefix("frozen_"): part.outline()
            for name, part in self.named_modules()
            if isinstance(part, Frozen)
        }
        return {name: network for name, network in found.items() if network is not None}

    def networks(self) -> list[nn.Module]:
        """All networks that a training step calls: the trained ones, what follows them, and the frozen ones."""
        frozen = [part.network for part in self.modules() if isinstance(part, Frozen)]
        teachers = [getattr(network, "backbone", network) for network in frozen]  # what a step calls
        return [self.backbone, *(follower.network for follower in self.followers), *teachers]

    def progress(self, clock: Clock) -> Mapping[str, float]:
        """The values of the method's schedules at a step, to be logged under the papers' names."""
        return {}

    def phase(self, clock: Clock) -> str:
        """The name of the part of the run that a step belongs to, in a word or two, for the progress bar."""
        return "training"

    def sample_arguments(self, run: Path) -> list[str] | None:
        """The arguments with which ``cm-lightning sample`` draws from the run in a folder; None if it cannot."""
        return None

    def shown(self) -> Mapping[str, Any]:
        """Further values of the last loss to log, by name."""
        return {}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        total = self.trainer.estimated_stepping_batches  # this respects max_steps and max_epochs
        if total == float("inf"):
            raise ConfigError("the schedules need the length of the run: set trainer.max_steps (or max_epochs)")
        return int(total)

    @property
    def clock(self) -> Clock:
        """The clock of the schedules: that of the run while a Trainer fits, otherwise their end."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return Clock(self.trained_steps, self.total_steps)
        return Clock(_SCHEDULES_END, _SCHEDULES_END)

    def trained_parameters(self) -> list[Any]:
        """The trained parameters, or groups of them, for the optimizer."""
        return [p for p in self.parameters() if p.requires_grad]

    def optimizer_of(self, parameters: list[Any]) -> torch.optim.Optimizer:
        """The configured optimizer for some parameters, or groups of them."""
        return self.optimizer(parameters) if self.optimizer else torch.optim.RAdam(parameters, lr=1e-4)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self.optimizer_of(self.trained_parameters())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.optimizer: {error}") from error
        if self.lr_scheduler is None:
            return optimizer
        if isinstance(self.lr_scheduler, RateSchedule):
            schedule, total = self.lr_scheduler, self.total_steps
            scheduler = LambdaLR(optimizer, lambda step: schedule(min(step, total), total))
        else:
            scheduler = cast(LambdaLR, self.lr_scheduler(optimizer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        self.trained_steps, self._resumed = 0, False  # a checkpoint to resume from is read after this
        if not self.start_from:
            return
        try:
            found = first_weights(self, self.start_from)
        except CheckpointError as error:
            self._start_failure = error  # a run that resumes from its own checkpoint does not need the file
            return
        state = renamed_like(self.named_like_backbone(found), own := self.backbone.state_dict())
        if differing := difference(state, own):
            raise CheckpointError(f"start_from: the backbone in {self.start_from} is another network: {differing}")
        self.load_backbone(state)

    def configure_model(self) -> None:
        if self.device_mesh is None:  # only strategies that split networks over ranks have one
            return
        strategy: Any = self.trainer.strategy
        if not hasattr(strategy, "shard"):
            raise ConfigError(
                f"trainer.strategy: {type(strategy).__name__} is not supported: take ddp, or "
                "class_path: cm_lightning.Sharded"
            )
        strategy.shard(self)

    def on_fit_start(self) -> None:
        if self._start_failure and not self._resumed:
            raise self._start_failure
        if line := division_of_a_step(self.trainer):
            rank_zero_info(line)

    def named_like_backbone(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of a network from which training may start, by the names of the backbone."""
        return state

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Start the backbone and its averages from these weights."""
        self.backbone.load_state_dict(state)
        for follower in self.followers:
            follower.restart()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.batch_loss(batch, batch_idx)
        if not self.skips_bad_steps:
            self._failed_step.note(self.trained_steps, loss)
        # Lightning's loggers record only these steps; logging at the others would waste time
        n = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if n and (self.trained_steps + 1) % n == 0:
            self._stop_if_failed()
            self.log("train/loss", loss, prog_bar=True)
            for name, value in [*self.progress(self.clock).items(), *self.shown().items()]:
                self.log(f"train/{name}", value, prog_bar=True)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for follower in self.followers:  # right after the step, so that a checkpoint of this step includes it
            follower.follow(self.clock)
        self.trained_steps += 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        generator = torch.Generator(self.device).manual_seed(self._number(batch_idx))
        loss = self.batch_loss(batch, batch_idx, generator)
        self._failed_batch.note(batch_idx, loss)
        self._batch_samples = self._batch_samples or number_of_samples(batch)
        self.log("val/loss", loss, batch_size=number_of_samples(batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        batch = int(self._failed_batch.number)
        if batch >= 0 and not self.trainer.sanity_checking:
            warnings.warn(faults.of_a_validation(self.trainer, batch, self._batch_samples), stacklevel=1)
        self._failed_batch, self._batch_samples = FirstFailure(), 0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing, because callbacks measure samples."""

    def _number(self, batch_idx: int) -> int:
        """The number of a batch among those of all ranks."""
        return batch_idx * self.trainer.world_size + self.global_rank

    def _stop_if_failed(self) -> None:
        """Raise on all ranks if the loss is not finite on any."""
        step = int(self.trainer.strategy.reduce(self._failed_step.number.to(self.device), reduce_op="max"))
        if step >= 0:
            raise NonFiniteLossError(faults.of_the_loss(self.trainer, step))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        state_dict = renamed_like(state_dict, own := self.state_dict())
        if strict and (differing := difference(state_dict, own)):
            raise CheckpointError(
                "the checkpoint's weights do not fit this model: use the configuration it was trained with "
                f"({differing})"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_if_failed()
        failed = torch.tensor(int(not are_finite(_tensors(self))), device=self.device)
        if int(self.trainer.strategy.reduce(failed, reduce_op="max")):  # of sharded weights a rank sees a part
            broken = (name for name, part in self.named_children() if not are_finite(_tensors(part)))
            raise NonFiniteLossError(faults.of_the_weights(self.trainer, self.trained_steps, *islice(broken, 1)))
        checkpoint[FORMAT_KEY] = FORMAT
        checkpoint["trained_steps"] = self.trained_steps
        checkpoint["random_states"] = gather_states(self.device)
        checkpoint[CONFIG_KEY] = self.config or describe(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_states = checkpoint.get("random_states")
        self.trained_steps = checkpoint.get("trained_steps", checkpoint.get("global_step", 0))
        self._resumed = True

    def on_train_start(self) -> None:
        self._failed_step = FirstFailure()
        if self._random_states is not None and len(self._random_states) != self.trainer.world_size:
            self._random_states = None  # a resumed run with another number of ranks cannot draw the same noise
            torch.manual_seed(derived_seed(torch.initial_seed(), self.trained_steps))
        # Lightning seeds all ranks alike, for equal initial weights; noise and dropout must differ from rank to rank
        if self._random_states is None and self.global_rank > 0:
            torch.manual_seed(derived_seed(torch.initial_seed(), self.global_rank))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # restored only here, because data loaders draw from the global generators when they start
        if self._random_states is not None:
            set_state(self._random_states[self.global_rank], self.device)
            self._random_states = None


def _tensors(part: nn.Module) -> list[Tensor]:
    """The weights and buffers of a network on this rank."""
    return [*part.parameters(), *part.buffers()]
