"""Changes of options between a run and its resumption: which are allowed, and which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cm_lightning.checkpoint import CONFIG_KEY
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.named_callbacks import by_name

#: Options for the location of a run, which do not otherwise affect it.
_ASIDE = (
    "ckpt_path",
    "base",
    "config",
    "dry_run",
    "wandb",
    "weights_only",
    "trainer.logger",
    "trainer.default_root_dir",
)
#: The options that a checkpoint's tensors depend on: the network, optimizer, method and data.
_FIXED = ("model.class_path", "model.image_shape", "model.backbone", "model.student", "model.optimizer.class_path",
          "model.optimizer.init_args.amsgrad")  # fmt: skip
#: Options of a network that its weights do not depend on.
_FREE = ("dropout", "gradient_checkpointing", "path", "cache")
_DEFAULTS = {"model.optimizer": {"class_path": "torch.optim.RAdam", "init_args": {}}}


@dataclass(frozen=True)
class Change:
    """An option that had another value.

    Args:
        option: its name, ``model.optimizer.init_args.lr``.
        old: its value in the run that is resumed; None if it had none.
        new: its value now.
    """

    option: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.option} {_shown(self.old)} -> {_shown(self.new)}"

    @property
    def allowed(self) -> bool:
        """Whether training can be resumed with it."""
        fixed = any(self.option == name or self.option.startswith(f"{name}.") for name in _FIXED)
        return not fixed or self.option.rpartition(".")[2] in _FREE


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The options whose values differ between the configurations; arguments are compared if the class is the same."""
    return [change for change in _compare("", _plain(old), _plain(new)) if not _is_aside(change.option)]


def allowed_changes(checkpoint: Mapping[str, Any], path: Path, config: Mapping[str, Any]) -> list[Change]:
    """The changes of a resumed run.

    Args:
        checkpoint: the contents of the file at ``path``.
        path: path of the checkpoint; the ``config.yaml`` of its run is searched above its folder.
        config: configuration of the resumed run.

    Raises:
        ConfigError: an option that a resumed run must keep has changed; the message names it and both values.
        CheckpointError: the checkpoint holds only weights.
    """
    found = changes(_former(checkpoint, path), config)
    if refused := [change for change in found if not change.allowed]:
        raise ConfigError(
            f"a resumed run keeps {refused[0].option}, and it was {_shown(refused[0].old)} in {path}: "
            f"{_shown(refused[0].new)} needs a new run, without --ckpt_path"
        )
    if "optimizer_states" not in checkpoint:
        raise CheckpointError(
            f"{path} holds only weights, without the optimizer's state: use --model.start_from {path}"
        )
    return found


def at_its_end(checkpoint: Mapping[str, Any], max_steps: int, max_epochs: int | None) -> str | None:
    """A line for the user if the run of a checkpoint has already reached its end, else None."""
    step, epochs = checkpoint.get("global_step", 0), _epochs(checkpoint)
    if step >= max_steps > 0:
        return f"has trained {step} of {max_steps} steps: to train longer, raise --trainer.max_steps"
    if max_epochs is not None and epochs >= max_epochs > 0:
        return f"has trained {epochs} of {max_epochs} epochs: to train longer, raise --trainer.max_epochs"
    return None


def _epochs(checkpoint: Mapping[str, Any]) -> int:
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    return int(loops.get("epoch_progress", {}).get("current", {}).get("processed", 0))


def _former(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The configuration of the checkpoint's run; that in the checkpoint itself has precedence for its model."""
    try:
        saved = yaml.safe_load((path.parent.parent / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        saved = None
    config = dict(saved) if isinstance(saved, dict) else {}
    if isinstance(checkpoint.get(CONFIG_KEY), dict):
        config["model"] = checkpoint[CONFIG_KEY]
    return config


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with arguments beside class names, and lists of objects by the names of their classes."""
    plain: dict[str, Any] = {}
    for name, value in by_name(config).items():
        if name in ("model", "data"):
            value = _with_arguments(value)  # noqa: PLW2901
        if name == "callbacks":
            value = {own: _with_arguments(entry) for own, entry in value.items()}  # noqa: PLW2901
        plain[name] = _by_class(value)
    trainer, model = plain.get("trainer"), plain.get("model")
    if isinstance(trainer, dict):
        trainer["callbacks"] = trainer["callbacks"] or {}
    if isinstance(model, dict) and "optimizer" in model:
        model["optimizer"] = model["optimizer"] or _DEFAULTS["model.optimizer"]
    return plain


def _with_arguments(value: Any) -> Any:
    """Put the arguments of a class beside its name."""
    if not isinstance(value, Mapping):
        return value
    return {"class_path": value.get("class_path"), **(value.get("init_args") or {})}


def _by_class(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _by_class(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        objects = value and all(isinstance(item, Mapping) and "class_path" in item for item in value)
        return _numbered(value) if objects else list(value)
    return value


def _numbered(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in objects:
        name = str(item["class_path"]).rpartition(".")[2]
        same = sum(key.partition("#")[0] == name for key in found)
        found[f"{name}#{same + 1}" if same else name] = _by_class(item.get("init_args") or {})
    return found


def _compare(option: str, old: Any, new: Any) -> list[Change]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if _equal(old, new) else [Change(option, old, new)]
    if "class_path" in old and "class_path" in new and old["class_path"] != new["class_path"]:
        return [Change(f"{option}.class_path", old["class_path"], new["class_path"])]
    shared = [name for name in new if name in old]
    if option in ("callbacks", "trainer.callbacks"):  # other options may exist in only one version of the suite
        shared = list(dict.fromkeys([*old, *new]))
    return [
        c for name in shared for c in _compare(f"{option}.{name}" if option else name, old.get(name), new.get(name))
    ]


def _equal(old: Any, new: Any) -> bool:
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def _is_aside(option: str) -> bool:
    return any(option == name or option.startswith(f"{name}.") for name in _ASIDE)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return str(value.get("class_path") or "present")
    return f"{value:g}" if isinstance(value, float) else str(value)
