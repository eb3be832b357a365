"""Names among which a sweep file chooses: a wrong one is answered with the near match."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cm_lightning.errors import ConfigError, near


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
    """The near match: "max" and "MAXIMIZE" are near "maximize" too."""
    word = str(given).lower()
    begun = [name for name in known if word and name.startswith(word)]
    return near(begun[0] if len(begun) == 1 else word, known)


def _either(names: Collection[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
