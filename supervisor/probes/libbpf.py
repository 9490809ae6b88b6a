"""libbpf through ctypes: objects, programs, maps, as far as the probes need them. Debian's libbpf1; libbpf.h is its manual.

Every failure is a BpfError with the host's errno and, for a program that was refused, what the verifier said.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

_LIBRARY = "libbpf.so.1"
_PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_LINES_KEPT = 40


class BpfError(OSError):
    """What libbpf or the kernel refused; `log` has the last lines that libbpf had to say about it."""

    def __init__(self, errno: int, what: str, log: str = "") -> None:
        super().__init__(errno, f"{what}: {os.strerror(errno)}")
        self.log = log


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts of bpf.h; libbpf takes shorter ones of older versions by `sz`."""

    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class _Library:
    """The functions in use, with their types. Loaded once per process."""

    def __init__(self) -> None:
        try:
            self.so = so = ctypes.CDLL(_LIBRARY, use_errno=True)
        except OSError as error:
            raise BpfError(2, f"{_LIBRARY} cannot be loaded (apt-get install libbpf1): {error}") from error
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.vsnprintf.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)

        def function(name: str, returns: object, *arguments: object) -> None:
            found = getattr(so, name)
            found.restype, found.argtypes = returns, arguments

        function("libbpf_set_print", c_void_p, _PRINT)
        function("bpf_object__open_file", c_void_p, c_char_p, c_void_p)
        function("bpf_object__load", c_int, c_void_p)
        function("bpf_object__close", None, c_void_p)
        function("bpf_object__find_map_by_name", c_void_p, c_void_p, c_char_p)
        function("bpf_object__find_program_by_name", c_void_p, c_void_p, c_char_p)
        function("bpf_object__next_program", c_void_p, c_void_p, c_void_p)
        function("bpf_program__name", c_char_p, c_void_p)
        function("bpf_program__set_autoload", c_int, c_void_p, ctypes.c_bool)
        function("bpf_program__attach", c_void_p, c_void_p)
        function("bpf_program__attach_cgroup", c_void_p, c_void_p, c_int)
        function("bpf_program__fd", c_int, c_void_p)
        function("bpf_link__destroy", c_int, c_void_p)
        function("bpf_object__next_map", c_void_p, c_void_p, c_void_p)
        function("bpf_map__name", c_char_p, c_void_p)
        function("bpf_map__is_internal", ctypes.c_bool, c_void_p)
        function("bpf_map__reuse_fd", c_int, c_void_p, c_int)
        function("bpf_map__fd", c_int, c_void_p)
        function("bpf_map__max_entries", c_uint32, c_void_p)
        function("bpf_map__set_max_entries", c_int, c_void_p, c_uint32)
        function("bpf_map__value_size", c_uint32, c_void_p)
        function("bpf_prog_test_run_opts", c_int, c_int, c_void_p)
        function("bpf_object__btf", c_void_p, c_void_p)
        function("btf__find_by_name", c_int, c_void_p, c_char_p)
        function("btf__type_by_id", c_void_p, c_void_p, c_uint32)
        function("btf__name_by_offset", c_char_p, c_void_p, c_uint32)
        function("bpf_map_update_elem", c_int, c_int, c_void_p, c_void_p, ctypes.c_uint64)
        function("bpf_map_delete_elem", c_int, c_int, c_void_p)
        function("bpf_map_lookup_elem", c_int, c_int, c_void_p, c_void_p)
        self.lines: list[str] = []
        self.lock = threading.Lock()
        self._print = _PRINT(self._keep)
        so.libbpf_set_print(self._print)

    def _keep(self, level: int, text: bytes, arguments: int) -> int:
        """libbpf's messages; debugging ones are not formatted. A va_list is a pointer on x86-64 and arm64."""
        if level <= 1:
            buffer = ctypes.create_string_buffer(16384)
            self.libc.vsnprintf(buffer, len(buffer), text, arguments)
            self.lines += buffer.value.decode("utf-8", "replace").splitlines()
            del self.lines[:-_LINES_KEPT]
        return 0


_library: _Library | None = None


def _lib() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


@dataclass(slots=True)
class BpfMap:
    """One map of a loaded object. Keys and values are bytes of the map's sizes."""

    name: str
    fd: int
    max_entries: int
    value_size: int

    def update(self, key: bytes, value: bytes) -> None:
        if _lib().so.bpf_map_update_elem(self.fd, key, value, 0):
            raise BpfError(ctypes.get_errno(), f"map {self.name}: update")

    def delete(self, key: bytes) -> bool:
        """False when there was no such key."""
        if _lib().so.bpf_map_delete_elem(self.fd, key):
            if ctypes.get_errno() == 2:
                return False
            raise BpfError(ctypes.get_errno(), f"map {self.name}: delete")
        return True

    def lookup(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self.value_size)
        if _lib().so.bpf_map_lookup_elem(self.fd, key, value):
            if ctypes.get_errno() == 2:
                return None
            raise BpfError(ctypes.get_errno(), f"map {self.name}: lookup")
        return value.raw

    def memory(self) -> mmap.mmap:
        """The values of an array made with BPF_F_MMAPABLE, as the kernel has them."""
        page = mmap.PAGESIZE
        size = (self.value_size + 7 & ~7) * self.max_entries
        return mmap.mmap(self.fd, (size + page - 1) // page * page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


@dataclass(slots=True)
class BpfObject:
    """An object file: opened, adjusted, loaded, attached; `close` takes everything back."""

    path: Path
    _object: int = 0
    _links: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> BpfObject:
        handle = _lib().so.bpf_object__open_file(os.fsencode(path), None)
        if not handle:
            raise _error(f"{path}")
        return cls(path, handle)

    def _map(self, name: str) -> int:
        found = _lib().so.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise BpfError(2, f"{self.path.name}: map {name}")
        return int(found)

    def set_max_entries(self, name: str, count: int) -> None:
        """Before `load`: how many entries a map has, or bytes a ring."""
        if _lib().so.bpf_map__set_max_entries(self._map(name), count):
            raise _error(f"map {name}")

    def share_maps(self, other: BpfObject) -> None:
        """Before `load`: every map that has its namesake in `other`, which is loaded, is that one."""
        so, at = _lib().so, None
        while at := so.bpf_object__next_map(self._object, at):
            theirs = so.bpf_object__find_map_by_name(other._object, so.bpf_map__name(at))
            if theirs and not so.bpf_map__is_internal(at) and so.bpf_map__reuse_fd(at, so.bpf_map__fd(theirs)):
                raise _error(f"map {so.bpf_map__name(at).decode()}")

    def set_word(self, section: str, name: str, value: int, size: int = 4) -> None:
        """After `load`: sets the variable `name` of .data or .bss, of that many bytes."""
        memory = self.map(section).memory()
        offset = self._offset(section, name)
        memory[offset : offset + size] = value.to_bytes(size, "little")
        memory.close()

    def word(self, section: str, name: str) -> int:
        """After `load`: the 32-bit variable `name` of .data or .bss."""
        memory = self.map(section).memory()
        found = int.from_bytes(memory[(at := self._offset(section, name)) : at + 4], "little")
        memory.close()
        return found

    def run(self, program: str) -> int:
        """After `load`: what a program of type "syscall" returns."""
        options = _TestRun(sz=ctypes.sizeof(_TestRun))
        if _lib().so.bpf_prog_test_run_opts(_lib().so.bpf_program__fd(self._program(program)), byref(options)):
            raise _error(f"program {program}")
        return int(options.retval)

    def _offset(self, section: str, name: str) -> int:
        """Where a variable lies in its section, by BTF."""
        so = _lib().so
        btf = so.bpf_object__btf(self._object)
        number = so.btf__find_by_name(btf, section.encode())
        if number < 0:
            raise BpfError(2, f"{self.path.name}: no type information for {section}")
        section_type = so.btf__type_by_id(btf, number)
        # struct btf_type: name_off, info, size; then per variable struct btf_var_secinfo: type, offset, size.
        info = ctypes.cast(section_type, POINTER(c_uint32))
        for index in range(info[1] & 0xFFFF):
            variable, offset = info[3 + 3 * index], info[4 + 3 * index]
            found = ctypes.cast(so.btf__type_by_id(btf, variable), POINTER(c_uint32))
            if so.btf__name_by_offset(btf, found[0]) == name.encode():
                return int(offset)
        raise BpfError(2, f"{self.path.name}: {section} has no {name}")

    def programs(self) -> list[str]:
        names, at = [], None
        while at := _lib().so.bpf_object__next_program(self._object, at):
            names.append(_lib().so.bpf_program__name(at).decode())
        return names

    def _program(self, name: str) -> int:
        found = _lib().so.bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise BpfError(2, f"{self.path.name}: program {name}")
        return int(found)

    def leave_out(self, program: str) -> None:
        """Before `load`: this program is not loaded."""
        _lib().so.bpf_program__set_autoload(self._program(program), False)

    def load(self) -> None:
        with _lib().lock:
            _lib().lines.clear()
            if _lib().so.bpf_object__load(self._object):
                raise _error(f"{self.path.name} cannot be loaded")

    def attach(self, program: str) -> None:
        """To the hook that its section names, until `close`."""
        self._keep(_lib().so.bpf_program__attach(self._program(program)), program)

    def attach_cgroup(self, program: str, directory: int) -> None:
        """To a control group and all below it."""
        self._keep(_lib().so.bpf_program__attach_cgroup(self._program(program), directory), program)

    def _keep(self, link: int | None, program: str) -> None:
        if not link:
            raise _error(f"program {program} cannot be attached")
        self._links.append(link)

    def map(self, name: str) -> BpfMap:
        """After `load`."""
        so, handle = _lib().so, self._map(name)
        return BpfMap(name, so.bpf_map__fd(handle), so.bpf_map__max_entries(handle), so.bpf_map__value_size(handle))

    def close(self) -> None:
        while self._links:
            _lib().so.bpf_link__destroy(self._links.pop())
        if self._object:
            _lib().so.bpf_object__close(self._object)
            self._object = 0


def _error(what: str) -> BpfError:
    return BpfError(ctypes.get_errno(), what, "\n".join(_lib().lines))
