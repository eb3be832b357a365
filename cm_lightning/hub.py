"""The model hub: one request finds out whether it answers; its own libraries try six times and wait for 23 s.

If the hub does not answer, a cached model is read from the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import torch
from huggingface_hub import constants, get_session

from cm_lightning.quiet import quiet

#: How long to wait for the hub's first answer; the hub's own variable changes it on a slow network.
SECONDS = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 2)


@contextmanager
def loading() -> Iterator[None]:
    """Suppress what transformers and diffusers report while they load a model within the block.

    torch lists the functions that take a default device at the first use of one, and keeps the list. transformers
    replaces ``torch.linspace`` while it loads a model. If that were the first use, the function itself would not take a
    default device for the rest of the process, and ``--dry_run`` would mix devices. So the list is made before.
    """
    with torch.device("meta"):
        torch.empty(0)
    with quiet():
        yield


def on_hub(path: str) -> bool:
    """Whether a path is a name on the hub, OWNER/MODEL: neither a local file, nor missing from a local folder."""
    return path.count("/") == 1 and not path.startswith((".", "/")) and not Path(path).parent.is_dir()


def file_on_hub(path: str) -> tuple[str, str] | None:
    """Split OWNER/MODEL/FILE, a file of weights on the hub, into model and file; None for any other path."""
    parts = path.split("/", 2)
    is_local = path.startswith((".", "/", "~")) or Path(parts[0]).is_dir() or Path(path).exists()
    if len(parts) < 3 or is_local or Path(path).suffix not in (".safetensors", ".bin"):
        return None
    return "/".join(parts[:2]), parts[2]


def out_of_reach(path: str) -> bool:
    """Whether a path is a name on a hub that must not be used or does not answer, so only the cache can have it."""
    return on_hub(path) and not reachable()


def reachable() -> bool:
    """Whether the hub at HF_ENDPOINT answers, through the proxies that are set; False if HF_HUB_OFFLINE is set.

    This makes one request, in a thread, because the lookup of an address does not have a time limit.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    asking = Thread(target=lambda: answers.append(_answers()), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answers == [True]


def silence(option: str, path: str) -> str:
    """The line for a name that is neither in the cache nor available from the hub."""
    if constants.HF_HUB_OFFLINE:
        why, remedy = "the hub is not used, because HF_HUB_OFFLINE is set", "unset it"
    else:
        why = f"the hub cannot be reached: no answer from {constants.ENDPOINT} in {SECONDS:g} s (HF_HUB_ETAG_TIMEOUT)"
        remedy = "fetch it once where there is a network"
    return f"{option} {path} is not, or not completely, in the cache, and {why}. Give a folder or file, or {remedy}"


def _answers() -> bool:
    try:
        return bool(get_session().head(constants.ENDPOINT, timeout=SECONDS).status_code < 500)
    except Exception:  # errors of the network, a proxy, a certificate or an address: none of them is an answer
        return False
