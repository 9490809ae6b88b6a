"""Records of what the guard has denied, as rules see them."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.probes.layout import DENIAL, upward
from supervisor.probes.summary import syscall_name
from supervisor.rules.denied import ACCESS, KILL_SHIFT, KIND_OF_USE, UNRESOLVED


@dataclass(frozen=True, slots=True)
class Denial:
    """`uses`: what was tried and denied, bits of enum guarded_use; `rule`: the number of the rule that denies it, from 1.

    0 where a directory was to be moved with what is denied below it, or where it was not found out what lies there.
    """

    syscall: str
    path: str
    uses: int
    rule: int
    is_unresolved: bool

    @property
    def access(self) -> tuple[str, ...]:
        return tuple(word for word, use in ACCESS.items() if self.uses & use)

    @property
    def kind(self) -> str:
        """By the first of its uses; what the call was says it better where it is one about files."""
        return next((kind for use, kind in KIND_OF_USE.items() if self.uses & use), "open")


def read_denial(record: bytes) -> Denial:
    number, verdict, rule, path_size, path = DENIAL.unpack_from(record)
    uses = (verdict | verdict >> KILL_SHIFT) & 0xFF
    return Denial(
        syscall_name(number) if number < 512 else "", upward(path[:path_size]), uses, rule, bool(verdict & UNRESOLVED)
    )
