"""``cm-lightning COMMAND ...``, which does quick work before it imports anything slow."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

from cm_lightning import __version__
from cm_lightning.errors import near
from cm_lightning.failures import FAILED, reported, take_debug
from cm_lightning.quiet import silence

_TRAINER = ("fit", "validate", "test", "predict")
_COMMANDS = {
    "sample": "draw images from a checkpoint",
    "edit": "inpaint, enlarge, colour, denoise and interpolate images",
    "serve": "draw in the browser while a slider or the pen moves",
    "stream": "redraw the frames of a folder or an animation",
    "search": "search for the best noise levels of a few steps for a checkpoint",
    "evaluate": "measure text-to-image models over numbers of steps and guidance scales",
    "compare": "compare runs by tables, curves and samples",
    "sweep": "run a W&B sweep file on this machine, without an account",
    "export": "write weights for diffusers, ONNX Runtime, a web page, or as safetensors",
    "self-consistency": "check numerically that the consistency function is well defined",
    "train-classifier": "train a classifier of digits or clothes, which measures samples",
}

_HELP = f"""usage: cm-lightning COMMAND [OPTIONS]

Consistency models on PyTorch Lightning.

  {"fit":<16} train: --config experiments/mnist/ct.yaml
  {"validate":<16} measure on the validation split: --config FILE --ckpt_path FILE
  {"test":<16} measure on the test split
  {"predict":<16} return samples to Python code that uses the Trainer; use sample to write images
""" + "\n".join(f"  {name:<16} {what}" for name, what in _COMMANDS.items()) + """

cm-lightning COMMAND --help lists the options of a command, --version prints the version. With --debug an error shows
its traceback.
"""  # fmt: skip


def main() -> None:
    """The console script ``cm-lightning``."""
    gc.set_threshold(50_000, 20, 50)  # imports make a million objects that stay: looking for garbage is slow
    sys.argv[1:] = take_debug(sys.argv[1:])
    silence()
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-V", "--version"):
        print(f"cm-lightning {__version__}")
    elif command in ("-h", "--help"):
        print(_HELP, end="")
    elif command in _COMMANDS:
        with reported():
            import_module(f"cm_lightning.commands.{command.replace('-', '_')}").main(rest)
    elif command in _TRAINER or command.startswith("-"):
        with reported():
            from cm_lightning.light import light_lightning

            light_lightning()
            from cm_lightning.cli import main as run_trainer

            run_trainer()
    else:
        names = [*_TRAINER, *_COMMANDS]
        sys.stderr.write(f"error: no command {command!r}{near(command, names)}; choose one of {', '.join(names)}\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
