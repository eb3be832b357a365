"""The one place where an error becomes a line for the user and an exit status."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cm_lightning.errors import CmError, advice, flat

#: ``--debug`` among the arguments, or this environment variable, shows tracebacks.
DEBUG = "CM_LIGHTNING_DEBUG"
FAILED, INTERRUPTED = 2, 130

#: Messages of Lightning and torch that lack the option or the remedy.
_SAID_BETTER = (
    (r"No supported gpu backend found", "--trainer.accelerator gpu: there is no GPU here: give cpu, or auto"),
    (r"No API key configured", "--wandb online: there is no API key: run 'wandb login', or give --wandb offline"),
    (r"(`devices` selected with .*)", r"--trainer.devices: \1"),
    (
        r"DataLoader worker \(pid",
        "a process of the data loader died, which the system may have killed because memory is full: lower "
        "--data.num_workers (0 loads in the training process), or give the container more shared memory (/dev/shm)",
    ),
    (r"(?:DistBackendError|DistNetworkError|[Cc]onnection closed by peer)", "another rank failed: see its line"),
)

#: What helps if the disk is the reason.
_OF_DISCS = {
    errno.ENOSPC: "free space there, or write to another disk (for fit: save_dir of trainer.logger)",
    errno.EDQUOT: "free space there, or write to another disk (for fit: save_dir of trainer.logger)",
    errno.EROFS: "write to another folder (for fit: save_dir of trainer.logger)",
}


@contextmanager
def reported() -> Iterator[None]:
    """End the program with one line, ``error: ...``, and exit status 2 when an exception is raised.

    The traceback of an unexpected failure is kept in a file that the line names.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        line, expected = _line(error)
        if not expected and not os.environ.get(DEBUG):
            line += f" (traceback: {_keep_traceback()})"
        sys.stdout.flush()
        sys.stderr.write(f"{_rank()}error: {line}\n")
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"{_rank()}interrupted\n")
        raise SystemExit(INTERRUPTED) from None


def take_debug(arguments: Sequence[str]) -> list[str]:
    """Remove ``--debug`` from the arguments and put it into the environment, where other ranks find it."""
    if "--debug" in arguments:
        os.environ[DEBUG] = "1"
    return [argument for argument in arguments if argument != "--debug"]


def describe(error: BaseException) -> str:
    """Describe an error in one line."""
    return _line(error)[0]


def _line(error: BaseException) -> tuple[str, bool]:
    """The line, and whether the message alone explains an error of this kind."""
    for explain in (_of_the_suite, _of_an_extra, _of_memory, _of_a_file, _said_better, _of_the_libraries):
        if line := explain(error):
            return line, True
    text = _last_line(str(error)) if "Traceback (most recent call last)" in str(error) else flat(str(error))[:500]
    return f"{type(error).__name__}: {text}", False


def _of_the_suite(error: BaseException) -> str | None:
    """The message of an error of the suite, which may come from a worker process as text."""
    ours = error_of_the_suite(error)
    name = f"{type(ours).__module__}.{type(ours).__name__}: "
    return _last_line(str(ours)).removeprefix(name) if ours else None


def error_of_the_suite(error: BaseException | None) -> CmError | None:
    """The error of the suite, even if other errors wrap it."""
    while error is not None and not isinstance(error, CmError):
        error = error.__cause__ or error.__context__
    return error


def _of_an_extra(error: BaseException) -> str | None:
    return advice(error) if isinstance(error, ModuleNotFoundError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the accelerator or not."""
    text = str(error).lower()
    full = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and full)


def _of_memory(error: BaseException) -> str | None:
    if not is_out_of_memory(error):
        return None
    return (
        "out of memory: lower --data.batch_size and raise --trainer.accumulate_grad_batches as much (elsewhere "
        "--batch_size); fit --dry_run prints what a recipe needs"
    )


def _of_a_file(error: BaseException) -> str | None:
    if not (isinstance(error, OSError) and error.strerror):
        return None
    reason, remedy = f"{error.strerror[0].lower()}{error.strerror[1:]}", _OF_DISCS.get(error.errno or 0)
    if error.filename is None:
        return f"{reason}: {remedy}" if remedy else None
    return ": ".join([str(error.filename), reason, *([remedy] if remedy else [])])


def _said_better(error: BaseException) -> str | None:
    found = ((re.search(pattern, str(error)), line) for pattern, line in _SAID_BETTER)
    return next((match.expand(line) for match, line in found if match), None)


def _of_the_libraries(error: BaseException) -> str | None:
    """The message of an error that Lightning, the parser or W&B raised for the user."""
    refusal = _is(error, "MisconfigurationException", "UsageError") or _raised_in(error, "lightning", "jsonargparse")
    return flat(str(error)) if refusal else None


def _raised_in(error: BaseException, *packages: str) -> bool:
    """Whether one of these packages raised the error, with a message for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(f"site-packages/{package}/" in frames[-1].filename for package in packages)


def _is(error: BaseException, *names: str) -> bool:
    """Whether the error is of a class of that name, without importing its package."""
    return any(cls.__name__ in names for cls in type(error).__mro__)


def _last_line(text: str) -> str:
    """The last line of a message: an error from another process follows the traceback of that process."""
    return (text.strip().splitlines() or ["the message is empty"])[-1].strip()


def _keep_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="cm-lightning-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
    except OSError:  # no folder for temporary files, or a full one
        return "--debug shows it"
    return file.name


def _rank() -> str:
    """The rank of this process, as a prefix of its line; "" for the first."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return "" if rank == "0" else f"rank {rank}: "
