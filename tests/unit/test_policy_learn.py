"""The least policy from what runs did, by hand-made traces; the command is in test_cli_policy_learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learn_samples import SET, SOME, STRICT, USAGE, learnt, opened
from trace_samples import call, end, event, execute, file, fork

from supervisor.model import NetworkMode, SyscallCount, TracedAddress, TraceSummary, Usage
from supervisor.policy_diff import NARROWER, differences
from supervisor.policy_learn import learn, widened, write
from supervisor.policy_seen import Observed
from supervisor.syscall_actions import ALLOW, Actions
from supervisor.syscall_sets import KNOWN_SYSCALLS, SYSCALL_SETS

# System calls


def test_exactly_what_was_seen_is_allowed():
    policy = learnt(*execute(0, 2, "cat"), call(1, 2, "read"), call(1, 2, "write"), call(2, 2, "exit_group")).policy
    always = {"execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn"}
    assert set(policy.syscalls.allow) == {"read", "write"} | always
    assert (policy.syscalls.default, policy.syscalls.default_errno) == ("errno", "ENOSYS")
    # What the base refuses, it refuses in the same words, and all of its guards stay.
    assert policy.syscalls.kill == STRICT.syscalls.kill
    assert policy.syscalls.errno == STRICT.syscalls.errno


def test_what_was_refused_stays_refused_with_the_same_error():
    events = [
        call(0, 2, "clone3", result=-38),
        call(0, 2, "openat2", result=-38),
        call(0, 2, "syslog", result=-1),
        call(0, 2, "chmod", 0, 0o644, result=-2),
    ]
    found = learnt(*events)
    actions = Actions(found.policy.syscalls)
    assert [str(actions.call(name)) for name in ("clone3", "openat2", "syslog")] == [
        "errno ENOSYS", "errno ENOSYS", "errno EPERM",
    ]  # fmt: skip
    assert actions.call("chmod") == ALLOW
    assert "clone3 (errno ENOSYS), openat2 (errno ENOSYS), syslog (errno EPERM)" in " ".join(found.notes)


def test_what_only_a_guard_answered_is_refused_as_a_whole():
    netlink = call(0, 2, "socket", 16, 3, 0, result=-97)
    found = learnt(netlink, netlink)
    assert ("socket", "EAFNOSUPPORT") in found.policy.syscalls.errno
    assert "socket" not in found.policy.syscalls.allow
    # One that went through, one that the kernel itself refused so, one that is only counted: it was needed.
    unix = call(0, 2, "socket", 1, 1, 0, result=3)
    for other in (unix, call(0, 2, "socket", 2, 1, 0, result=-97)):
        assert "socket" in learnt(netlink, other).policy.syscalls.allow
    assert "socket" in learnt(netlink, socket=2).policy.syscalls.allow


def test_a_deny_list_becomes_an_allow_list():
    moderate = SET.get("moderate")
    policy = learnt(call(0, 2, "read"), call(0, 2, "ptrace", result=-1), call(0, 2, "openat2"), base=moderate).policy
    actions = Actions(policy.syscalls)
    assert (str(actions.default), actions.call("read")) == ("errno ENOSYS", ALLOW)
    assert (str(actions.call("ptrace")), str(actions.call("openat2"))) == ("errno EPERM", "errno ENOSYS")
    assert actions.call("write") != ALLOW and actions.guard("%setid") == Actions(moderate.syscalls).guard("%setid")


def test_where_the_rest_kills_it_kills_still():
    policy = learnt(call(0, 2, "read"), base=SET.get("paranoid")).policy
    assert policy.syscalls.default == "kill" and policy.trace == SET.get("paranoid").trace
    assert policy.response == SET.get("paranoid").response


def test_what_has_no_name_is_told():
    found = learnt(call(0, 2, "read"), other=2, syscall_470=1)
    assert any("other, syscall_470" in note for note in found.notes)
    assert set(found.policy.syscalls.allow) <= KNOWN_SYSCALLS


# Files


def test_nothing_written_nothing_executed():
    files = learnt(*execute(0, 2, "cat"), *opened(2, "/work/in"), *opened(2, "/etc/passwd")).policy.filesystem
    assert (files.tmp, files.work) == ("ro", "ro")


@pytest.mark.parametrize(
    ("events", "tmp", "work"),
    [
        (opened(2, "/work/x", "O_WRONLY|O_CREAT"), "ro", "noexec"),
        (opened(2, "/tmp/x", "O_RDWR"), "noexec", "ro"),
        (opened(2, "/dev/shm/x", "O_RDWR|O_CREAT"), "noexec", "ro"),
        (opened(2, "/dev/null", "O_WRONLY"), "ro", "ro"),
        (opened(2, "/", "O_WRONLY"), "ro", "ro"),  # a pipe
        (opened(2, "/work/x", "O_RDONLY|O_CREAT"), "ro", "noexec"),
        ([file(0, 2, "open", "openat2", "/tmp/x", result=3, detail="O_RDONLY")], "noexec", "ro"),
        ([file(0, 2, "open", "openat", "/tmp/x", result=-2, detail="O_WRONLY")], "ro", "ro"),
        ([file(0, 2, "mkdir", "mkdir", "/tmp/a/../b")], "noexec", "ro"),
        ([file(0, 2, "mkdir", "mkdir", "/tmp/b", result=-17)], "ro", "ro"),
        ([file(0, 2, "mkdir", "mkdir", "b")], "ro", "noexec"),
        ([*opened(2, "/tmp"), file(0, 2, "mkdir", "mkdirat", "b")], "noexec", "noexec"),
        ([file(0, 2, "rename", "rename", "/tmp/b", detail="/work/b")], "noexec", "noexec"),
        ([call(0, 2, "utimensat")], "noexec", "noexec"),
        (
            [file(0, 2, "link", "symlink", "/work", detail="/tmp/l"), file(0, 2, "mkdir", "mkdir", "/tmp/l/x")],
            "noexec",
            "noexec",
        ),
        # What a link of the run's own made of a name is not known.
        (
            [*opened(2, "/tmp/x"), file(0, 2, "link", "symlink", "/tmp", detail="/work/l")],
            "noexec",
            "noexec",
        ),
        # Written to elsewhere: into a mount of the request's, which work = "ro" would not let it have writable.
        (opened(2, "/data/x", "O_WRONLY"), "ro", "noexec"),
        (opened(2, "/tmp/" + "x" * 200, "O_WRONLY"), "ro", "noexec"),
    ],
)
def test_what_is_written_where(events, tmp, work):
    files = learnt(*events).policy.filesystem
    assert (files.tmp, files.work) == (tmp, work)


@pytest.mark.parametrize(
    ("events", "tmp", "work"),
    [
        ([event(0, "exec", 2, path="/work/a.out", argv=("a.out",))], "ro", "rw"),
        ([event(0, "exec", 2, path="./a.out", argv=("./a.out",))], "ro", "rw"),
        ([event(0, "exec", 2, path="/work/x.sh", argv=("/tmp/interpreter", "x.sh"))], "rw", "rw"),
        ([*opened(2, "/tmp/l.so"), call(0, 2, "mmap", 0, 1, 5, 2, 3, 0, result=4096)], "rw", "ro"),
        ([*opened(2, "/tmp/l.so"), call(0, 2, "mmap", 0, 1, 1, 2, 3, 0, result=4096)], "ro", "ro"),
        ([*opened(2, "/tmp/l.so"), call(0, 2, "mmap", 0, 1, 5, 0x22, -1 & 0xFFFFFFFF, 0, result=4096)], "ro", "ro"),
        (
            [*opened(2, "/tmp/l.so"), call(0, 2, "mmap", 0, 1, 1, 2, 3, 0, result=1), call(1, 2, "mprotect", 0, 1, 5)],
            "rw",
            "ro",
        ),
        # The descriptor is another file by then, or a copy of the first.
        (
            [
                *opened(2, "/tmp/l.so"),
                call(1, 2, "close", 3),
                *opened(2, "/usr/l.so"),
                call(2, 2, "mmap", 0, 1, 5, 2, 3, 0, result=1),
            ],
            "ro",
            "ro",
        ),
        ([*opened(2, "/tmp/l"), call(1, 2, "dup2", 3, 9, result=9), call(2, 2, "mmap", 0, 1, 5, 2, 9, 0)], "rw", "ro"),
        ([*opened(2, "/tmp/l"), fork(1, 2, 3), call(2, 3, "mmap", 0, 1, 5, 2, 3, 0), end(3, 3)], "rw", "ro"),
        ([call(0, 2, "memfd_create", result=3), call(1, 2, "mmap", 0, 1, 5, 1, 3, 0)], "ro", "ro"),
        # Nobody knows what it was opened on.
        ([*opened(2, "/tmp/l"), call(2, 2, "mmap", 0, 1, 5, 2, 7, 0)], "rw", "rw"),
        (
            [*opened(2, "/tmp/l"), call(1, 2, "close_range", 3, 0xFFFFFFFF, 0), call(2, 2, "mmap", 0, 1, 5, 2, 3, 0)],
            "rw",
            "rw",
        ),
    ],
)
def test_what_is_executed_where(events, tmp, work):
    files = learnt(*events).policy.filesystem
    assert (files.tmp, files.work) == (tmp, work)


def test_never_more_than_the_base_has():
    events = [*opened(2, "/tmp/x", "O_WRONLY"), *opened(2, "/work/x", "O_WRONLY"), event(0, "exec", 2, path="/tmp/x")]
    files = learnt(*events, base=SET.get("paranoid")).policy.filesystem
    assert (files.tmp, files.work) == ("noexec", "ro")
    basic = SET.get("basic")
    assert learnt(*events, base=basic).policy.filesystem == basic.filesystem


def test_mounted_paths_stay_where_they_were_used():
    base = SET.resolve_text(
        'extends = "moderate"\n[filesystem]\nread_only = ["/opt", "/srv"]\nread_write = ["/var/a", "/var/b", "/var/c"]'
    )
    events = [*opened(2, "/srv/x"), *opened(2, "/var/a/x", "O_WRONLY"), *opened(2, "/var/b/x")]
    files = learnt(*events, base=base).policy.filesystem
    assert (files.read_only, files.read_write) == (("/srv", "/var/b"), ("/var/a",))
    assert files.work == "ro"


def test_of_a_trace_with_gaps_files_stay_as_they_were():
    base = SET.get("moderate")
    for settings in ({"dropped": 3}, {"level": "summary"}):
        policy = learnt(call(0, 2, "read"), base=base, **settings).policy
        assert policy.filesystem == base.filesystem and "read" in policy.syscalls.allow


# Network and limits


def contact(kind: str, address: str, port: int, detail: str = "tcp"):
    return event(0, kind, 2, address=address, port=port, detail=detail)


FULL = replace(SET.get("moderate"), network=replace(SET.get("moderate").network, mode=NetworkMode.FULL))


def test_nobody_was_reached():
    for base, host_network in ((STRICT, False), (FULL, True)):
        network = learnt(call(0, 2, "read"), base=base, host_network=host_network).policy.network
        assert (network.mode, network.max, network.allow) == (NetworkMode.NONE, NetworkMode.NONE, ())
    # The loopback of a network of its own.
    assert learnt(contact("connect", "127.0.0.1", 80), base=FULL).policy.network.mode is NetworkMode.NONE


def test_addresses_that_were_reached():
    events = [
        contact("connect", "192.0.2.7", 443),
        contact("connect", "192.0.2.7", 443),
        contact("send", "2001:db8::1", 53, "udp"),
        contact("connect", "198.51.100.1", 0, "udp"),
        contact("connect", "203.0.113.9", 80, "tcp, denied"),
        contact("bind", "0.0.0.0", 0, "udp"),
        event(0, "connect", 2, address="/run/x", port=0),
    ]
    found = learnt(*events, base=FULL, host_network=True)
    network = found.policy.network
    assert (network.mode, network.max) == (NetworkMode.FILTERED, NetworkMode.FILTERED)
    assert network.allow == ("192.0.2.7:443", "[2001:db8::1]:53")
    assert any("may be another tomorrow" in note for note in found.notes)
    assert SET.check_text(write(found.policy, [])) == []


def test_a_summary_tells_addresses_too():
    summary = TraceSummary(
        "summary",
        True,
        syscalls={"connect": SyscallCount(1, 0)},
        addresses=(
            TracedAddress("connect", "tcp", "192.0.2.7", 443, 2, False),
            TracedAddress("connect", "tcp", "192.0.2.8", 443, 2, True),
        ),
    )
    seen = Observed(FULL)
    seen.add(summary, (), host_network=True)
    assert learn(FULL, seen, [USAGE], "x").policy.network.allow == ("192.0.2.7:443",)


def test_addresses_never_leave_those_of_the_base():
    base = SET.resolve_text(
        'extends = "strict"\n[network]\nmode = "filtered"\n'
        'allow = ["192.0.2.0/24:443", "198.51.100.7", "example.org:80", "[2001:db8::]/32"]'
    )
    events = [contact("connect", "192.0.2.7", 443), contact("connect", "2001:db8::9", 80)]
    network = learnt(*events, base=base, host_network=True).policy.network
    assert network.allow == ("192.0.2.7:443", "[2001:db8::9]:80")
    # Some name stands behind it.
    found = learnt(*events, contact("connect", "203.0.113.1", 80), base=base, host_network=True).policy
    assert found.network.allow == ("192.0.2.7:443", "[2001:db8::9]:80", "example.org:80")
    assert widened(base, found) == []


@pytest.mark.parametrize(
    "events",
    [
        [contact("bind", "0.0.0.0", 80)],
        [call(0, 2, "listen", 3, 1)],
        [contact("send", "192.0.2.1", 0, "icmp")],
    ],
)
def test_a_server_needs_the_network_that_it_had(events):
    found = learnt(*events, base=FULL, host_network=True)
    assert found.policy.network.mode is NetworkMode.FULL
    assert any(note.startswith("Network full, unbounded") for note in found.notes)


def test_limits_have_head_room():
    found = learnt(call(0, 2, "read"), usages=[USAGE, Usage(wall_seconds=0.1, cpu_user_seconds=0, cpu_system_seconds=0, memory_peak_bytes=1, pids_peak=9)])  # fmt: skip
    limits = found.policy.limits
    assert (limits.wall_seconds, limits.cpu_seconds, limits.memory, limits.pids) == (7, 3, 68 << 20, 18)
    largest = found.policy.limits_max
    assert (largest.wall_seconds, largest.memory, largest.pids) == (7, 68 << 20, 18)
    assert (limits.disk, largest.disk) == (STRICT.limits.disk, STRICT.limits_max.disk)
    assert "as strict has it: cpus, open_files, file_size, disk, inodes, output" in " ".join(found.notes)


def test_limits_have_a_least_and_a_most():
    tiny = Usage(0.001, 0.0, 0.0, 4096, 1)
    limits = learnt(call(0, 2, "read"), usages=[tiny]).policy.limits
    assert (limits.wall_seconds, limits.cpu_seconds, limits.memory, limits.pids) == (5, 2, 16 << 20, 4)
    huge = Usage(3000.0, 1.0, 1.0, 3 << 30, 400)
    found = learnt(call(0, 2, "read"), usages=[huge]).policy
    assert (found.limits.wall_seconds, found.limits.memory, found.limits.pids) == (3600, 4 << 30, 512)
    assert widened(STRICT, found) == []


def test_what_this_host_does_not_measure_stays():
    found = learnt(call(0, 2, "read"), usages=[USAGE, replace(USAGE, memory_peak_bytes=None)])
    assert found.policy.limits.memory == STRICT.limits.memory
    assert found.policy.limits_max.memory == STRICT.limits_max.memory
    assert "memory" in found.notes[-1]


# As a text


@pytest.mark.parametrize("name", SET.names())
def test_a_text_comes_to_the_same_however_it_is_written(name):
    base = SET.get(name)
    policy = learnt(*SOME, base=base).policy
    alone = SET.resolve_text(write(policy, ["by hand"]))
    assert differences(policy, alone) == [] and alone.extends == ""
    for parent in SET.names():
        text = write(policy, [], SET.get(parent))
        found = SET.resolve_text(text)
        assert found.extends == parent
        # Only a parent's threshold and its rules cannot be taken back.
        left = differences(policy, found)
        assert {one.table for one in left} <= {"response", "rules"} and {one.mark for one in left} <= {NARROWER}, text
        assert not widened(base, found)


def test_a_text_is_short_where_it_extends_what_the_runs_had():
    policy = learnt(*SOME).policy
    text = write(policy, ["one", "", "two"], STRICT)
    assert text.startswith('# one\n#\n# two\n\nname = "learnt"\nextends = "strict"\n')
    assert "[isolation]" not in text and "@network:ENOSYS" in text and len(text) < 2500
    assert write(policy, [], STRICT) == write(policy, [], STRICT)


def test_a_text_has_sizes_as_people_write_them():
    text = write(learnt(*SOME).policy, [])
    assert 'memory = "68M"' in text and "wall_seconds = 7\n" in text and "\ndeny = " not in text


EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda name, result, args: call(0, 2, name, *args, result=result),
            st.sampled_from(sorted(KNOWN_SYSCALLS)),
            st.sampled_from((0, 3, -1, -38, -97)),
            st.tuples(*[st.integers(0, 2**64 - 1) | st.integers(0, 20)] * 6),
        ),
        st.builds(
            lambda kind, name, path: file(0, 2, kind, name, path, result=3),
            st.sampled_from(("open", "mkdir", "rename", "link", "chmod", "chdir")),
            st.sampled_from(("openat", "mkdir", "symlink", "rename")),
            st.text(st.sampled_from("/.tmpworkdv\n\udcff"), max_size=12).map(lambda text: f"/{text}"),
        ),
        st.builds(contact, st.sampled_from(("connect", "send", "bind")), st.sampled_from(("::1", "192.0.2.1", "x")), st.integers(0, 65535)),
        st.builds(lambda path: event(0, "exec", 2, path=path, argv=(path,)), st.sampled_from(("/tmp/x", "x", "", "/usr/x"))),
    ),
    max_size=30,
)  # fmt: skip


@given(EVENTS, st.sampled_from(SET.names()), st.booleans(), st.booleans())
def test_never_wider_than_the_base(events, name, host_network, complete):
    base = SET.get(name)
    host_network = host_network and base.network.max is not NetworkMode.NONE
    settings = {"base": base, "host_network": host_network, "dropped": 0 if complete else 1}
    policy = learnt(*events, **settings).policy
    assert widened(base, policy) == []
    assert policy == learnt(*events, **settings).policy
    resolved = SET.resolve_text(write(policy, []))
    assert differences(policy, resolved) == []
    before, after = Actions(base.syscalls), Actions(policy.syscalls)
    seen = {one.syscall for one in events if one.kind == "syscall"}
    for call_name in SYSCALL_SETS["@file-write"] | SYSCALL_SETS["@mount"]:
        if after.call(call_name) == ALLOW:
            assert call_name in seen and before.call(call_name) == ALLOW
