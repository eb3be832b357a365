"""Configuration files that build on other files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from cm_lightning.errors import ConfigError, what_yaml_says
from cm_lightning.registry import make_known


class ConfigFile(ActionConfigFile):
    """Reads a configuration file, which may name another under ``base``, relative to itself, and override parts of it.

    jsonargparse's own ``config`` key inside a file does not merge the arguments of nested classes.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for path in lineage(Path(values)):
            with suppress(OSError):  # the parser reports what is wrong with it
                make_known(path.read_text())
            super().__call__(parser, cfg, str(path), option_string)  # type: ignore[no-untyped-call]
        cfg["base"] = None  # the saved configuration of a run is complete


def lineage(path: Path, heirs: tuple[Path, ...] = ()) -> list[Path]:
    """The files that a file builds on, followed by the file itself."""
    if path.resolve() in heirs:
        raise ConfigError(f"{path} builds on itself: correct the base that it names")
    try:
        content = yaml.safe_load(path.read_text())
    except OSError:
        return [path]  # the parser reports what is wrong with it
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: it is not text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {what_yaml_says(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a configuration: expected trainer, model and data")
    base = content.get("base")
    return [*lineage(path.parent / base, (*heirs, path.resolve())), path] if base else [path]
