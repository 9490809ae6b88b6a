"""One policy text: checked on its own against the schema, with the line of every mistake."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from supervisor.errors import InvalidRequest
from supervisor.policy import PolicyProblem, nearest
from supervisor.policy_schema import PolicyFile, UnknownWord, known_keys
from supervisor.policy_text import dotted, find_lines, line_of

MAX_TEXT_BYTES = 256 << 10
_MAX_DOTS = 4096
_MAX_DOTS_IN_LINE = 128
_MAX_PROBLEMS = 100
_MAX_SHOWN = 5

_Table = dict[str, Any]


class BadPolicy(Exception):
    """Carries the problems of one text to whoever asked for it."""

    def __init__(self, origin: str, problems: list[PolicyProblem]) -> None:
        super().__init__(origin)
        self.origin = origin
        self.problems = problems

    def as_request_error(self) -> InvalidRequest:
        shown = [
            f"{self.origin}{f':{problem.line}' if problem.line else ''}: {problem.message}"
            for problem in self.problems[:_MAX_SHOWN]
        ]
        if len(self.problems) > _MAX_SHOWN:
            shown.append(f"and {len(self.problems) - _MAX_SHOWN} more")
        first = self.problems[0]
        return InvalidRequest("; ".join(shown), reason="INVALID_POLICY", field=first.key, metadata={
            "file": self.origin, "line": str(first.line)})  # fmt: skip


class Source:
    """One text, checked on its own: its tables as written, and where each key stands."""

    def __init__(self, text: str | bytes, origin: str) -> None:
        self.origin = origin
        self.text = self._decode(text)
        data = self._parse()
        if not data:
            raise BadPolicy(
                origin, [PolicyProblem(0, "", 'empty: a policy has at least a line such as extends = "strict"')]
            )
        self.lines = find_lines(self.text)
        try:
            self.file = PolicyFile.model_validate(data)
        except ValidationError as error:
            items = error.errors(include_url=False)[:_MAX_PROBLEMS]
            problems = sorted((self._problem_of(item) for item in items), key=lambda problem: problem.line)
            raise BadPolicy(origin, problems) from None

    def problem(self, key: tuple[str | int, ...], message: str) -> PolicyProblem:
        return PolicyProblem(line_of(self.lines, key), dotted(key), message)

    def fail(self, key: tuple[str | int, ...], message: str) -> BadPolicy:
        return BadPolicy(self.origin, [self.problem(key, message)])

    def _decode(self, text: str | bytes) -> str:
        try:
            raw = text.encode() if isinstance(text, str) else text
            if len(raw) > MAX_TEXT_BYTES:
                raise BadPolicy(self.origin, [PolicyProblem(0, "", f"larger than {MAX_TEXT_BYTES} bytes")])
            return raw.decode() if isinstance(text, bytes) else text
        except UnicodeError as error:
            before = error.object[: error.start] if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else b""
            line = (before.count("\n") if isinstance(before, str) else before.count(b"\n")) + 1
            raise BadPolicy(self.origin, [PolicyProblem(line, "", "not UTF-8")]) from None

    def _parse(self) -> _Table:
        # tomllib takes time square in the length of a dotted key (3.11), so bound it first.
        dots = [line.count(".") for line in self.text.split("\n")]
        longest = max(dots)
        if longest > _MAX_DOTS_IN_LINE or sum(dots) > _MAX_DOTS:
            line = dots.index(longest) + 1
            raise BadPolicy(self.origin, [PolicyProblem(line, "", "too many dots: break the line, or write less")])
        try:
            return tomllib.loads(self.text)
        except RecursionError:
            raise BadPolicy(self.origin, [PolicyProblem(0, "", "nested too deep")]) from None
        except ValueError as error:  # tomllib's own, and an int of over 4,300 digits
            found = re.search(r"\(at line ([0-9]+), column ([0-9]+)\)$", str(error))
            line = int(found[1]) if found else self.text.count("\n") + 1
            raise BadPolicy(self.origin, [PolicyProblem(line, "", f"not TOML: {error}"[:200])]) from None

    def _problem_of(self, item: Mapping[str, Any]) -> PolicyProblem:
        key: tuple[str | int, ...] = tuple(item["loc"])
        kind = item["type"]
        if kind == "extra_forbidden":
            name, table = str(key[-1]), dotted(key[:-1])
            where = f" in [{table}]" if table else ""
            return self.problem(key, f"unknown key '{name[:64]}'{where}{nearest(name, known_keys(key[:-1]))}")
        error = item["ctx"]["error"] if kind == "value_error" else _lower_first(str(item["msg"]))
        message = f"{error}{error.hint() if isinstance(error, UnknownWord) else ''}"
        return self.problem(key, f"{dotted(key)}: {message}"[:400])


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
