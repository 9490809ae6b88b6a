"""What a run's root is made of: templates that the launchers keep, the tmpfs of each run, and trees of the host.

The host's programs are shown as they are (/usr and its companions, read-only); /etc is built anew and holds nothing
that identifies the host or a user of it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.linux import mounts
from supervisor.model import Limits
from supervisor.plan import INNER_ID
from supervisor.plan_root import NODEV, NOEXEC, NOSUID, RDONLY, RootEntry, RootView

_PROGRAM_DIRECTORIES = (b"usr", b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32")
_OURS = frozenset({b"proc", b"dev", b"tmp", b"work", b"sys", b"run"})

# Read by programs, and the same on every machine of the distribution or derived from what is installed.
_ETC_COPIED = (
    "alternatives",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "inputrc",
    "java-17-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "os-release",
    "perl",
    "profile",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "rpc",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)
_ETC_COPY_BYTES = 32 << 20
_ETC_BUILT = {
    "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:{INNER_ID}:{INNER_ID}:sandbox:/tmp:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": f"root:x:0:\nsandbox:x:{INNER_ID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n",
    "host.conf": "multi on\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "resolv.conf": "",
    "gai.conf": "",
    "fstab": "",
}


def host_view(root: str = "/") -> RootView:
    """The host's own programs: /usr and what stands beside it, as links where the host has links, and /etc."""
    entries = []
    for name in _PROGRAM_DIRECTORIES:
        path = os.path.join(root.encode(), name)
        if os.path.islink(path):
            entries.append(RootEntry(name, link=os.readlink(path)))
        elif os.path.isdir(path):
            entries.append(RootEntry(name, template=True))
    entries.append(RootEntry(b"etc", template=True))
    return RootView(tuple(entries))


def host_templates(view: RootView, etc: Etc) -> dict[bytes, int]:
    """Template name -> detached mount for a launcher to attach; each descriptor is the caller's. Raises OSError."""
    templates = {}
    for entry in view.entries:
        if not entry.template:
            continue
        if entry.name == b"etc":
            templates[entry.name] = _mount_etc(etc)
            continue
        fd = os.open(b"/" + entry.name, os.O_PATH | os.O_DIRECTORY)
        try:
            templates[entry.name] = mounts.clone_tree(fd)
        finally:
            os.close(fd)
        mounts.set_attributes(templates[entry.name], RDONLY | NOSUID | NODEV)
    return templates


def directory_view(path: bytes) -> RootView:
    """A root taken from a directory. Raises OSError where it cannot be read."""
    entries = []
    with os.scandir(path) as found:
        for entry in sorted(found, key=lambda e: e.name):
            if entry.name in _OURS:
                continue
            if entry.is_symlink():
                entries.append(RootEntry(entry.name, link=os.readlink(entry.path)))
            elif entry.is_dir(follow_symlinks=False):
                entries.append(RootEntry(entry.name))
    return RootView(tuple(entries), source=path)


def run_tmpfs(limits: Limits) -> int:
    """The one tmpfs of a run, detached: its root, /tmp, /dev/shm and /work, under one limit. Raises OSError."""
    options = [("mode", "755")]
    if limits.disk is not None:
        page = os.sysconf("SC_PAGE_SIZE")
        options.append(("size", str(-(-limits.disk // page) * page)))
    if limits.inodes is not None:
        options.append(("nr_inodes", str(limits.inodes + _OWN_INODES)))
    return mounts.new_mount("tmpfs", options, NOSUID)


_OWN_INODES = 48
"""Directories, links and devices of the root itself, which are not the run's to pay."""


@dataclass(slots=True)
class Etc:
    """The content of a run's /etc, by path below it: directories (parents first), links, files."""

    directories: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def read_etc(root: Path = Path("/etc")) -> Etc:
    """What a run's /etc shows: a little of the host's that everybody may read, and what is built. Read once, kept."""
    etc = Etc()
    budget = _ETC_COPY_BYTES
    for name in _ETC_COPIED:
        budget = _read(etc, root / name, name, budget, root)
    etc.files.update({name: text.encode() for name, text in _ETC_BUILT.items()})
    return etc


def _read(etc: Etc, source: Path, name: str, budget: int, root: Path) -> int:
    """Takes a file, link or tree into `etc`; returns what is left of `budget` bytes."""
    try:
        found = source.lstat()
    except OSError:
        return budget
    parent = os.path.dirname(name)
    if parent and parent not in etc.directories:
        etc.directories.append(parent)
    if stat.S_ISLNK(found.st_mode):
        link = os.readlink(source)
        if link.startswith(("/usr/", "../usr/")) or source.parent != root:
            etc.links[name] = link
        elif source.exists():
            return _read(etc, source.resolve(), name, budget, root)
    elif stat.S_ISDIR(found.st_mode):
        if name not in etc.directories:
            etc.directories.append(name)
        for child in sorted(source.iterdir()):
            budget = _read(etc, child, f"{name}/{child.name}", budget, root)
    elif stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IROTH and found.st_size <= budget:
        etc.files[name] = source.read_bytes()
        budget -= found.st_size
    return budget


def _mount_etc(etc: Etc) -> int:
    """A detached tmpfs that holds `etc`, read-only. Raises OSError."""
    fd = mounts.new_mount("tmpfs", [("mode", "755"), ("size", str(2 * _ETC_COPY_BYTES))], NOSUID | NODEV | NOEXEC)
    previous = os.umask(0o022)
    try:
        for name in etc.directories:
            _make_directories(fd, name)
        for name, link in etc.links.items():
            os.symlink(link, name, dir_fd=fd)
        for name, data in etc.files.items():
            _write(fd, name, data)
        mounts.set_attributes(fd, RDONLY | NOSUID | NODEV | NOEXEC)
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.umask(previous)
    return fd


def _make_directories(root: int, name: str) -> None:
    parts = name.split("/")
    for count in range(1, len(parts) + 1):
        try:
            os.mkdir("/".join(parts[:count]), 0o755, dir_fd=root)
        except FileExistsError:
            continue


def _write(root: int, name: str, data: bytes) -> None:
    with os.fdopen(
        os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644, dir_fd=root), "wb"
    ) as file:
        file.write(data)
