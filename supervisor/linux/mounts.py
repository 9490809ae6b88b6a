"""Detached mounts, made in the daemon's own mount namespace and handed over as descriptors: mount(2)'s newer relatives.

A detached mount is attached nowhere: it goes with its last descriptor. glibc before 2.36 lacks the wrappers, hence
syscall(2); the numbers are the same on every architecture (asm-generic).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 430, 431, 432, 437, 442
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_SET_STRING, _CMD_CREATE = 1, 6

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _call(number: int, *args: object) -> int:
    result: int = _syscall(ctypes.c_long(number), *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def openat2(directory: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), close-on-exec. Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(16):
        try:
            return _call(
                _OPENAT2, ctypes.c_int(directory), path, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
            )
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a rename raced with RESOLVE_BENEATH or RESOLVE_IN_ROOT
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def new_mount(kind: str, options: Iterable[tuple[str, str]], attributes: int = 0) -> int:
    """A new file system of `kind`, mounted nowhere; `attributes` as for mount_setattr(2). Raises OSError."""
    context = _call(_FSOPEN, kind.encode(), ctypes.c_uint(_CLOEXEC))
    try:
        for key, value in options:
            _call(
                _FSCONFIG,
                ctypes.c_int(context),
                ctypes.c_uint(_SET_STRING),
                key.encode(),
                value.encode(),
                ctypes.c_int(0),
            )
        _call(_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_CMD_CREATE), None, None, ctypes.c_int(0))
        return _call(_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(attributes))
    finally:
        os.close(context)


def clone_tree(fd: int, *, recursive: bool = True) -> int:
    """A detached copy of the mount at `fd`, with the mounts below it where `recursive`. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return _call(_OPEN_TREE, ctypes.c_int(fd), b"", ctypes.c_uint(flags))


def set_attributes(fd: int, attributes: int, *, recursive: bool = True) -> None:
    """mount_setattr(2) on the mount at `fd`. Raises OSError."""
    attr = _MountAttr(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(
        _MOUNT_SETATTR,
        ctypes.c_int(fd),
        b"",
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
