"""The root of a run as a list of steps, carried out by the launcher in order, and the Landlock rules that back it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from supervisor.model import Mount, NetworkMode
from supervisor.policy import Filesystem, Policy

WORK = b"/work"

# mount_setattr(2)
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8

# landlock(7): rights, and the ABI that brought each.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
LANDLOCK_SCOPE_ABI = 6
LANDLOCK_SCOPES = 0b11  # abstract Unix sockets, signals


class OpKind(IntEnum):
    """enum op_kind of launcher/protocol.h."""

    MKDIR = 1
    FILE = 2
    SYMLINK = 3
    TEMPLATE = 4
    MOUNT = 5
    BIND = 6
    PROC = 7
    DEVPTS = 8
    SETATTR = 9
    HIDE = 10
    DEVICE = 11


def below_work(path: bytes) -> bytes:
    """A path in the run as an absolute one: a relative one is below /work."""
    return path if path.startswith(b"/") else WORK + b"/" + path


@dataclass(frozen=True, slots=True)
class Op:
    """One step of building the root, carried out by the launcher in order; `number` is a device's (major, minor).

    `own`: what is made belongs to the run's user. `mount` is an index into LaunchPlan.mounts (OpKind.MOUNT) and
    `idmap` asks that the mounted tree's owner appears as the run's user (`idmap_optional`: else as it is).
    """

    kind: OpKind
    target: bytes
    source: bytes = b""
    mode: int = 0
    attributes: int = 0
    own: bool = False
    recursive: bool = False
    mount: int | None = None
    idmap: bool = False
    idmap_optional: bool = False
    number: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class RootEntry:
    """A name at the top of the root: a symbolic link (`link` set), a template the launcher holds, or a tree to mount."""

    name: bytes
    link: bytes | None = None
    template: bool = False


@dataclass(frozen=True, slots=True)
class RootView:
    """What a root shows at its top. `source` is the directory it is taken from, empty for the host's own programs."""

    entries: tuple[RootEntry, ...]
    source: bytes = b""


@dataclass(frozen=True, slots=True)
class LandlockRule:
    path: bytes
    access: int


_ATTRIBUTES = {"rw": NOSUID | NODEV, "noexec": NOSUID | NODEV | NOEXEC, "ro": NOSUID | NODEV | NOEXEC | RDONLY}

_DEVICES = (
    (b"null", (1, 3)),
    (b"zero", (1, 5)),
    (b"full", (1, 7)),
    (b"random", (1, 8)),
    (b"urandom", (1, 9)),
    (b"tty", (5, 0)),
)
_DEVICE_LINKS = (
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
)
# What everyone could read there and nobody in a run needs. The rest of proc is held by its being read-only and by the run's
# not being root; each of these costs a mount.
_HIDDEN_IN_PROC = (
    b"/proc/acpi",
    b"/proc/cmdline",
    b"/proc/kallsyms",
    b"/proc/kcore",
    b"/proc/key-users",
    b"/proc/keys",
    b"/proc/sched_debug",
    b"/proc/scsi",
    b"/proc/sys/kernel/random/boot_id",  # tells one host from another, as machine-id does
    b"/proc/timer_list",
)


def root_ops(
    files: Filesystem, network: NetworkMode, view: RootView, mounts: tuple[Mount, ...], own: int
) -> tuple[Op, ...]:
    """The steps, in order; the first `own` of `mounts` are the policy's. Most runs have the same ones: they are kept."""
    if mounts:
        return tuple(_root_ops(files, network, view, mounts, own))
    return _plain_root_ops(files, network, view)


@lru_cache(maxsize=64)
def _plain_root_ops(files: Filesystem, network: NetworkMode, view: RootView) -> tuple[Op, ...]:
    return tuple(_root_ops(files, network, view, (), 0))


def _root_ops(
    files: Filesystem, network: NetworkMode, view: RootView, mounts: tuple[Mount, ...], own: int
) -> Iterator[Op]:
    for index, entry in enumerate(view.entries):
        target = b"/" + entry.name
        if entry.link is not None:
            yield Op(OpKind.SYMLINK, target, source=entry.link)
            continue
        yield Op(OpKind.MKDIR, target, mode=0o755)
        if entry.template:
            yield Op(OpKind.TEMPLATE, target, source=entry.name)
        else:
            # A tree of a root directory; the backend opens these after the mounts, in the view's order.
            yield Op(
                OpKind.MOUNT,
                target,
                attributes=RDONLY | NOSUID | NODEV,
                recursive=True,
                mount=len(mounts) + _tree_index(view, index),
            )
    if network in (NetworkMode.FULL, NetworkMode.FILTERED) and not view.source:
        yield Op(OpKind.MOUNT, b"/etc/resolv.conf", attributes=RDONLY | NOSUID | NODEV | NOEXEC, mount=-1)
    yield Op(OpKind.MKDIR, b"/proc", mode=0o555)
    yield Op(OpKind.PROC, b"/proc", attributes=RDONLY | NOSUID | NODEV | NOEXEC)
    for path in _HIDDEN_IN_PROC:
        yield Op(OpKind.HIDE, path)
    yield Op(OpKind.MKDIR, b"/dev", mode=0o755)
    for name, number in _DEVICES:
        yield Op(OpKind.DEVICE, b"/dev/" + name, mode=0o666, number=number)
    for name, link in _DEVICE_LINKS:
        yield Op(OpKind.SYMLINK, b"/dev/" + name, source=link)
    yield Op(OpKind.MKDIR, b"/dev/pts", mode=0o755)
    yield Op(OpKind.DEVPTS, b"/dev/pts", attributes=NOSUID | NOEXEC)
    shared_memory = _ATTRIBUTES["ro" if files.tmp == "ro" else "noexec"]
    work_mounted = any(mount.target == WORK for mount in mounts)
    for path, mode, attributes in (
        (b"/dev/shm", 0o1777, shared_memory),  # the run's own, not the host's
        (b"/tmp", 0o1777, _ATTRIBUTES[files.tmp]),
        (WORK, 0o755, _ATTRIBUTES[files.work]),
    ):
        yield Op(OpKind.MKDIR, path, mode=mode, own=path == WORK)
        if path != WORK or not work_mounted:
            yield Op(OpKind.BIND, path, source=path, attributes=attributes)
    for index, mount in enumerate(mounts):
        inside = mount.target.startswith((b"/tmp/", b"/work/", b"/dev/shm/"))
        # The backend turns this into FILE where the source is one.
        yield Op(OpKind.MKDIR, mount.target, mode=0o755, own=inside)
        yield Op(
            OpKind.MOUNT,
            mount.target,
            attributes=NOSUID | NODEV | (0 if mount.writable else RDONLY),
            recursive=True,
            mount=index,
            # The policy's own paths stay as they are: root's files shall not become the run's by being shown.
            idmap=index >= own,
            idmap_optional=not mount.writable,
        )
    for hidden in files.hidden:
        yield Op(OpKind.HIDE, hidden.encode())
    yield Op(OpKind.SETATTR, b"/", attributes=RDONLY | NOSUID)


def _tree_index(view: RootView, index: int) -> int:
    return sum(1 for entry in view.entries[:index] if entry.link is None and not entry.template)


def writable_places(policy: Policy, mounts: tuple[Mount, ...]) -> tuple[bytes, ...]:
    own = [] if policy.filesystem.tmp == "ro" else [b"/tmp", b"/dev/shm"]
    if policy.filesystem.work != "ro" and all(mount.target != WORK for mount in mounts):
        own.append(WORK)
    return (*own, *(mount.target for mount in mounts if mount.writable))


def landlock_handled(abi: int) -> int:
    if abi == 0:
        return 0
    handled = (1 << 13) - 1
    for needed, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if abi >= needed:
            handled |= right
    return handled


def landlock_rules(abi: int, writable: tuple[bytes, ...]) -> Iterator[LandlockRule]:
    if abi == 0:
        return
    handled = landlock_handled(abi)
    yield LandlockRule(b"/", _EXECUTE | _READ_FILE | _READ_DIR)
    yield LandlockRule(b"/dev", (_WRITE_FILE | _TRUNCATE | _IOCTL_DEV) & handled)
    for path in writable:
        yield LandlockRule(path, handled & ~(_MAKE_CHAR | _MAKE_BLOCK))
