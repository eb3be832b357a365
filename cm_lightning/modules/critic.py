"""The base of methods that train two networks: a generator, and a critic of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from cm_lightning.core.adversarial import accuracy
from cm_lightning.core.turns import Turn, Turns
from cm_lightning.modules.trained import TrainedModule

#: The weight of the last step in the running means that are watched.
_SHARE = 0.02
#: Steps after which they are meaningful.
_ENOUGH = 50
#: A discriminator that is right more often than this is too strong to train the generator.
_WINS = 0.98
#: Samples whose spread is less than this share of the data's have collapsed.
_ALIKE = 0.2


class Losses(NamedTuple):
    """The loss of each network, a scalar, or None if it is not the network's turn."""

    generator: Tensor | None
    critic: Tensor | None


class _Touching(torch.autograd.Function):
    """The identity on a scalar; its gradient to every weight (given after it) is 0, and takes no memory."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *weights: Tensor) -> Tensor:
        ctx.shapes = [weight.shape for weight in weights]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        zero = torch.zeros_like(gradient)
        return gradient, *(zero.expand(shape) for shape in ctx.shapes)


class WithCritic(TrainedModule):
    """Base of the methods that train a generator, ``backbone``, against a ``critic``.

    The optimizer has a group of parameters for each network. So Lightning accumulates gradients, scales them, averages
    them over ranks, counts steps, saves and resumes as it does for one network. A network whose turn it is not does not
    get a gradient, so the optimizer leaves it and its moments unchanged. Gradients are clipped for each network
    separately.
    """

    critic: nn.Module
    turns: Turns
    critic_lr: float | None

    def hold_critic(self, critic: nn.Module, turns: Turns | None, critic_lr: float | None) -> None:
        """Keep the second network.

        Args:
            critic: the network.
            turns: which network trains at a step; both at every step if None.
            critic_lr: its learning rate; that of the generator if None.
        """
        self.critic, self.turns, self.critic_lr = critic, turns or Turns(), critic_lr
        self._shown: dict[str, Tensor] = {}
        self._watched: dict[str, Tensor] = {}
        self._watched_steps = 0

    def networks(self) -> list[nn.Module]:
        return [*super().networks(), *self.critic.children()]

    def trained_parameters(self) -> list[Any]:
        critic = [p for p in self.critic.parameters() if p.requires_grad]
        of_critic = set(critic)  # parameters are compared by identity
        generator = [p for p in self.parameters() if p.requires_grad and p not in of_critic]
        rate = {} if self.critic_lr is None else {"lr": self.critic_lr}
        return [{"params": generator}, {"params": critic, **rate}]

    @property
    def turn(self) -> Turn:
        """The networks that train at this step; outside of training both are evaluated."""
        return self.turns(self.trained_steps) if self.training else Turn(True, True)

    def joined(self, losses: Losses) -> Tensor:
        """The sum of the losses, whose gradients do not meet, a scalar."""
        named = {f"{name}_loss": loss for name, loss in losses._asdict().items() if loss is not None}
        if self.training:
            self._shown |= {name: loss.detach() for name, loss in named.items()}
        total = torch.stack(list(named.values())).sum()
        if self._trainer is not None and self.trainer.world_size > 1 and self.training:
            # DDP waits for the gradient of every weight, even of a network whose turn it is not and of a head that the
            # stage does not use, and otherwise does not average
            total = _Touching.apply(total, *(p for p in self.parameters() if p.requires_grad))  # type: ignore[no-untyped-call]
        return total

    def watch(self, real: Tensor, fake: Tensor, x: Tensor, samples: Tensor) -> None:
        """Record the logits (B,) of a discriminator and the spread of samples and data x (B, ...) within a batch."""
        if not self.training:
            return
        spread = (samples.std(0).mean() / x.std(0).mean().clamp(min=1e-8)) if len(x) > 1 else x.new_ones(())
        values = {"critic_accuracy": accuracy(real, fake), "spread": spread.detach()}
        for name, value in values.items():
            self._watched[name] = torch.lerp(self._watched.get(name, value), value, _SHARE)
        self._watched_steps += 1
        self._shown |= {**values, "logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}

    def forget(self) -> None:
        """Restart the running means."""
        self._watched, self._watched_steps = {}, 0

    def shown(self) -> Mapping[str, Any]:
        return self._shown

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        for name, group, acts in zip(Turn._fields, optimizer.param_groups, self._acting(), strict=True):
            if not acts:
                for p in group["params"]:
                    p.grad = None
                continue
            limit = gradient_clip_val or float("inf")  # with this limit clipping only measures
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(group["params"], limit)
                limit = float("inf")
            self._shown[f"{name}_gradient_norm"] = nn.utils.clip_grad_norm_(group["params"], limit).detach()

    def _acting(self) -> Turn:
        return self.turn

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        n = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if n and self._watched_steps >= _ENOUGH and self.trained_steps % n == 0:
            self._warn_of_collapse()

    def _warn_of_collapse(self) -> None:
        wins, spread = (float(self._watched[name]) for name in ("critic_accuracy", "spread"))
        if wins > _WINS:
            rank_zero_warn(
                f"the discriminator is right about {wins:.1%} of images and samples at step {self.trained_steps}, so "
                "the generator learns nothing from it: lower critic_lr, or let the generator train more often (turns)"
            )
            self.forget()
        elif spread < _ALIKE:
            rank_zero_warn(
                f"the samples of a batch spread {spread:.0%} as far as the data at step {self.trained_steps}: the "
                "generator has collapsed; lower the learning rate, or the weight of the adversarial loss"
            )
            self.forget()
