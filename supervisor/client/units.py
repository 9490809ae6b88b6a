"""Sizes, durations and limits as people write them: "256M", "500ms", 64, 0.5."""

from __future__ import annotations

import math
import re
from datetime import datetime

from supervisor import errors

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?", re.IGNORECASE)
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZES = ("memory", "file_size", "disk", "output")
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_AGO_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_UNIX = re.compile(r"\d{9,10}(?:\.\d*)?")
_DURATIONS = ("wall_seconds", "cpu_seconds")
_FRACTIONS = (*_DURATIONS, "cpus")
_INT64_MAX = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Bytes of "256M", "1.5G", "64KiB" or "4096"; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write bytes, or a number with K, M, G or T, such as 256M")
    number, unit, _ = match.groups()
    scale = 1 << _SHIFT[unit.lower()]
    return round(float(number) * scale) if "." in number else int(number) * scale


def parse_duration(text: str) -> float | int:
    """Seconds of "5", "5s", "500ms", "2m" or "1h". Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is not None:
        return float(match[1]) * _SECONDS[match[2]]
    try:
        return _number(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no duration; write seconds, or a number with ms, s, m or h, such as 500ms or 2m"
        ) from None


def parse_moment(text: str, now: float) -> float:
    """Unix seconds of "2h" (ago: s, m, h, d, w), of a date or time such as 2026-11-24T13:30, local where it names no
    other, or of Unix seconds in digits. Raises ValueError.
    """
    text = text.strip()
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0.0, now - float(ago[1]) * _AGO_SECONDS[ago[2]])
    if _UNIX.fullmatch(text):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time; write how long ago, such as 2h or 3d, a date and time such as 2026-11-24 or "
            "2026-11-24T13:30:00Z, or Unix seconds"
        ) from None


def limit_value(key: str, value: object) -> float | int:
    """`value` of the limit `key` as the wire takes it: bytes, a count, or seconds and CPUs with a fraction.

    Raises InvalidRequest with the field limits.<key> for what is no number, has a fraction where none can be, or does
    not fit 64 bits. Zero and negative values are the daemon's to refuse.
    """
    field = f"limits.{key}"
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{value!r} is no number")
        if key in _SIZES and isinstance(value, str) and not value.strip().startswith("-"):
            return _whole(parse_size(value))
        if key in _DURATIONS and isinstance(value, str):
            value = parse_duration(value)
        number = _number(value) if isinstance(value, str) else value
        if not math.isfinite(number):
            raise ValueError(f"{value} is not finite; leave the limit out for what the policy says")
        return float(number) if key in _FRACTIONS else _whole(number)
    except (ValueError, OverflowError) as error:
        raise errors.InvalidRequest(f"{field}: {error}", field=field) from error


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _whole(number: float | int) -> int:
    if number != int(number):
        raise ValueError(f"{number} is not a whole number")
    if abs(int(number)) > _INT64_MAX:
        raise ValueError(f"{number} does not fit 64 bits")
    return int(number)
