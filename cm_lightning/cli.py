"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with its pitfalls removed."""

from __future__ import annotations

import inspect
import json
import re
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings  # type: ignore[attr-defined]
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger

from cm_lightning.adapt import adapt_to_data
from cm_lightning.callbacks.progress import RunProgress
from cm_lightning.callbacks.refused import refuse_unsuitable
from cm_lightning.callbacks.run_directory import RunDirectory, run_directory
from cm_lightning.complaints import complaint, short_lists
from cm_lightning.config_files import ConfigFile
from cm_lightning.device import keep_freed_memory
from cm_lightning.errors import ConfigError
from cm_lightning.failures import error_of_the_suite, reported, take_debug
from cm_lightning.files import replacing
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.named_callbacks import forget_absent, in_order, named_class
from cm_lightning.online import wandb_logger, wandb_run_ends
from cm_lightning.plan import plan_of
from cm_lightning.quiet import silence
from cm_lightning.registry import make_known
from cm_lightning.run import RunNote
from cm_lightning.start import Start, name_checkpoints, trainer_options
from cm_lightning.trainer_options import check_trainer

_SUBCOMMANDS = ("fit", "validate", "test", "predict")


class _Parser(LightningArgumentParser):
    """Reports an error in one line, without a hundred lines of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # this is the parser of a class, one of several that are tried
            super().error(message, ex)
        line = complaint(message, sys.argv[1:], _options(self))
        raise ConfigError(f"{line}. See: {_command(self.prog)} --help") from ex

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """The configuration as text that can be read again, without the user's own callbacks that are left out."""
        if cfg.get("callbacks") is not None:
            forget_absent(cfg := cfg.clone())
        text: str = super().dump(cfg, *args, **kwargs)
        return text

    def format_help(self, *args: Any) -> str:
        """The options; long lists of classes are cut to those of the suite."""
        text = short_lists(super().format_help(*args))
        return re.sub(r"^usage: \S+( \[options\] \w+)?", f"usage: {_command('cm-lightning')}", text)


def _options(parser: ArgumentParser) -> list[str]:
    """All options of the parser and its subcommands."""
    parts = [action.choices or {} for action in parser._actions if isinstance(action, _SubParsersAction)]
    return [
        *parser._option_string_actions,
        *(option for part in parts for sub in part.values() for option in _options(sub)),
    ]


def _command(prog: str) -> str:
    """The name of the command, ``cm-lightning fit``, even if a part of its parser reports the error."""
    asked = next((argument for argument in sys.argv[1:] if argument in _SUBCOMMANDS), None)
    return " ".join([prog.split(maxsplit=1)[0], *([asked] if asked else [])])


#: Options for writing: the configuration is complete, and was checked when it was parsed.
_WHOLE = {"skip_none": False, "skip_validation": True}


def _content(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """A configuration as plain data."""
    content: dict[str, Any] = json.loads(parser.dump(config, format="json", **_WHOLE))
    return content


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration to the run's directory, to W&B under one key, and to the checkpoints.

    :class:`RunDirectory` calls it once there is a directory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    @cached_property
    def _content(self) -> dict[str, Any]:
        return _content(self.parser, self.config)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(pl_module, TrainedModule):
            pl_module.config = self._content["model"]

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        RunNote(str(run_directory(trainer))).leave()
        with replacing(run_directory(trainer) / self.config_filename) as path:
            path.write_text(yaml.safe_dump(self._content, sort_keys=False, allow_unicode=True))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"cli": self._content})


def _under(subcommand: str, config: Namespace) -> Namespace:
    return Namespace(**{subcommand: config, "subcommand": subcommand})  # type: ignore[no-untyped-call]


class _CLI(LightningCLI):
    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make the parser of the requested subcommand alone: a parser above it would check everything a second time."""
        self.asked = next((name for name in sys.argv[1:2] if name in _SUBCOMMANDS), None)
        if self.asked is None:
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            return
        self._subcommand_method_arguments = {}
        description = inspect.cleandoc(getattr(L.Trainer, self.asked).__doc__).partition("\n")[0]
        self.parser = self._prepare_subcommand_parser(L.Trainer, self.asked, description=description, **main_kwargs)
        self._subcommand_parsers = {self.asked: self.parser}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="A YAML file; later ones override earlier ones.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--base", type=str, help="In a file only: the file that it builds on.")
        parser.add_class_arguments(self._named, "callbacks", fail_untyped=False, sub_configs=True)
        parser.add_argument(
            "--wandb",
            type=Literal["off", "online", "offline", "required"],
            default="off",
            help="Also log to Weights & Biases; offline runs are uploaded later with 'wandb sync'. If the server "
            "cannot be reached, online goes offline and required ends the run.",
        )

        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="With fit: print parameters, images, schedule and memory, and exit.",
        )
        parser.add_argument("--memory", type=float | None, help="With --dry_run: GiB of the card to fill.")

    @cached_property
    def _named(self) -> type:
        return named_class(sys.argv[1:])

    def before_instantiate_classes(self) -> None:
        forget_absent(self.config[self.subcommand])
        check_trainer(self.config[self.subcommand].trainer)
        adapt_to_data(self.config[self.subcommand], sys.argv[1:])
        name_checkpoints(self.config[self.subcommand])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if self.asked is None:
            super().parse_arguments(parser, args)
        else:
            self.config = _under(self.asked, parser.parse_args(sys.argv[2:]))

    def instantiate_classes(self) -> None:
        name = str(self.subcommand)
        # on the meta device even the largest network needs hardly any memory
        with torch.device("meta") if self.config[name].dry_run else nullcontext(), _refusals():
            parts = self._parser(name).instantiate_classes(self.config[name])
            self.config_init = _under(name, parts)
            self.model, self.datamodule = parts.model, parts.data
            self.trainer = self.instantiate_trainer()

    def before_fit(self) -> None:
        config = self.config[self.subcommand]
        if not config.dry_run:
            if config.memory is not None:
                raise ConfigError("--memory needs --dry_run: add it, or leave --memory out")
            return
        assert isinstance(self.model, TrainedModule)
        print(plan_of(self.model, self.datamodule, self.trainer, config.memory))
        raise SystemExit(0)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's own method lets the checkpoint overwrite the model of the command line."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[self.subcommand]
        kwargs |= trainer_options(config.trainer)
        loggers = config.trainer.logger
        given = in_order(config)
        refuse_unsuitable(given)
        callbacks = [callback for _, callback in given]
        bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
        if config.trainer.enable_progress_bar is False:
            callbacks = [callback for callback in callbacks if callback not in bars]
        elif not bars:  # else Lightning adds its own
            callbacks.append(RunProgress())
        if config.wandb != "off":
            present = loggers if isinstance(loggers, list) else [loggers] if isinstance(loggers, Logger) else []
            kwargs["logger"] = [*present, wandb_logger(present, config.wandb)]
        self.run = RunDirectory(type(self.model).__name__, fits=self.subcommand == "fit")
        kwargs["callbacks"] = [self.run, *callbacks]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        if self.config[self.subcommand].dry_run:
            return
        self.start = Start(str(self.subcommand), self.trainer, self.run, self.config_init[self.subcommand].ckpt_path)
        for config in (self.config_init, self.config):  # so that the saved configuration names the file
            config[self.subcommand].ckpt_path = self.start.checkpoint
        if self.subcommand == "fit" and self.start.checkpoint:
            self.start.compare(_content(self._parser("fit"), self.config["fit"]))

    def fit(self, **options: Any) -> None:
        self.start.fit(**options)


@contextmanager
def _refusals() -> Iterator[None]:
    """Reduce a constructor's error to one line; jsonargparse would list every type that it has tried."""
    try:
        yield
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        if error_of_the_suite(error) or "class_path" not in str(error):
            raise
        raise ConfigError(complaint(str(error), sys.argv[1:])) from error


def _null(argument: str) -> str:
    """Replace ``--option=None``, as W&B's agent writes null, by ``--option=null``."""
    return f"{argument[: -len('None')]}null" if re.fullmatch(r"--[\w.+]+=None", argument) else argument


def _files_first(arguments: Sequence[str]) -> list[str]:
    """Move files before options, which override them: W&B's agent sorts by name, so callbacks come before config.

    ``--callbacks=null`` is passed as a file, because as an option it would need names.
    """
    files, options, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--config", "-c"):
            files += [argument, *rest[:1]]
            del rest[:1]
        elif argument.startswith(("--config=", "-c=")):
            files.append(argument)
        else:
            options.append(argument)
    if "--callbacks=null" in options:
        files.append("--config={callbacks: null}")
    return [*options[:1], *files, *(option for option in options[1:] if option != "--callbacks=null")]


def main(args: Sequence[str] | None = None) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` with ``args``, by default those of the command line."""
    keep_freed_memory()
    given = take_debug(sys.argv[1:] if args is None else args)
    silence()
    set_parsing_settings(add_print_completion_argument=True)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    arguments = [_null(argument) for argument in given]
    make_known()
    make_known(" ".join(arguments))
    sys.argv[1:] = _files_first(arguments)  # DDP starts its other ranks with this command
    with reported(), wandb_run_ends():
        _CLI(
            TrainedModule,
            L.LightningDataModule,
            save_config_callback=_SaveConfig,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": "cm-lightning"},
            trainer_defaults={"max_epochs": -1},
        )
