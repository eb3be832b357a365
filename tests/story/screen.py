"""What a terminal shows: enough of one for lines that are drawn again in their place."""

import re


def screen(text):
    """The lines at the end, and the length of the longest that was drawn in the place of another."""
    lines, row, column, longest, redrawn = [""], 0, 0, 0, False
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\r":
            column, redrawn = 0, True
        elif part == "\n":
            redrawn = False
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row = max(0, row - int(part[2:-1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = f"{lines[row][:column]:<{column}}{part}{lines[row][column + len(part) :]}"
            column += len(part)
            longest = max(longest, column if redrawn else 0)
    return [line.rstrip() for line in lines if line.strip()], longest
