"""One line for an error of the command line's parser: the option as it was given, the reason, and the remedy."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from cm_lightning.errors import ConfigError, flat, near
from cm_lightning.registry import HOMES, SLOW, find

#: Keys of YAML between the names of options.
_BETWEEN = ("init_args", "class_path", "dict_kwargs")
#: Packages in which short names of classes are looked up after those of the suite.
_HOMES = ("torch.optim", "torch.optim.lr_scheduler", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}

Path_ = tuple[str, ...]


def complaint(message: str, arguments: Sequence[str], options: Iterable[str] = ()) -> str:
    """The line for the user.

    Args:
        message: jsonargparse's message, with many lines on every type that was tried.
        arguments: arguments of the command line.
        options: the options of the parser itself, such as ``--trainer.max_steps``.
    """
    if match := re.search(r"unrecognized arguments: (\S+)|(?:Group '(\S+)' )?does not accept option '(\S+)'", message):
        return _no_such_option(".".join(filter(None, match.groups())), arguments, options)
    if match := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", message):
        known = re.findall(r"[\w-]+", match[2])
        return f"no command {match[1]!r}{near(match[1], known)}"
    path, owner, reason = _innermost(message)
    if match := re.match(r"Option '([^']+)' is not accepted", reason):
        of = f" of {owner.rpartition('.')[2]}" if owner else ""
        return f"no option {_place((*path, match[1]), arguments)}{of}{near(match[1], _parameters(owner))}"
    if match := re.match(r"(?:the following arguments are required: |Key \")([^\"]+)", reason):
        names = " and ".join(_place((*path, *_parts(name.strip())), arguments) for name in match[1].split(","))
        return f"{names.replace('--fit.', '--')} must be given, for example by --config experiments/mnist/ct.yaml"
    if match := re.search(r"(?:does not exist|not a file): '([^']+)'", reason):
        return f"--{'.'.join(path)}: file not found: {match[1]}"
    place = _place(path, arguments) if path else owner.rpartition(".")[2]
    return f"{place}{_what_is_wrong(path, reason)}".removeprefix(": ")


def _no_such_option(argument: str, arguments: Sequence[str], options: Iterable[str]) -> str:
    known = list(options)
    option = "--" + argument.lstrip("-").partition("=")[0].removesuffix("+")
    hint = near(option, known) or near(option.partition(".")[0], known)
    if argument.startswith("-"):
        return f"no option {option}{hint}"
    found = _place(_parts(argument), arguments)
    return f"no option {found}{hint}" if " in " in found else f"unexpected argument {argument}"


def short_lists(text: str) -> str:
    """Shorten long lists of known classes in a help text: those of the suite come first, and the others are counted."""
    return re.sub(r"(known subclasses:\s+)([^)]*)", lambda match: f"{match[1]}{_shortened(match[2])}", text)


def _shortened(listed: str) -> str:
    names = [name.strip() for name in listed.split(",")]
    ours = [name.rpartition(".")[2] for name in names if name.startswith("cm_lightning")]
    if "cm_lightning.UNet" in names:  # the option takes any network
        ours = sorted(_backbones())
    others = [name for name in names if not name.startswith("cm_lightning")]
    return ", ".join([*ours, *([f"and {len(others)} of other packages"] if len(others) > 20 else others)])


def _innermost(message: str) -> tuple[Path_, str, str]:
    """The full name of the option, the class it belongs to, and what is wrong with it.

    The message is a tree by indentation. If several types were tried, the first class is followed, down to the option
    that it complains about.
    """
    path: Path_ = ()
    owner, text = "", message.strip()
    while True:
        if key := re.match(r"(?:Parser key|[Pp]roblem with key) \"([^\"]+)\":?\s*", text):
            path, text = (*path, *_parts(key[1])), text[key.end() :]
        elif whole := re.match(r"Unable to load config .*?(?=Parser key)", text, re.S):  # it gives the full name
            path, text = (), text[whole.end() :]
        elif given := re.search(r"^( *)(?:- )?Problem with given class_path '([^']+)':\n", text, re.M):
            owner, text = given[2], _block(text[given.end() :], len(given[1]))
        elif call := re.search(r"expects a function or a callable class: (?=Parser key|Option)", text):
            text = text[call.end() :]
            made = re.search(r"Got value: Namespace\(class_path='([^']+)'", text)
            owner = made[1] if made else owner
        else:
            return path, owner, text.strip()


def _block(text: str, indent: int) -> str:
    """The first lines that are indented deeper."""
    lines = []
    for line in text.splitlines():
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        lines.append(line)
    return "\n".join(lines).strip()


def _what_is_wrong(path: Path_, reason: str) -> str:
    """The text after the name of the option."""
    expected = list(dict.fromkeys(_expectations(reason)))
    value = re.search(r"(?:Given value:|Got value:) ?([^\n]*)", reason)
    if missing := re.findall(r"pip install (?:-U )?['\"`]*([a-zA-Z][\w-]*(?:\[\w+\])?)", reason):
        package = f"'{missing[-1]}'" if "[" in missing[-1] else missing[-1]  # a shell takes brackets for a pattern
        return f" needs a package: pip install {package}"
    if said := _about_a_class(path, reason) or flat(_refusal(reason)):
        return f": {said}"
    if value and expected:
        return f" must be {' or '.join(expected)}, got {flat(value[1].partition('. Got value')[0])}"
    return f": {flat(reason)}"


def _about_a_class(path: Path_, reason: str) -> str:
    """The text about a class that is not found or not named; "" if a number or text is also allowed."""
    if match := re.search(r"but (\S+) is abstract", reason):
        return f"name its class first, one of {', '.join(sorted(_choices(path, match[1])))}"
    match = re.search(r"Expected a dot import path string: ([^\n]*)", reason)
    if not match or re.search(r"Expected a <class '(int|float|str)'>", reason):
        return ""
    name = match[1].strip()
    if extra := _missing_extra(name):
        return extra
    bases = re.findall(r"[a-z]\w*(?:\.\w+)*\.[A-Z]\w*", reason.partition("Given value")[0])
    known = sorted(set().union(*(_choices(path, base) for base in ["", *bases])))
    choice = f"; choose one of {_listed(known)}" if len(known) > 1 else "".join(f"; give {name}" for name in known)
    return f"no class {name!r}{near(name, [*known, *SLOW])}{choice}"


def _missing_extra(name: str) -> str:
    """How to install what a public name needs; "" if nothing is missing, or the name is unknown."""
    try:
        find(name)
    except AttributeError:
        return ""
    except ConfigError as error:
        return str(error)
    return ""


def _refusal(reason: str) -> str:
    """The error of a tried type that says more than that it expects something else; "" if there is none."""
    entries = re.split(r"^ *- ", reason.partition("Errors:")[2].partition("Given value")[0], flags=re.M)
    return next((entry for entry in entries if entry.strip() and not entry.startswith(("Expected", "Not a "))), "")


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _expectations(reason: str) -> Iterator[str]:
    """The values that each tried type would have accepted, in words."""
    literals = re.findall(r"Expected an? typing\.Literal\[([^\]]*)\]", reason)
    if literals:
        yield "one of " + ", ".join(part.strip().strip("'") for part in ", ".join(literals).split(","))
    for name in re.findall(r"Expected an? <class '([\w.]+)'>", reason):
        if name in _WORDS and not (literals and name == "int"):
            yield _WORDS[name]


def _choices(path: Path_, base: str) -> set[str]:
    """The classes that may be named: those of the suite of that type, else those of torch and Lightning."""
    if path[-1:] == ("backbone",):
        return _backbones()
    cls = _class(base)
    found = {c for c in _subclasses(cls) if not _is_abstract(c)} if cls else set()
    ours = {c.__name__ for c in found if c.__module__.startswith("cm_lightning.") and not c.__name__.startswith("_")}
    return ours or {c.__name__ for c in found if any(getattr(sys.modules.get(h), c.__name__, 0) is c for h in _HOMES)}


def _backbones() -> set[str]:
    homes = {name: home for name, home in HOMES.items() if home.startswith("cm_lightning.backbones.")}
    networks = {name for name, home in homes.items() if not home.endswith(".embedding")}
    return networks - {"Backbone", "UnitFourier"}


def _is_abstract(cls: type) -> bool:
    """Whether a class is abstract, even if its metaclass does not check that."""
    return any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls))


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _subclasses(child)


def _parameters(owner: str) -> set[str]:
    """The names of a constructor's arguments, and of those that it passes on to its bases."""
    cls = _class(owner)
    makers = [c.__init__ for c in cls.__mro__ if c is not object and "__init__" in vars(c)] if cls else []  # type: ignore[misc]
    names = {name for maker in makers for name in inspect.signature(maker).parameters}
    return names - {"self", "args", "kwargs", "options"}


def _class(name: str) -> type | None:
    """The class of a full or short name."""
    package, _, attribute = name.rpartition(".")
    loaded = [module for module in list(sys.modules) if module.startswith("cm_lightning.")]
    for home in [package] if package else [*loaded, *_HOMES]:
        try:
            found = getattr(import_module(home), attribute, None)
        except Exception:  # a module of that name may raise anything
            continue
        if isinstance(found, type):
            return found
    return None


def _parts(key: str) -> Path_:
    return tuple(part for part in key.split(".") if part not in _BETWEEN)


def _place(path: Path_, arguments: Sequence[str]) -> str:
    """The option as the user would write it, and the file that sets it unless the command line does."""
    option, place = f"--{'.'.join(path)}", ""
    for given, file in given_options(arguments):
        if given == path:
            place = f" in {file}" if file else ""
    return option + place


def given_options(arguments: Sequence[str]) -> Iterator[tuple[Path_, Path | None]]:
    """The options that files and the command line set, in order, with the file: ``("model", "backbone")``."""
    for path, _, file in given_values(arguments):
        yield path, file


def given_values(arguments: Sequence[str]) -> Iterator[tuple[Path_, Any, Path | None]]:
    """The options of :func:`given_options` with their values; the name of a class is the value of its option."""
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("-"):
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if option in ("--config", "-c"):
            yield from _in_file(Path(value))
        for path, inner in _values(_loaded(value), _parts(option.lstrip("-").removesuffix("+"))):
            yield path, inner, None


def _in_file(path: Path, heirs: tuple[Path, ...] = ()) -> Iterator[tuple[Path_, Any, Path | None]]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(content, dict):
        return
    base, heirs = content.get("base"), (*heirs, path.resolve())
    if isinstance(base, str) and (path.parent / base).resolve() not in heirs:
        yield from _in_file(path.parent / base, heirs)
    for keys, value in _values(content):
        yield keys, value, path


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _values(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    yield path, value
    for item in value if isinstance(value, list) else ():
        yield from _values(item, path)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from _values(inner, (*path, *_parts(str(key))))
