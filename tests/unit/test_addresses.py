"""Entries of addresses made rules: what the kernel would decide, compared with a plain reading of the entries."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import InvalidRequest
from supervisor.probes.addresses import AddressRules, look_up, make_rules, name_servers
from supervisor.probes.layout import ADDRESS_KEY, ADDRESS_RULE_HEAD, PORT_RULE

NAMES = {"db.example": ["10.1.2.3", "fd00::3"]}


def rules(allow: Sequence[str], deny: Sequence[str] = (), deny_rest: bool = True) -> AddressRules:
    return make_rules(allow, deny, deny_rest, NAMES.__getitem__)


def allowed(found: AddressRules, address: str, port: int) -> bool:
    """As the kernel does: the longest prefix, then the first rule whose ports fit, else the rest."""
    plain = ipaddress.ip_address(address)
    packed = plain.packed if plain.version == 6 else b"\0" * 10 + b"\xff\xff" + plain.packed
    best: tuple[int, bytes] | None = None
    for key, value in found.entries(7):
        prefix, slot, network = ADDRESS_KEY.unpack(key)
        assert slot == 7
        bits = prefix - 32
        shift = 128 - bits
        if int.from_bytes(packed) >> shift == int.from_bytes(network) >> shift and (best is None or bits > best[0]):
            best = (bits, value)
    if best is not None:
        count, _ = ADDRESS_RULE_HEAD.unpack_from(best[1])
        for index in range(count):
            first, last, deny = PORT_RULE.unpack_from(best[1], ADDRESS_RULE_HEAD.size + index * PORT_RULE.size)
            if first <= port <= last:
                return not deny
    return not found.deny_rest


@pytest.mark.parametrize(
    ("allow", "deny", "address", "port", "expected"),
    [
        (["10.0.0.1:80"], [], "10.0.0.1", 80, True),
        (["10.0.0.1:80"], [], "10.0.0.1", 81, False),
        (["10.0.0.1:80"], [], "10.0.0.2", 80, False),
        (["10.0.0.1:80"], [], "::ffff:10.0.0.1", 80, True),
        (["10.0.0.0/8"], [], "10.255.0.1", 1, True),
        (["10.0.0.0/8:*"], ["10.0.0.5:22"], "10.0.0.5", 22, False),
        (["10.0.0.0/8"], ["10.0.0.5:22"], "10.0.0.5", 443, True),
        (["10.0.0.5"], ["10.0.0.0/8"], "10.0.0.5", 1, True),
        (["10.0.0.0/8"], ["10.0.0.0/8:25"], "10.1.1.1", 25, False),
        (["[fd00::1]:443"], [], "fd00::1", 443, True),
        (["[fd00::]/16"], [], "fd00:1::9", 9, True),
        (["*:443"], [], "192.0.2.1", 443, True),
        (["*:443"], [], "2001:db8::1", 443, True),
        (["*:443"], ["169.254.0.0/16"], "169.254.169.254", 443, False),
        (["db.example:5432"], [], "10.1.2.3", 5432, True),
        (["db.example:5432"], [], "fd00::3", 5432, True),
        (["db.example:5432"], [], "fd00::3", 5433, False),
        ([], [], "127.0.0.1", 1, False),
    ],
)
def test_filtered(allow: list[str], deny: list[str], address: str, port: int, expected: bool) -> None:
    assert allowed(rules(allow, deny), address, port) is expected


def test_without_a_filter_only_what_is_denied_is() -> None:
    found = rules([], ["169.254.0.0/16", "*:25"], deny_rest=False)
    assert not allowed(found, "169.254.169.254", 80) and not allowed(found, "192.0.2.1", 25)
    assert allowed(found, "192.0.2.1", 80)


def test_names_come_with_the_means_to_look_them_up() -> None:
    found = rules(["db.example:1"])
    for server in name_servers():
        assert allowed(found, server, 53)
    plain = rules(["10.9.9.9:1"])
    assert not any(allowed(plain, server, 53) for server in name_servers())


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        (["*.example.com:443"], "pattern of names"),
        (["no-such-name.invalid:1"], "cannot be looked up"),
        (["10.0.0.0/99"], "10.0.0.0"),
        (
            [f"10.0.0.{n}" for n in range(256)] * 5 + [f"10.1.{n}.{m}" for n in range(4) for m in range(250)],
            "more than 1024",
        ),
        ([f"10.0.0.1:{n}" for n in range(1, 40)], "more than 32"),
    ],
)
def test_what_cannot_be_held_is_refused(allow: list[str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        make_rules(allow, (), True, look_up)
    assert caught.value.field == "allow"


NETWORKS = st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1", "*", "10.2.0.0/15", "10.1.1.1/32"])
ENTRIES = st.lists(
    st.builds(lambda network, port: f"{network}{port}", NETWORKS, st.sampled_from(["", ":1", ":2", ":*"])), max_size=4
)


def by_reading(allow: list[str], deny: list[str], address: str, port: int, deny_rest: bool) -> bool:
    """The nearest entry that speaks of address and port; of two equally near ones the denial."""
    best = (-1, False, not deny_rest)
    for entries, denies in ((allow, False), (deny, True)):
        for entry in entries:
            host, _, ports = entry.partition(":")
            network = ipaddress.ip_network("0.0.0.0/0" if host == "*" else host)
            bits = -0.5 if host == "*" else network.prefixlen
            if ipaddress.ip_address(address) in network and ports in ("", "*", str(port)):
                best = max(best, (bits, denies, not denies))
    return best[2]


@settings(max_examples=300, deadline=None)
@given(
    ENTRIES,
    ENTRIES,
    st.sampled_from(["10.1.1.1", "10.1.1.2", "10.1.9.9", "10.9.9.9", "10.3.0.1", "11.0.0.1"]),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_kernels_way_is_the_plain_reading(
    allow: list[str], deny: list[str], address: str, port: int, deny_rest: bool
) -> None:
    found = make_rules(allow, deny, deny_rest, list)
    assert allowed(found, address, port) is by_reading(allow, deny, address, port, deny_rest)
