"""Why a trial failed, from logs as programs and launchers leave them."""

from __future__ import annotations

import pytest

from cm_lightning.sweep.progress import failure_in

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    raise ValueError("no such lr")
ValueError: no such lr
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there was no output"),
        ("\n \n", "there was no output"),
        ("one\ntwo\n", "two"),
        ("step 1\nerror: lr must be above 0\nwandb: run finished\nwandb: bye\n", "error: lr must be above 0"),
        ("\x1b[31merror: \x1b[1mred\x1b[0m text\x1b[0m\n", "error: red text"),
        ("\x1b]0;a title\x07\x1b[2Kdone\n", "done"),
        ("10%\r20%\r100%\n", "100%"),
        ("10%\r20%\r", "20%"),
        ("10%\rerror: broken\r\nbye\r\n", "error: broken"),
        ("a\r\nb\r\n", "b"),
        (f"step 1\n{TRACEBACK}wandb: bye\n", "ValueError: no such lr"),
        (f"{TRACEBACK}\nDuring handling of\n\n{TRACEBACK.replace('lr', 'x')}", "ValueError: no such x"),
        (TRACEBACK.replace("\n", "\n[rank0]: ").replace("Trace", "[rank0]: Trace"), "ValueError: no such lr"),
        (f"{TRACEBACK}error: said better\nlast\n", "error: said better"),
        ("usage: t.py [-h]\nt.py: error: no arguments: --x=1\n", "t.py: error: no arguments: --x=1"),
        ("error: the cause\nrank 1: error: another rank failed: see its line\n", "error: the cause"),
        ("error: another rank failed: see its line\nrank 1: error: the cause\n", "rank 1: error: the cause"),
        ("rank 1: error: the cause\n", "rank 1: error: the cause"),
        ("error: first\nretry\nerror: last\n", "error: last"),
        ("no_error: here\nlast\n", "last"),
        ("x" * 2000, "x" * 500),
    ],
    ids=range(21),
)  # fmt: skip
def test_the_line_that_says_why(text, expected, tmp_path):
    (tmp_path / "log").write_bytes(text.encode())
    assert failure_in(tmp_path / "log") == expected


def test_what_is_not_text_does_not_hide_the_error(tmp_path):
    (tmp_path / "log").write_bytes(b"\xff\xfe\x00\nerror: found\n\xff\n")
    assert failure_in(tmp_path / "log") == "error: found"
