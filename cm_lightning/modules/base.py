"""What all methods share: a backbone, an optimizer, the clock of the schedules, sampling, and exact resume."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cm_lightning.checkpoint import CONFIG_KEY, read_checkpoint, weights
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.errors import CheckpointError, ConfigError, NonFiniteLossError
from cm_lightning.modules import randomness

_SCHEDULES_END = 1_000_000


class GenerativeModule(L.LightningModule):
    """Base of the methods.

    Args:
        backbone: any network with ``forward(x, noise_label, class_label=None)``. With a ``num_classes`` attribute above
            0 it is class-conditional.
        image_shape: (C, H, W) of the data; any shape for other data, (2,) for points in the plane.
        optimizer: called with the parameters; RAdam with lr 1e-4 if None.
        lr_scheduler: a :class:`RateSchedule`, or called with the optimizer and stepped after each of its steps.
        label_dropout: probability of training a sample with the null class.
        start_from: a checkpoint of this suite whose (averaged) backbone weights the training starts from.
    """

    #: How the command line configured this module; saved in its checkpoints so that ``load_module`` can rebuild it.
    config: dict[str, Any] | None = None
    _failed_step: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        label_dropout: float = 0.0,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_shape = tuple(image_shape)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.num_classes = int(getattr(backbone, "num_classes", 0))
        self.label_dropout = label_dropout
        self.start_from = start_from
        self._random_states: list[dict[str, Tensor]] | None = None
        self.register_buffer("_failed_step", torch.tensor(-1), persistent=False)
        if label_dropout and not self.num_classes:
            raise ConfigError("label_dropout needs a class-conditional backbone: set num_classes, or label_dropout 0")

    @abstractmethod
    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on images x (B, ...) and labels (B,): a scalar."""

    @abstractmethod
    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: torch.Generator | None
    ) -> Tensor:
        """Images from unit noise z (B, ...) through the given noise levels."""

    @abstractmethod
    def default_sigmas(self, steps: int) -> list[float]:
        """The noise levels of a number of sampling steps."""

    def progress(self) -> dict[str, float]:
        """What to log of the method's schedules at this step."""
        return {}

    # The clock of the schedules ---------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        trainer = self.trainer
        total = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ConfigError("the schedules need the length of the run: set trainer.max_steps (or max_epochs)")
        return int(total)

    @property
    def clock(self) -> tuple[int, int]:
        """(step, total) for the schedules: of the run while it trains, and else their end."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            return self.global_step, self.total_steps
        return _SCHEDULES_END, _SCHEDULES_END

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.optimizer(parameters) if self.optimizer else torch.optim.RAdam(parameters, lr=1e-4)
        if self.lr_scheduler is None:
            return optimizer
        if isinstance(self.lr_scheduler, RateSchedule):
            schedule, total = self.lr_scheduler, self.total_steps
            scheduler = LambdaLR(optimizer, lambda step: schedule(min(step, total), total))
        else:
            scheduler = cast(LambdaLR, self.lr_scheduler(optimizer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Training and validation --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.start_from:
            checkpoint = read_checkpoint(self.start_from)
            try:
                self.load_backbone(weights(checkpoint))
            except RuntimeError as error:
                raise CheckpointError(f"start_from: the backbone in {self.start_from} is another network") from error

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start from these weights of the backbone."""
        self.backbone.load_state_dict(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = self._images_and_labels(batch)
        if labels is not None and self.label_dropout:
            dropped = torch.rand(labels.shape, device=x.device) < self.label_dropout
            labels = torch.where(dropped, self.num_classes, labels)
        loss = self.loss(x, labels)
        # the step of the first bad loss is kept on the device, so that no step waits for the accelerator
        first = (self._failed_step < 0) & ~torch.isfinite(loss.detach())
        self._failed_step = torch.where(first, self.global_step, self._failed_step)
        # Lightning's loggers take what is logged on these very steps; on all others logging would be wasted time
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._stop_if_failed()
            self.log("train/loss", loss, prog_bar=True)
            for name, value in self.progress().items():
                self.log(f"train/{name}", value, prog_bar=True)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, labels = self._images_and_labels(batch)
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        self.log("val/loss", self.loss(x, labels, generator), batch_size=len(x), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing of its own: callbacks measure samples."""

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As many samples as the batch has images, of the batch's classes."""
        x, labels = self._images_and_labels(batch)
        generator = torch.Generator().manual_seed(batch_idx)
        return self.sample(len(x), labels=labels, generator=generator)

    def _images_and_labels(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        x, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        if tuple(x.shape[1:]) != self.image_shape:
            shape = ",".join(str(size) for size in x.shape[1:])
            raise ConfigError(
                f"the data has samples of shape {tuple(x.shape[1:])}, the model expects {self.image_shape}: "
                f"set --model.image_shape=[{shape}] and the channels of its backbone"
            )
        if not x.is_floating_point():
            raise ConfigError(f"the data has samples of type {x.dtype}: give floats in [-1, 1]")
        return x, labels if self.num_classes else None

    def _stop_if_failed(self) -> None:
        step = int(self._failed_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss is not finite since step {step}: lower the learning rate, or set "
                "--trainer.gradient_clip_val=1; the last checkpoint is from before that step"
            )

    # Sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int = 1,
        labels: Tensor | Sequence[int] | int | None = None,
        generator: torch.Generator | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Tensor:
        """Draw n images with the weights the module holds.

        Args:
            n: number of images.
            steps: evaluations of the network (NFE).
            labels: a class, or n of them; None: the classes in turn, where the network has any.
            generator: of the noise; torch's global one if None.
            sigmas: noise levels from the highest down, in place of ``steps``.

        Returns:
            (n, C, H, W) in [-1, 1].

        Raises:
            ConfigError: steps below 1, labels that do not fit, or noise levels that do not descend.
        """
        levels = list(sigmas) if sigmas is not None else self.default_sigmas(steps)
        if not levels or levels != sorted(set(levels), reverse=True) or levels[-1] <= 0:
            raise ConfigError(f"sigmas must be positive and descend, got {levels}")
        source = generator.device if generator else self.device
        z = torch.randn(n, *self.image_shape, generator=generator, device=source).to(self.device)
        training = self.backbone.training
        self.backbone.eval()
        images = self.generate(z, self.sample_labels(n, labels), levels, generator)
        self.backbone.train(training)
        return images.clamp(-1, 1)

    def sample_labels(self, n: int, labels: Tensor | Sequence[int] | int | None) -> Tensor | None:
        """N class labels on the module's device; see :meth:`sample`."""
        if not self.num_classes:
            if labels is not None:
                raise ConfigError("labels were given, but the network is unconditional: leave them out")
            return None
        if labels is None:
            return torch.arange(n, device=self.device) % self.num_classes
        labels = torch.as_tensor(labels, device=self.device).long().expand(n)
        if bool(((labels < 0) | (labels > self.num_classes)).any()):
            raise ConfigError(f"labels must lie in 0 ... {self.num_classes - 1} ({self.num_classes}: the null class)")
        return labels

    # Checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_if_failed()
        checkpoint["random_states"] = randomness.gather_states(self.device)
        if self.config is not None:
            checkpoint[CONFIG_KEY] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_states = checkpoint.get("random_states")

    def on_train_start(self) -> None:
        # Lightning seeds all ranks alike, for equal initial weights; noise and dropout must differ from rank to rank
        if self._random_states is None and self.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # put back as late as this, for data loaders draw from the global generators when they start
        states, self._random_states = self._random_states, None
        if states is not None and len(states) == self.trainer.world_size:
            randomness.set_state(states[self.global_rank], self.device)
