"""The text of a policy file: on which line each key stands, and TOML written from tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Key = tuple[str | int, ...]
Lines = Mapping[Key, int]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*\]")
_ENTRY = re.compile(rf"[ \t]*({_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*=")
_STRINGS = re.compile(r"""\"\"\"|\'\'\'|"(?:[^"\\]|\\.)*"|'[^']*'|#.*""")


def find_lines(text: str) -> Lines:
    """Dotted key -> 1-based line, for the tables and keys of a TOML text that parses.

    Approximate by design (it only serves messages): keys of inline tables stand where their table does.
    """
    lines: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not fence:
            header, entry = _HEADER.match(line), _ENTRY.match(line)
            if header:
                table = _parts(header[2])
                if header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                    table = (*table, counts[table])
                _note(lines, (), table, number)
            elif entry:
                _note(lines, table, _parts(entry[1]), number)
        fence = _open_fence(line, fence)
    return lines


def line_of(lines: Lines, key: Key) -> int:
    """The line of `key`, else of the nearest table around it, else 0."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return 0


def dotted(key: Key) -> str:
    """A key as it is written: limits.memory, rules[0].name; the place in a list of scalars is left out."""
    text = ""
    for place, part in enumerate(key):
        if isinstance(part, int):
            text += f"[{part}]" if place + 1 < len(key) else ""
        else:
            text += f".{part[:64]}" if text else part[:64]
    return text


def write_toml(tables: Mapping[str, Any]) -> str:
    """TOML of nested mappings, scalars, sequences of strings and sequences of mappings (as arrays of tables)."""
    lines: list[str] = []
    _write_table(lines, "", tables)
    return "\n".join(lines).lstrip("\n") + "\n"


def _note(lines: dict[Key, int], table: Key, parts: Key, number: int) -> None:
    for length in range(1, len(parts) + 1):
        lines.setdefault((*table, *parts[:length]), number)


def _parts(text: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, text))


def _open_fence(line: str, fence: str) -> str:
    """The multi-line string that is open after `line`, given the one that was open before it."""
    start = 0
    if fence:
        end = line.find(fence)
        if end < 0:
            return fence
        start = end + 3
    while found := _STRINGS.search(line, start):
        start = found.end()
        if found[0] in ('"""', "'''"):
            end = line.find(found[0], start)
            if end < 0:
                return found[0]
            start = end + 3
    return ""


def _write_table(lines: list[str], name: str, table: Mapping[str, Any]) -> None:
    inner = {key: value for key, value in table.items() if _is_table(value)}
    for key, value in table.items():
        if key not in inner:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in inner.items():
        path = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(value, Mapping):
            lines.extend(("", f"[{path}]"))
            _write_table(lines, path, value)
        else:
            for item in value:
                lines.extend(("", f"[[{path}]]"))
                _write_table(lines, path, item)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and all(isinstance(i, Mapping) for i in value))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return _array([_value(item) for item in value])
    return repr(value)


def _array(items: list[str]) -> str:
    """On one line where it fits, else filled lines of at most 120 columns."""
    if len(", ".join(items)) <= 100:
        return f"[{', '.join(items)}]"
    rows: list[str] = []
    row = "   "
    for item in items:
        if len(row) + len(item) + 2 > 120 and row.strip():
            rows.append(row)
            row = "   "
        row += f" {item},"
    rows.append(row)
    return "\n".join(["[", *rows, "]"])
