"""The exponential moving average of a network's weights, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from cm_lightning.checkpoint import averages
from cm_lightning.domains import BELOW_ONE
from cm_lightning.errors import CheckpointError, ConfigError, NonFiniteLossError
from cm_lightning.interrupt import uninterrupted
from cm_lightning.states import are_finite, difference, renamed_like
from cm_lightning.steps import steps_taken


class EMA(Callback):
    """average <- decay average + (1 - decay) weights after every optimizer step; buffers are copied.

    Validation, test and prediction use the averaged weights; training continues with the raw ones. Checkpoints hold
    the raw weights under ``state_dict`` and the average under this callback. For several averages use several
    callbacks, one of them with ``evaluate=True``. Place it before callbacks that draw samples.

    Args:
        decay: the decay, in [0, 1). 0.9999 averages over about 10,000 steps.
        attribute: the submodule of the LightningModule to average.
        evaluate: whether evaluation uses this average.
        ramp: whether to use min(decay, (1 + k) / (10 + k)) at step k, so that a short run forgets its beginning.
    """

    def __init__(
        self, decay: float = 0.9999, attribute: str = "backbone", evaluate: bool = True, ramp: bool = True
    ) -> None:
        BELOW_ONE.check(self, decay=decay)
        self.decay, self.attribute, self.evaluate, self.ramp = decay, attribute, evaluate, ramp
        self.average: dict[str, Tensor] | None = None
        self.swapped = False
        self._step = 0

    @property
    def state_key(self) -> str:
        return f"EMA(attribute={self.attribute}, decay={self.decay})"

    def state_dict(self) -> dict[str, Any]:
        if self.swapped:
            raise RuntimeError("a checkpoint was requested while the module held averaged weights")
        return {
            "attribute": self.attribute,
            "decay": self.decay,
            "evaluate": self.evaluate,
            "average": self.average or {},
        }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save an average that is not finite; the module refuses its own weights with a better message."""
        if self.average and not are_finite(self.average.values()) and are_finite(self._live(pl_module).values()):
            raise NonFiniteLossError(
                f"the average of {self.attribute} is not finite at step {steps_taken(trainer)}, though the weights are"
                ": no checkpoint of it is written: resume from an earlier one by --ckpt_path"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = {name: tensor.clone() for name, tensor in state_dict["average"].items()} or None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the average even if its decay differs in the checkpoint: the nearest decay for the same use."""
        found = averages(checkpoint, self.attribute)
        if not any(state["average"] for state in found) and trainer.state.fn == TrainerFn.FITTING:
            rank_zero_info(
                f"EMA: the checkpoint does not hold an average of {self.attribute}: it starts again from the weights"
            )
        if found and self.state_key not in checkpoint["callbacks"]:
            self.load_state_dict(
                min(
                    found, key=lambda s: (bool(s.get("evaluate")) != self.evaluate, abs(s.get("decay", 0) - self.decay))
                )
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(getattr(pl_module, self.attribute, None), nn.Module):
            raise ConfigError(f"EMA: {type(pl_module).__name__} does not have a submodule {self.attribute!r}")
        mine = [c for c in trainer.callbacks if isinstance(c, EMA) and c.attribute == self.attribute]  # type: ignore[attr-defined]
        if sum(c.evaluate for c in mine) > 1:
            raise ConfigError(
                f"two EMA callbacks of {self.attribute} evaluate: set evaluate: false for all but one, or "
                "leave one out by --callbacks.ema null"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        live = self._live(pl_module)
        if self.average is None:
            self.average = {name: tensor.detach().clone() for name, tensor in live.items()}
        self._check(live)
        # in the precision of the network, which may differ from that of the run that is resumed
        self.average = {name: tensor.to(live[name], copy=True) for name, tensor in self.average.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = steps_taken(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if steps_taken(trainer) == self._step:
            return  # gradients are still being accumulated
        self._step = steps_taken(trainer)
        self.update(getattr(pl_module, self.attribute), self._step)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Update the average with the weights of ``module`` after optimizer step ``step``."""
        assert self.average is not None, "on_fit_start makes the average"
        decay = min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay
        parameters = dict(module.named_parameters(remove_duplicate=False))  # tied weights have several names
        torch._foreach_lerp_([self.average[name] for name in parameters], list(parameters.values()), 1 - decay)
        for name, buffer in module.named_buffers(remove_duplicate=False):
            if name in self.average:  # only persistent buffers are part of the state
                self.average[name].copy_(buffer)

    def swap(self, pl_module: L.LightningModule) -> None:
        """Exchange the module's weights and the average, in place."""
        assert self.average is not None, "there is an average once fit has started or a checkpoint was loaded"
        live = self._live(pl_module)
        self._check(live)
        # test and predict run in inference mode; a later training step could not update tensors made in it
        with uninterrupted(), torch.inference_mode(False), torch.no_grad():
            held = {name: tensor.clone() for name, tensor in live.items()}
            for name, tensor in live.items():
                tensor.copy_(self.average[name])
            self.average = held
            self.swapped = not self.swapped

    @contextmanager
    def applied(self, pl_module: L.LightningModule) -> Iterator[None]:
        """A context in which the module holds the averaged weights: ``with ema.applied(module): module.sample(16)``."""
        self.swap(pl_module)
        try:
            yield
        finally:
            self.swap(pl_module)

    def _enter(self, pl_module: L.LightningModule) -> None:
        if not self.evaluate or self.swapped:
            return
        if self.average is None:
            rank_zero_warn(f"EMA: {self.attribute} does not have an average yet, so the raw weights are evaluated")
        else:
            self.swap(pl_module)

    def _leave(self, pl_module: L.LightningModule) -> None:
        if self.swapped:
            self.swap(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(pl_module)  # Lightning keeps ModelCheckpoint last, so this comes before it saves

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter(pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._leave(pl_module)

    def _live(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        module: nn.Module = getattr(pl_module, self.attribute)
        return module.state_dict()

    def _check(self, live: dict[str, Tensor]) -> None:
        assert self.average is not None
        self.average = renamed_like(self.average, live)
        if differing := difference(self.average, live):
            raise CheckpointError(
                f"the averaged weights in the checkpoint belong to another {self.attribute}: {differing}"
            )
