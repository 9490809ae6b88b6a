"""Events joined to calls, and calls as text."""

from __future__ import annotations

import errno
import itertools
import signal
import sys

import pytest
from trace_samples import AT_FDCWD, call, end, event, execute, file, sample

from supervisor.client import linux_words
from supervisor.client.calls import call_text, endpoint_struct, endpoint_text, failed, paired, quoted, result_text
from supervisor.syscall_sets import KNOWN_SYSCALLS


def texts(events):
    return [call_text(entry, endpoint_text) for entry in paired(events)]


def test_what_belongs_to_one_call_is_one_entry_in_order():
    shown = [
        (entry.event.kind, entry.event.syscall, len(entry.details), entry.paths, entry.endpoint)
        for entry in paired(sample())
    ]
    assert shown == [
        ("syscall", "execve", 1, ["/usr/bin/sh"], None),
        ("syscall", "mmap", 0, [], None),
        ("fork", "", 0, [], None),
        ("syscall", "vfork", 0, [], None),
        ("syscall", "execve", 1, ["/usr/bin/ls"], None),
        ("syscall", "openat", 1, ["/etc/ld.so.cache"], None),
        ("syscall", "openat", 1, ["/no\x1b[31m"], None),
        ("syscall", "rename", 1, ["old", "new"], None),
        ("syscall", "exit_group", 0, [], None),
        ("exit", "", 0, [], None),
        ("fork", "", 0, [], None),
        ("syscall", "connect", 1, [], ("192.0.2.1", 80)),
        ("syscall", "connect", 1, [], ("2001:db8::1", 443)),
        ("syscall", "nanosleep", 0, [], None),
        ("exit", "", 0, [], None),
        ("exit", "", 0, [], None),
    ]
    assert sum(1 + len(entry.details) for entry in paired(sample())) == len(sample())


def test_calls_as_text():
    shown = texts(sample())
    assert shown[0] == 'execve("/usr/bin/sh", ["sh", "-c", "ls \\033[31m\\n"])'
    assert shown[1] == "mmap(NULL, 8192, 0x3, 0x22, -1, 0)"
    assert shown[3] == "vfork()"
    assert shown[5] == 'openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC)'
    assert shown[6] == 'openat(AT_FDCWD, "/no\\033[31m", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0644)'
    assert shown[7] == 'rename("old", "new")'
    assert shown[11:13] == ["connect(5, 192.0.2.1:80, 16)", "connect(6, [2001:db8::1]:443, 28)"]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (call(0, 2, "lseek", 3, (1 << 64) - 5, 1), "lseek(3, -5, 1)"),
        (call(0, 2, "read", 0xFFFFFFFF, 0, 1 << 40), "read(-1, NULL, 1099511627776)"),
        (call(0, 2, "chmod", 0x1000, 0o755), "chmod(0x1000, 0755)"),
        (call(0, 2, "kill", 0xFFFFFFFF, 9), "kill(-1, 9)"),
        (call(0, 2, "getpid"), "getpid()"),
        (call(0, 2, "syscall_500", 1, 2), "syscall_500(0x1, 0x2, 0xdead, 0xdead, 0xdead, 0xdead)"),
        (event(0, "syscall", 2, syscall="open", abi="i386", args=(1, 2)), "open(0x1, 0x2)"),
        (file(0, 2, "unlink", "unlink", "/x"), 'unlink("/x")'),
        (event(0, "bind", 2, address="::", port=53), "bind([::]:53)"),
        (event(0, "open", 2, syscall="openat", path="/x", args=(1, 2)), 'openat(0x1, 0x2 /* "/x" */)'),
    ],
)
def test_arguments_by_their_kind(made, text):
    assert texts([made]) == [text]


def test_an_address_that_no_argument_points_to_stands_behind():
    events = [event(0, "send", 2, address="192.0.2.1", port=53), call(1e-6, 2, "sendmsg", 3, 0x7FFF0000, 0, result=5)]
    assert texts(events) == ["sendmsg(3, 0x7fff0000, 0 /* 192.0.2.1:53 */)"]


def test_details_of_other_calls_stay_apart():
    stray = file(0.1, 2, "open", "openat", "/a", result=3)
    events = [
        call(0, 2, "openat", AT_FDCWD, 1, 0, result=4),  # another result
        stray,
        call(0.2, 3, "openat", AT_FDCWD, 1, 0, result=3),  # another thread
        event(0.3, "connect", 2, address="192.0.2.1", port=1),
        call(0.4, 2, "getpid"),  # no connect followed
        *execute(0.5, 2, "x")[:1],
        end(0.6, 2),
    ]
    entries = list(paired(events))
    assert len(entries) == len(events) and not any(entry.details for entry in entries)


def test_what_a_rule_noticed_is_its_calls():
    events = [
        call(0, 2, "mprotect", 4096, 4096, 5),
        event(1e-6, "mprotect", 2, syscall="mprotect", args=call(0, 2, "mprotect", 4096, 4096, 5).args),
        call(2e-6, 2, "mprotect", 8192, 4096, 5),
    ]
    entries = list(paired(events))
    assert [entry.noticed for entry in entries] == [["mprotect"], []]


def test_a_unix_socket_has_its_name_alone():
    events = [
        event(0, "connect", 2, syscall="connect", path="/run/x", detail="unix"),
        call(1e-6, 2, "connect", 3, 0x1000, 9),
    ]
    (entry,) = paired(events)
    assert (entry.paths, entry.endpoint) == ([], ("/run/x", 0))
    assert call_text(entry, endpoint_text) == "connect(3, /run/x, 9)"
    assert "sun_path=" in call_text(entry, endpoint_struct)
    assert endpoint_text("@abstract", 0) == "@abstract"


def test_a_retried_connect_keeps_its_own_address():
    events = []
    for number in range(3):
        events.append(event(number, "connect", 2, address=f"192.0.2.{number}", port=1))
        events.append(call(number + 0.5, 2, "connect", 3, 4, 16, result=-111))
    assert [entry.endpoint for entry in paired(events)] == [(f"192.0.2.{number}", 1) for number in range(3)]


def test_memory_is_bounded_and_order_kept():
    """A million events by as many threads that each might still get a path: none waits for longer than the window."""
    taken = 0

    def many():
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield call(number * 1e-6, number, "unlink", 1, result=-2)

    entries = paired(many())
    for number in range(20_000):
        assert next(entries).event.pid == number
        assert taken - number <= 5_002
    never = paired(event(0, "connect", 2, address=f"192.0.2.{n % 256}", port=n) for n in itertools.count())
    assert [next(never).event.port for _ in range(100)] == list(range(100))


def test_results():
    assert result_text(call(0, 2, "mmap", result=0x7F0000001000)) == "0x7f0000001000"
    assert result_text(call(0, 2, "read", result=5)) == "5"
    assert result_text(call(0, 2, "read", result=-9)) == "-9 EBADF"
    assert result_text(call(0, 2, "exit_group")) == "?"
    assert failed(call(0, 2, "read", result=-4095)) and not failed(call(0, 2, "read", result=-4096))
    assert not failed(end(0, 2, -9)) and failed(event(0, "connect", 2, result=-1))


def test_strings_and_addresses():
    assert quoted('a"b\\\n\x1b\u202e') == '"a\\"b\\\\\\n\\033\\342\\200\\256"'
    assert quoted("ä", ascii_only=True) == '"\\303\\244"' and quoted("ä") == '"ä"'
    assert quoted("\udcff") == '"\\355\\263\\277"'
    assert endpoint_struct("192.0.2.1", 80) == (
        '{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("192.0.2.1")}'
    )
    assert 'inet_pton(AF_INET6, "::1", &sin6_addr)' in endpoint_struct("::1", 80)
    assert endpoint_struct("/run/s", 0) == '{sa_family=AF_UNIX, sun_path="/run/s"}'


@pytest.mark.skipif(sys.platform != "linux", reason="compared with Linux's own numbers")
def test_words_are_linux_s():
    aliases = {"EDEADLOCK": "EDEADLK", "ENOTSUP": "EOPNOTSUPP"}
    for number, name in errno.errorcode.items():
        assert linux_words.error_name(-number) == aliases.get(name, name)
    for found in signal.Signals:
        assert linux_words.signal_name(found) in (found.name, f"SIGRT_{found - 32}")
    assert linux_words.error_name(-512) == "ERESTARTSYS" and linux_words.error_name(-4000) == "errno 4000"
    assert linux_words.error_name(0) == linux_words.error_name(-5000) == ""


def test_signatures_name_known_calls_with_known_letters():
    assert set(linux_words.SIGNATURES) <= KNOWN_SYSCALLS | {"modify_ldt"}
    assert len(linux_words.SIGNATURES) > 360
    assert all(
        len(letters) <= 6 and set(letters) <= set("duxolnwapsAfm") for letters in linux_words.SIGNATURES.values()
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, "O_RDONLY"),
        (0o101, "O_WRONLY|O_CREAT"),
        (0o4010002, "O_RDWR|O_SYNC"),
        (0o20200002, "O_RDWR|O_TMPFILE"),
        (0o200000 | 1 << 30, "O_RDONLY|O_DIRECTORY|0x40000000"),
    ],
)
def test_flags_of_open(flags, text):
    assert linux_words.open_flags(flags) == text
