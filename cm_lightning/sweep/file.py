"""Reading a YAML file, with errors and misspelt keys reported by their place and the remedy."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cm_lightning.errors import ConfigError, flat, near, what_yaml_says


def read_mapping(path: Path) -> dict[Any, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        ConfigError: file not found, it is not text or not YAML, a key occurs twice, or it is not a mapping.
    """
    text = _read_text(path)
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        raise ConfigError(f"{path} is not YAML: {what_yaml_says(error)}{_remedy(error, text)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not YAML that can be read: it is nested too deeply") from error
    if content is None:
        raise ConfigError(f"{path} is not a sweep: it is empty: it needs method and parameters")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a sweep: it holds {_kind(content)}: it needs the keys method and parameters")
    return content


def require_choice(key: str, given: object, known: Collection[str]) -> None:
    """Raise ConfigError unless ``given`` is one of the names."""
    if not (isinstance(given, str) and given in known):
        raise ConfigError(f"{key} {given!r} is unknown{_meant(given, known)}; choose {_either(known)}")


def require_keys(where: str, given: Mapping[object, object], known: Collection[str]) -> None:
    """Raise ConfigError for the first key that is not known. ``where`` precedes the key, such as "metric."."""
    for key in given:
        if key not in known:
            raise ConfigError(f"no key {where}{key}{_meant(key, known)}; choose from {', '.join(known)}")


def _meant(given: object, known: Collection[str]) -> str:
    """A hint at a near match; "max" and "MAXIMIZE" also count as near "maximize"."""
    word = str(given).lower()
    begun = [name for name in known if word and name.startswith(word)]
    return near(begun[0] if len(begun) == 1 else word, known)


def _either(names: Collection[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice; YAML would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                problem = f"{key} occurs twice: leave one out"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else id(key))
        return super().construct_mapping(node, deep)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no sweep file at {path}") from error
    except OSError as error:
        raise ConfigError(f"{path} is not a sweep file: {flat(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8") from error


def _remedy(error: Exception, text: str) -> str:
    if r"'\t'" in str(error):
        return ": indent with spaces, not tabs"
    mark = getattr(error, "problem_mark", None)
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    return ': within brackets write "${args}" in quotes' if "${" in line else ""


def _kind(content: object) -> str:
    return "a list" if isinstance(content, list) else "a single value"
