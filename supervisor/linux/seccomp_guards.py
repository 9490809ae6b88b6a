"""The %guards (syscall_sets.GUARDS) as rules on arguments: which values of which call each of them refuses.

The kernel reads an int argument from the low half of its register, and so do these rules, on a little-endian machine.
Where a rule lists what is fine and refuses the rest, anything in the high half belongs to the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from supervisor.linux.seccomp_bpf import ARGUMENTS_OFFSET, JEQ, JGT, JSET, WORD, Condition

Rule = tuple[str, tuple[Condition, ...]]
"""A call, refused when all of the conditions hold."""

UNREADABLE: Mapping[str, str] = {"%namespaces": "clone3", "%setid": "openat2"}
"""Guard -> a call whose flags or modes lie in memory, where no filter can look: the C library falls back to the older one."""


def guard_rules(guard: str) -> Iterator[Rule]:
    """What a guard refuses."""
    if guard == "%namespaces":
        yield "clone", (_any_bit(0, _CLONE_NEW),)
    elif guard == "%terminal":
        yield "ioctl", (_among(1, _TIOCSTI, _TIOCLINUX),)
    elif guard == "%setid":
        yield from _setid_rules()
    elif guard == "%devices":
        for call, mode in (("mknod", 1), ("mknodat", 2)):
            yield call, (_among(mode, _S_IFCHR, _S_IFBLK, mask=_S_IFMT),)
    elif guard == "%sockets":
        yield from _socket_rules()
    elif guard == "%netlink":
        yield "socket", (_among(0, _AF_NETLINK),)
    elif guard == "%raw-sockets":
        yield "socket", (_among(0, _AF_PACKET),)
        # The kernel takes (AF_INET, SOCK_PACKET) for a packet socket (net/socket.c).
        yield "socket", (_among(0, _AF_INET, _AF_INET6), _among(1, _SOCK_RAW, _SOCK_PACKET, mask=_SOCK_TYPE_MASK))
    elif guard == "%socket-filters":
        # Their code comes out of one budget of the whole host (net.core.bpf_jit_limit), which every run's own filter needs.
        yield "setsockopt", (_among(1, _SOL_SOCKET), _among(2, *_SO_ATTACH))
    elif guard == "%multicast":
        # The kernel sends the report of a group itself, past every hook on the socket's own packets.
        yield "setsockopt", (_among(1, _IPPROTO_IP), _among(2, *_IP_JOINS, *_JOINS))
        yield "setsockopt", (_among(1, _IPPROTO_IPV6), _among(2, *_IPV6_JOINS, *_JOINS, *_IPV6_HEADERS))
    elif guard == "%personality":
        yield "personality", (_no_bit(0, _QUERY_BIT), _any_bit(0, _WEAK_PERSONA))
        # 0xffffffff only asks; any other value with its highest bit sets what the rest says.
        yield "personality", (_any_bit(0, _QUERY_BIT), _outside(0, WORD))
    elif guard == "%realtime":
        policies = (_SCHED_FIFO, _SCHED_RR, _SCHED_DEADLINE)
        yield "sched_setscheduler", (_among(1, *policies, mask=WORD & ~_SCHED_RESET_ON_FORK),)


_CLONE_NEW = 0x80 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17
_SOCK_TYPE_MASK, _SOCK_RAW, _SOCK_RDM, _SOCK_SEQPACKET, _SOCK_DCCP, _SOCK_PACKET = 0xF, 3, 4, 5, 6, 10
_IPPROTO_ICMPV6 = 58
# linux/in.h and linux/in6.h: groups joined, of a socket or a source; headers that say by which way a packet goes.
_IPPROTO_IP, _IPPROTO_IPV6 = 0, 41
_IP_JOINS, _IPV6_JOINS, _JOINS = (35, 39, 41), (20, 27), (42, 46, 48)
_IPV6_HEADERS = (54, 55, 57, 59)
_SOL_SOCKET = 1
_SO_ATTACH = (26, 50, 51, 52)  # FILTER, BPF, REUSEPORT_CBPF, REUSEPORT_EBPF
_S_ISUID, _S_ISGID, _S_IFMT, _S_IFCHR, _S_IFBLK = 0o4000, 0o2000, 0o170000, 0o020000, 0o060000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
_WEAK_PERSONA = 0x0040000 | 0x0100000 | 0x0200000 | 0x0400000  # NO_RANDOMIZE, MMAP_PAGE_ZERO, COMPAT_LAYOUT, RIE
_QUERY_BIT = 0x80000000
_SCHED_FIFO, _SCHED_RR, _SCHED_DEADLINE, _SCHED_RESET_ON_FORK = 1, 2, 6, 0x40000000


def _setid_rules() -> Iterator[Rule]:
    # mkdir is not here: the kernel ignores these bits in its mode (vfs_mkdir keeps S_IRWXUGO and S_ISVTX).
    setid = _S_ISUID | _S_ISGID
    for call, mode in (
        ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1), ("mknod", 1), ("mknodat", 2),
    ):  # fmt: skip
        yield call, (_any_bit(mode, setid),)
    for call, flags in (("open", 1), ("openat", 2)):
        # Without either flag the mode's register holds anything.
        yield call, (_any_bit(flags, _O_CREAT | _O_TMPFILE), _any_bit(flags + 1, setid))


def _socket_rules() -> Iterator[Rule]:
    yield "socket", (_any_high_bit(0),)
    yield "socket", (_outside(0, _AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK),)
    yield "socket", (_among(1, _SOCK_RDM, _SOCK_DCCP, _SOCK_PACKET, mask=_SOCK_TYPE_MASK),)
    # SCTP, L2TP, UDP-Lite, MPTCP: code that the kernel would load for us, and that few have tested.
    yield "socket", (_among(0, _AF_INET, _AF_INET6), _among(1, _SOCK_SEQPACKET, mask=_SOCK_TYPE_MASK))
    yield "socket", (_any_high_bit(2),)
    yield "socket", (Condition(_low(2), JGT, (_IPPROTO_ICMPV6,)),)
    yield "socketpair", (_any_high_bit(0),)
    yield "socketpair", (_outside(0, _AF_UNIX),)


def _low(argument: int) -> int:
    return ARGUMENTS_OFFSET + 8 * argument


def _among(argument: int, *values: int, mask: int = WORD) -> Condition:
    return Condition(_low(argument), JEQ, values, mask)


def _outside(argument: int, *values: int) -> Condition:
    return Condition(_low(argument), JEQ, values, negated=True)


def _any_bit(argument: int, bits: int) -> Condition:
    return Condition(_low(argument), JSET, (bits,))


def _no_bit(argument: int, bits: int) -> Condition:
    return Condition(_low(argument), JSET, (bits,), negated=True)


def _any_high_bit(argument: int) -> Condition:
    return Condition(_low(argument) + 4, JSET, (WORD,))
