"""The kernel's copies of what sets of rules look for: made for the first run of a policy, shared by all its runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from supervisor.errors import Exhausted
from supervisor.linux.seccomp import syscall_number
from supervisor.probes.guard import Guard
from supervisor.probes.layout import CALL_KEY, NAME_KEY, SYSCALL_SLOTS
from supervisor.probes.libbpf import BpfMap
from supervisor.rules.needs import Needs

_KEPT = 64
"""Sets without a run that are kept for the next one: inline policies come and go."""
_SETS_MAX = 4096


class Names:
    """Not thread-safe: the probes' lock is held around it."""

    def __init__(self, names: BpfMap, calls: BpfMap) -> None:
        self.guard: Guard | None = None
        """Set before the first set is made."""
        self._names = names
        self._calls = calls
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._needs: dict[int, Needs] = {}
        self._users: dict[int, int] = {}
        self._next = 1

    def take(self, needs: Needs) -> int:
        """The number of the set, for struct run_entry. Raises BpfError, Exhausted."""
        number = self._numbers.get(needs.digest)
        if number is None:
            number = self._make(needs)
        self._numbers.move_to_end(needs.digest)
        self._users[number] = self._users.get(number, 0) + 1
        return number

    def give_back(self, number: int) -> None:
        if number:
            self._users[number] -= 1

    def _make(self, needs: Needs) -> int:
        self._forget_unused()
        if len(self._needs) >= _SETS_MAX:
            raise Exhausted("too many different sets of rules at a time", retry_seconds=1.0)
        number, self._next = self._next, self._next + 1
        try:
            for key, value in self._name_keys(number, needs):
                self._names.update(key, value)
            for key in self._call_keys(number, needs):
                self._calls.update(key, (1).to_bytes(4, "little"))
            if self.guard is not None:
                for key, value in self.guard.entries(number, needs.denied):
                    self.guard.denied.update(key, value)
        except OSError:
            self._remove(number, needs)
            raise
        self._numbers[needs.digest] = number
        self._needs[number] = needs
        self._users[number] = 0
        return number

    def _forget_unused(self) -> None:
        """The ones used longest ago first."""
        for digest, number in tuple(self._numbers.items()):
            if len(self._numbers) < _KEPT:
                return
            if not self._users[number]:
                self._remove(number, self._needs.pop(number))
                del self._numbers[digest], self._users[number]

    def _remove(self, number: int, needs: Needs) -> None:
        for key, _ in self._name_keys(number, needs):
            self._names.delete(key)
        for key in self._call_keys(number, needs):
            self._calls.delete(key)
        if self.guard is not None:
            for key, _ in self.guard.entries(number, needs.denied):
                self.guard.denied.delete(key)

    @staticmethod
    def _name_keys(number: int, needs: Needs) -> Iterator[tuple[bytes, bytes]]:
        for name, value in needs.names:
            yield NAME_KEY.pack(number, name), value.to_bytes(4, "little")

    @staticmethod
    def _call_keys(number: int, needs: Needs) -> Iterator[bytes]:
        for name in needs.calls:
            nr = syscall_number(name)
            if nr is not None and nr < SYSCALL_SLOTS:
                yield CALL_KEY.pack(number, nr)
