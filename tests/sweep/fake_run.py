"""A replacement for a run in tests of sweeps: writes its note, logs a metric, and behaves as its options say."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def put(path, text):
    """Write a file that another process never sees half of."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


options = dict(argument.removeprefix("--").split("=") for argument in sys.argv[1:])
if options["x"] == "9":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
directory = Path(f"runs/fake/{options['x']}")
directory.mkdir(parents=True, exist_ok=True)
put(directory / "process", str(os.getpid()))
note = Path(os.environ["CM_LIGHTNING_RUN_FILE"])
put(note, json.dumps({"directory": str(directory), "finished": False}))
with open(directory / "metrics.csv", "w", buffering=1) as log:  # by lines, as a run's own log
    log.write("step,val/loss\n")
    for step in range(int(options.get("steps", 3))):
        log.write(f"{step},{(float(options['x']) - 2) ** 2 + 1 / (step + 1)}\n")
        time.sleep(float(options.get("sleep", 0)))
    while options["x"] == "4" and "hold" in options and not Path(options["hold"]).exists():
        time.sleep(0.05)
if options["x"] == "7":
    sys.exit("seven does not work")
if options["x"] != "8":  # eight ends as a run does that was asked to stop: with status 0, and not finished
    put(note, json.dumps({"directory": str(directory), "finished": True}))
