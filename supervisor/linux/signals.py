"""Signals by their names (signal(7))."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """SIGTERM for 15; "signal N" for one without a name of its own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
