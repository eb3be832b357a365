"""The trained part of a latent consistency model: the whole network, or an adapter in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call

from cm_lightning.core.guidance import guidance_embedding
from cm_lightning.domains import COUNT, POSITIVE, Domain
from cm_lightning.latent.base import Conditioning, TextToImageBase, UNet
from cm_lightning.latent.lora import TARGETS, adapter_off, add_lora
from cm_lightning.latent.lora_files import save_kohya, save_lora
from cm_lightning.quiet import quiet
from cm_lightning.recording import Recorded

#: The widths that :func:`guidance_embedding` can fill.
_EMBEDDING = Domain("an even whole number of at least 4", lambda value: value >= 4 and value % 2 == 0, whole=True)


class Student(Recorded, ABC):
    """The trained part of a latent consistency model, and the teacher that it leaves untouched."""

    #: The network that contains the student's weights.
    unet: UNet
    #: What is trained, averaged and saved.
    weights: nn.Module
    #: What a stage may train, for a student of which it trains a part.
    parts: tuple[str, ...] = ()

    @abstractmethod
    def attach(self, base: TextToImageBase) -> None:
        """Make ``unet`` and ``weights`` from a base, equal to the base before training."""

    @abstractmethod
    def tensors(self, weights: nn.Module) -> Mapping[str, Tensor]:
        """The tensors of ``weights``, or of a copy, by their names in ``unet``."""

    @abstractmethod
    def embed(self, w: Tensor) -> Tensor | None:
        """The network's embedding of the guidance w (B,); None if the guidance is fixed in its weights."""

    @abstractmethod
    def teacher(self, base: TextToImageBase, x: Tensor, t: Tensor, c: Conditioning) -> Tensor:
        """The output of the base at x (B, C, h, w), t (B,)."""

    @abstractmethod
    def export(self, directory: Path, pipe: DiffusionPipeline) -> None:
        """Write the trained part to a folder that diffusers can load."""

    def plain(self) -> UNet:
        """The network as plain diffusers loads it."""
        return self.unet

    def only(self, part: str | None) -> AbstractContextManager[None]:
        """A context in which gradients reach a part of the weights alone."""
        return nullcontext()

    def frozen(self, part: str | None) -> Sequence[nn.Parameter]:
        """The weights that a stage which trains a part leaves as they are."""
        return ()

    def merge(self, seed: int) -> None:
        """Merge the LoRA of a stage, and start another, whose weights are drawn with a seed; or nothing."""

    def adopted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of another student by the names of this one, where it can take them."""
        return state

    def target(
        self, base: TextToImageBase, weights: nn.Module, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None
    ) -> Tensor:
        """The output of the network with a copy of the trained weights in place of them."""
        arguments = base.arguments(self.unet, x, t, c, w)
        output: Tensor = functional_call(self.unet, dict(self.tensors(weights)), kwargs=arguments)[0]
        return output.float()


class WholeUNet(Student):
    """A copy of the network, conditioned on the guidance in a full LCM (Luo et al. 2023, section 4.2).

    Args:
        guidance_width: width of the embedding of w, even; if None, the guidance is fixed in the weights.
    """

    def __init__(self, guidance_width: int | None = 256) -> None:
        if guidance_width is not None:
            _EMBEDDING.check(self, guidance_width=guidance_width)
        self.guidance_width = guidance_width

    def attach(self, base: TextToImageBase) -> None:
        # diffusers lists values that were defaults under this key, and would reset them
        config = {name: value for name, value in base.unet.config.items() if name != "_use_default_values"}
        if self.guidance_width is not None:
            config["time_cond_proj_dim"] = self.guidance_width
        unet = UNet2DConditionModel.from_config(config)
        if next(base.unet.parameters()).device.type != "meta":
            unet.load_state_dict(base.unet.state_dict(), strict=False)
            if self.guidance_width is not None:  # so the student starts as the teacher for every w
                nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        base.unet.requires_grad_(False).eval()
        self.unet = self.weights = unet.train()

    def tensors(self, weights: nn.Module) -> Mapping[str, Tensor]:
        return {**dict(weights.named_parameters()), **dict(weights.named_buffers())}

    def embed(self, w: Tensor) -> Tensor | None:
        return None if self.guidance_width is None else guidance_embedding(w, self.guidance_width)

    def teacher(self, base: TextToImageBase, x: Tensor, t: Tensor, c: Conditioning) -> Tensor:
        return base.output(base.unet, x, t, c)

    def export(self, directory: Path, pipe: DiffusionPipeline) -> None:
        pipe.unet = self.plain()
        with quiet():  # all parts in the student's precision, because diffusers does not mix precisions
            pipe.to(dtype=self.unet.dtype).save_pretrained(directory)


class LoRA(Student):
    """LCM-LoRA: low-rank adapters in the frozen network, with the guidance fixed in their weights (Luo et al. 2023b).

    Args:
        rank: rank of the adapters.
        alpha: their scale is alpha / rank; if None, alpha is the rank, which every loader assumes.
        targets: names of the layers that get an adapter; the published ones if None.
        name: name of the adapter.
    """

    def __init__(
        self, rank: int = 64, alpha: float | None = None, targets: Sequence[str] | None = None, name: str = "lcm"
    ) -> None:
        COUNT.check(self, rank=rank)
        if alpha is not None:
            POSITIVE.check(self, alpha=alpha)
        self.rank, self.alpha, self.targets, self.name = rank, alpha, tuple(targets or TARGETS), name

    def attach(self, base: TextToImageBase) -> None:
        self.unet = base.unet
        self.weights = Adapter(add_lora(self.unet, self.rank, self.alpha, self.targets, self.name))
        self.unet.train()  # gradient checkpointing requires it; dropout is absent

    def tensors(self, weights: nn.Module) -> Mapping[str, Tensor]:
        assert isinstance(weights, Adapter)
        return weights.by_name()

    def embed(self, w: Tensor) -> None:
        return None

    def teacher(self, base: TextToImageBase, x: Tensor, t: Tensor, c: Conditioning) -> Tensor:
        with adapter_off(self.unet):
            return base.output(self.unet, x, t, c)

    def export(self, directory: Path, pipe: DiffusionPipeline) -> None:
        save_lora(self.unet, type(pipe), directory, self.name)
        save_kohya(self.unet, directory, self.name)
        pipe.scheduler.save_pretrained(directory / "scheduler")


class Adapter(nn.Module):
    """Holds only the parameters of an adapter; their network stays outside of modules and checkpoints."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)  # a parameter's name must not have dots

    def by_name(self) -> dict[str, Tensor]:
        """The parameters by their names in the network."""
        return {name.replace("/", "."): parameter for name, parameter in self.named_parameters()}
