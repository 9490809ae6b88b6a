"""What layout.py says of the kernel's records is what the compiled object says, by its type information."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.probes import layout
from supervisor.probes.libbpf import BpfObject, _lib
from supervisor.probes.load import GUARD_OBJECT, OBJECT

INT, ARRAY, STRUCT, TYPEDEF = 1, 3, 4, 8


class Types:
    """The object's BTF: Documentation/bpf/btf.rst."""

    def __init__(self, path: Path) -> None:
        self._object = BpfObject.open(path)
        self._so = _lib().so
        self._btf = self._so.bpf_object__btf(self._object._object)

    def close(self) -> None:
        self._object.close()

    def _words(self, number: int) -> ctypes.Array[ctypes.c_uint32]:
        return ctypes.cast(self._so.btf__type_by_id(self._btf, number), ctypes.POINTER(ctypes.c_uint32))  # type: ignore[return-value]

    def size(self, number: int) -> int:
        words = self._words(number)
        kind = words[1] >> 24 & 0x1F
        if kind == TYPEDEF:
            return self.size(words[2])
        if kind == ARRAY:
            return words[5] * self.size(words[3])
        return words[2]

    def members(self, name: str) -> list[tuple[str, int, int]]:
        """(member, offset, size) of a struct."""
        number = self._so.btf__find_by_name(self._btf, name.encode())
        assert number > 0, name
        words = self._words(number)
        assert words[1] >> 24 & 0x1F == STRUCT
        found = []
        for index in range(words[1] & 0xFFFF):
            at = 3 + 3 * index
            member = self._so.btf__name_by_offset(self._btf, words[at]).decode()
            found.append((member, words[at + 2] // 8, self.size(words[at + 1])))
        return found

    def size_of(self, name: str) -> int:
        return self.size(self._so.btf__find_by_name(self._btf, name.encode()))


@pytest.fixture(scope="module")
def types() -> Iterator[Types]:
    if not OBJECT.exists():
        pytest.skip("no clang here: the probes are not built")
    found = Types(OBJECT)
    yield found
    found.close()


@pytest.fixture(scope="module")
def guard_types() -> Iterator[Types]:
    if not GUARD_OBJECT.exists():
        pytest.skip("no clang here: the guard is not built")
    found = Types(GUARD_OBJECT)
    yield found
    found.close()


def sizes(format: struct.Struct) -> list[tuple[int, int]]:
    """(offset, size) of every field of a struct format without alignment."""
    text, found, at, number = format.format.lstrip("="), [], 0, ""
    for letter in text:
        if letter.isdigit():
            number += letter
            continue
        size = struct.calcsize(f"={letter}")
        count, number = int(number or 1), ""
        if letter == "x":
            at += count
        elif letter == "s":
            found.append((at, count))
            at += count
        else:
            for _ in range(count):
                found.append((at, size))
                at += size
    return found


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("run_entry", layout.RUN_ENTRY),
        ("record_header", layout.HEAD),
        ("exec_record", layout.EXEC),
        ("fork_record", layout.FORK),
        ("exit_record", layout.EXIT),
        ("file_record", layout.FILE),
        ("network_record", layout.NETWORK),
        ("socket_record", layout.SOCKET),
        ("signal_record", layout.SIGNAL),
        ("name_key", layout.NAME_KEY),
        ("call_key", layout.CALL_KEY),
        ("address_key", layout.ADDRESS_KEY),
        ("port_rule", layout.PORT_RULE),
    ],
)
def test_struct(types: Types, name: str, format: struct.Struct) -> None:
    assert types.size_of(name) == format.size
    members = [(at, size) for member, at, size in types.members(name) if member != "head"]
    assert members == sizes(format)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("denied_key", layout.DENIED_KEY),
        ("denied_value", layout.DENIED_VALUE),
        ("denial_record", layout.DENIAL),
        ("run_entry", layout.RUN_ENTRY),
    ],
)
def test_struct_of_the_guard(guard_types: Types, name: str, format: struct.Struct) -> None:
    assert guard_types.size_of(name) == format.size
    assert [(at, size) for member, at, size in guard_types.members(name) if member != "head"] == sizes(format)


def test_syscall_record(types: Types) -> None:
    assert types.size_of("syscall_record") == layout.SYSCALL.size
    assert {name: at for name, at, _ in types.members("syscall_record")} == {
        "head": 0, "result": 32, "args": 40, "nr": 88, "abi": 92,
    }  # fmt: skip
    assert types.size_of("record_header") == 32


def test_calls_that_rules_ask_for_and_the_last_calls(types: Types) -> None:
    assert types.size_of("event_record") == layout.EVENT.size
    assert {name: at for name, at, _ in types.members("event_record")} == {
        "head": 0, "result": 32, "args": 40, "nr": 88, "abi": 92, "marks": 96, "pad": 100, "comm": 104,
    }  # fmt: skip
    assert types.size_of("flight_call") == layout.FLIGHT_CALL.size
    assert {name: at for name, at, _ in types.members("flight_call")} == {
        "time_ns": 0, "result": 8, "args": 16, "pid": 64, "tid": 68, "nr": 72, "abi": 76, "place": 80,
    }  # fmt: skip


def placed_after(types: Types, name: str) -> list[tuple[int, int]]:
    """(offset, size) of the members of a struct behind its first, without padding."""
    return [(at, size) for member, at, size in types.members(name)[1:] if member != "pad"]


def test_records_in_two_parts(types: Types) -> None:
    assert types.size_of("two_file_record") == layout.TWO_FILE.size
    # What follows the record within is counted from its end.
    assert types.size_of("file_record") == layout.FILE.size == sizes(layout.PLACED_FILE)[0][0]
    assert placed_after(types, "placed_file_record") == sizes(layout.PLACED_FILE)
    assert types.size_of("placed_file_record") == layout.PLACED_FILE.size == sizes(layout.LONG_FILE)[0][0]
    assert placed_after(types, "long_file_record") == sizes(layout.LONG_FILE)
    assert types.size_of("long_file_record") == layout.LONG_FILE.size
    assert placed_after(types, "long_exec_record") == [(layout.EXEC.size, layout.LONG_EXEC_SIZE - layout.EXEC.size)]
    marks = {name: at for name, at, _ in types.members("file_record")}["marks"]
    assert marks == layout.FILE_MARKS.start
    assert types.size_of("flight") == layout.FLIGHT_CALLS * layout.FLIGHT_CALL.size
    rule = layout.ADDRESS_RULE_HEAD.size + layout.PORT_RULES_MAX * layout.PORT_RULE.size
    assert types.size_of("address_rule") == rule


def test_run_counts(types: Types) -> None:
    assert types.size_of("run_counts") == layout.COUNT_WORDS * 8
    offsets = {name: at for name, at, _ in types.members("run_counts")}
    assert (offsets["seen"], offsets["dropped"]) == (layout.SEEN_WORD * 8, layout.DROPPED_WORD * 8)
    assert [offsets[name] // 8 for name in ("flown", "unnoted", "given", "taken", "files")] == [
        *(layout.FLOWN_WORD, layout.UNNOTED_WORD, layout.GIVEN_WORD, layout.TAKEN_WORD, layout.FILES_WORD)
    ]
    assert types.size_of("syscall_count") == 16 and types.members("syscall_count")[0][0] == "succeeded"
