"""The terminal at which somebody sits, while the program in a run has one of its own."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_USUAL_SIZE = (24, 80)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal that is one of our standard streams; 24 and 80 where none is."""
    for fd in range(3):
        with suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if rows and columns:
                return rows, columns
    return _USUAL_SIZE


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key is passed on as it is typed, Ctrl-C too, and output shown as it comes, until the context is left."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        # It may have gone away meanwhile.
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
