"""Classic BPF for seccomp: an assembler, and the search tree that finds what becomes of a system call's number.

What a filter costs a run is its installation. The kernel translates every instruction to machine code, and then walks
the program once for each system call number of each ABI, to learn which are allowed whatever their arguments
(seccomp_cache_prepare in kernel/seccomp.c, since Linux 5.11). So a program has to be short, and its tree shallow where
the numbers lie that the kernel knows. See Documentation/networking/filter.rst for the instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NUMBER_OFFSET, ARCH_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
"""Where struct seccomp_data has them; an argument takes eight bytes."""

WORD = 0xFFFFFFFF

JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
_LD, _AND, _JA, _RET = 0x20, 0x54, 0x05, 0x06
_REACH = 255
"""How far a conditional jump goes; BPF_JA and falling through know no such bound."""

_INSTRUCTION = struct.Struct("=HBBI")
INSTRUCTION_SIZE = _INSTRUCTION.size

Label = int
"""An instruction, counted from the program's end: jumps only lead forward, so it is known before what jumps to it."""


class Assembler:
    """Builds a program from its last instruction to its first, each one with the labels of what follows it.

    The same instruction with the same successors is emitted once, so equal tails are shared.
    """

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._known: dict[tuple[int, int, Label, Label], Label] = {}

    def program(self, entry: Label) -> bytes:
        """The program as an array of struct sock_filter, from `entry`, which must be the last that was emitted."""
        assert entry == len(self._reversed) - 1
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in reversed(self._reversed))

    def answer(self, value: int) -> Label:
        """Returns the constant."""
        return self._shared(_RET, value)

    def load(self, offset: int, then: Label) -> Label:
        """Loads the 32-bit word of struct seccomp_data."""
        return self._shared(_LD, offset, then)

    def mask(self, mask: int, then: Label) -> Label:
        """Keeps those bits of the word that was loaded."""
        return self._shared(_AND, mask, then)

    def branch(self, test: int, value: int, then: Label, otherwise: Label) -> Label:
        """Compares the word with the constant: `test` is one of JEQ, JGT, JGE, JSET."""
        return then if then == otherwise else self._shared(test, value, then, otherwise)

    def _shared(self, code: int, k: int, then: Label = -1, otherwise: Label = -1) -> Label:
        key = (code, k, then, otherwise)
        if key not in self._known:
            if code == _RET:
                label = self._emit(code, k)
            elif otherwise == -1:
                self._adjacent(then)
                label = self._emit(code, k)
            else:
                otherwise = self._near(otherwise, _REACH - 1)  # one less, for what reaching `then` may put in between
                then = self._near(then, _REACH)
                here = len(self._reversed)
                label = self._emit(code, k, here - then - 1, here - otherwise - 1)
            self._known[key] = label
        return self._known[key]

    def _near(self, target: Label, reach: int) -> Label:
        """`target`, or where a conditional jump cannot reach it an instruction that stands for it."""
        return target if len(self._reversed) - target - 1 <= reach else self._stand_in(target)

    def _adjacent(self, target: Label) -> None:
        if target != len(self._reversed) - 1:
            self._stand_in(target)

    def _stand_in(self, target: Label) -> Label:
        code, _, _, k = self._reversed[target]
        if code != _RET:
            return self._emit(_JA, len(self._reversed) - target - 1)
        self._known[_RET, k, -1, -1] = label = self._emit(_RET, k)
        return label

    def _emit(self, code: int, k: int, jt: int = 0, jf: int = 0) -> Label:
        self._reversed.append((code, jt, jf, k))
        return len(self._reversed) - 1


@dataclass(frozen=True, slots=True)
class Condition:
    """Compares a word of struct seccomp_data, masked: holds when `test` does for one of `values` (not for any: `negated`)."""

    offset: int
    test: int
    values: tuple[int, ...]
    mask: int = WORD
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Code that tests words: `cold` is its start, `warm` where to enter it when (offset, mask) is what was loaded last."""

    cold: Label
    warm: Mapping[tuple[int, int], Label] = field(default_factory=dict)


def decide(assembler: Assembler, conditions: Sequence[Condition], then: Block, otherwise: Block) -> Block:
    """`then` where all of the conditions hold, `otherwise` where one does not; what is loaded already is not loaded again."""
    for condition in reversed(conditions):
        word = (condition.offset, condition.mask)
        hit, miss = (block.warm.get(word, block.cold) for block in (then, otherwise))
        if condition.negated:
            hit, miss = miss, hit
        label = miss
        for value in reversed(condition.values):
            label = assembler.branch(condition.test, value, hit, label)
        warm = {word: label}
        if condition.mask != WORD:
            label = assembler.mask(condition.mask, label)
            warm[condition.offset, WORD] = label
        then = Block(assembler.load(condition.offset, label), warm)
    return then


@dataclass(frozen=True, slots=True)
class Span:
    """The words from `first` on, up to the next span's first, all with the same answer."""

    first: int
    label: Label


def search(assembler: Assembler, spans: Sequence[Span], walked: int) -> Label:
    """Code that goes to the label of the span in which the loaded word lies.

    `spans` ascend from 0. The tree is weighted for words below `walked`, one as likely as another.
    """
    merged = [span for place, span in enumerate(spans) if not place or spans[place - 1].label != span.label]
    groups = _grouped(merged)
    places = [min(group.first, walked) for group in groups] + [walked]

    def tree(low: int, high: int) -> Label:
        """Of groups[low:high], which are halved by the words in them."""
        if high - low == 1:
            label = groups[low].label
            for exception in reversed(groups[low].exceptions):
                label = assembler.branch(JEQ, exception.first, exception.label, label)
            return label
        middle = (places[low] + places[high]) / 2
        split = min(range(low + 1, high), key=lambda place: abs(places[place] - middle))
        upper = tree(split, high)
        return assembler.branch(JGE, groups[split].first, upper, tree(low, split))

    return tree(0, len(groups))


@dataclass(frozen=True, slots=True)
class _Group:
    """Words from `first` on with one label but for single `exceptions`: one instruction each, where splits take two."""

    first: int
    label: Label
    exceptions: tuple[Span, ...]


_MOST_EXCEPTIONS = 3
"""They are compared one after the other: more of them make a shorter program, but a deeper one."""


def _grouped(spans: Sequence[Span]) -> list[_Group]:
    """The spans in the groups that make the shortest tree: one instruction between two groups, one for an exception."""
    count = len(spans)
    firsts = [span.first for span in spans] + [WORD + 1]
    costs = [0] * (count + 1)  # of all spans from this one on
    best: dict[int, tuple[int, _Group]] = {}  # the group that starts with this span, and the span that follows it
    for start in reversed(range(count)):
        for label in dict.fromkeys(span.label for span in spans[start : start + 2]):
            exceptions: tuple[Span, ...] = ()
            for end in range(start, count):
                if spans[end].label != label:
                    exceptions += (spans[end],)
                    if firsts[end + 1] - firsts[end] > 1 or len(exceptions) > _MOST_EXCEPTIONS:
                        break
                cost = 1 + len(exceptions) + costs[end + 1]
                if start not in best or cost < costs[start]:
                    costs[start], best[start] = cost, (end + 1, _Group(firsts[start], label, exceptions))
    groups, place = [], 0
    while place < count:
        place, group = best[place]
        groups.append(group)
    return groups
