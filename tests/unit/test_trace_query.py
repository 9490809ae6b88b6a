"""What may be asked of the traces: patterns, addresses and times."""

from __future__ import annotations

import fnmatch

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import errors
from supervisor.client.units import parse_moment as client_moment
from supervisor.evidence import trace_query as query


def matches(pattern, text):
    found = query.parse_pattern(pattern, "path")
    answer = pc.match_substring_regex(pa.array([text]), found.regex)[0].as_py()
    if answer:
        assert text.startswith(found.prefix) and (not found.literal or text == found.prefix)
    return answer


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/etc/*", ["/etc/", "/etc/a", "/etc/a/b", "/etc/\n"], ["/etc", "/usr/etc/a"]),
        ("*passwd", ["passwd", "/etc/passwd"], ["/etc/passwd-"]),
        ("/a?c", ["/abc", "/aüc", "/a/c"], ["/ac", "/abbc"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x"]),
        ("[!a-c]x", ["dx"], ["ax"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("[]]x", ["]x"], ["x"]),
        ("[!]]x", ["ax"], ["]x"]),
        ("[a-]x", ["ax", "-x"], ["bx"]),
        (r"[\]x", ["\\x"], ["x"]),
        ("[[]x", ["[x"], ["]x"]),
        (r"\[x\*", ["[x*"], ["[xy"]),
        ("a.b+(c)$^|{1}", ["a.b+(c)$^|{1}"], ["aXb+(c)$^|{1}"]),
    ],
)
def test_patterns(pattern, yes, no):
    assert all(matches(pattern, text) for text in yes)
    assert not any(matches(pattern, text) for text in no)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("curl", ["curl", "/usr/bin/curl", "./curl"], ["/usr/bin/curl2", "/usr/curl/x", "xcurl"]),
        ("c*l", ["/usr/bin/curl", "cl"], ["/usr/c/url", "/c/l"]),
        ("c?l", ["/c-l"], ["c/l"]),
        ("c[!a]l", ["/cbl"], ["c/l", "cal"]),
        ("/usr/*", ["/usr/bin/curl"], ["usr/bin/curl"]),
        ("*/curl", ["/usr/bin/curl"], ["curl"]),
    ],
)
def test_patterns_of_programs(pattern, yes, no):
    regex = query.parse_program(pattern, "program").regex
    answers = pc.match_substring_regex(pa.array([*yes, *no]), regex).to_pylist()
    assert answers == [True] * len(yes) + [False] * len(no)


@given(st.text("ab/*?[]!-.", max_size=8), st.text("ab/*[]!-.\n", max_size=8))
def test_patterns_are_those_of_fnmatch(pattern, text):
    try:
        found = matches(pattern, text)
    except errors.InvalidRequest as refused:
        assert refused.field == "path"
        return
    assert found == fnmatch.fnmatchcase(text, pattern)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_a_pattern_or_refused(pattern, text):
    try:
        matches(pattern, text.encode("utf-8", "replace").decode())
    except errors.InvalidRequest as refused:
        assert refused.field == "path"


@pytest.mark.parametrize("pattern", ["[a", "[", "[!]", "[]", "a\\", "[z-a]", "[[:alpha:]]", "a" * 5000])
def test_malformed_patterns(pattern):
    with pytest.raises(errors.InvalidRequest, match=r"^path ?(:|has|ends)") as caught:
        query.parse_pattern(pattern, "path")
    assert caught.value.field == "path"


@pytest.mark.parametrize(
    ("text", "yes", "no", "port"),
    [
        ("192.0.2.1", ["192.0.2.1", "::ffff:192.0.2.1"], ["192.0.2.2", "::1", "", "/run/s"], None),
        ("192.0.2.1:80", ["192.0.2.1"], ["192.0.2.2"], 80),
        ("10.0.0.0/8", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0"], None),
        ("10.1.2.3/8", ["10.9.9.9"], ["11.0.0.0"], None),
        ("10.0.0.0/8:443", ["10.1.2.3"], ["11.0.0.0"], 443),
        ("::1", ["::1"], ["::2", "127.0.0.1"], None),
        ("2001:db8::/32", ["2001:db8::1"], ["2001:db9::1"], None),
        ("[::1]:53", ["::1"], ["::2"], 53),
        ("[2001:db8::/32]", ["2001:db8::1"], ["::1"], None),
        (":443", ["::1", "10.0.0.1", "anything"], [], 443),
    ],
)
def test_addresses(text, yes, no, port):
    found = query.parse_address(text, "address")
    assert found.port == port
    assert all(found.holds(address) for address in yes)
    assert not any(found.holds(address) for address in no)


@pytest.mark.parametrize(
    "text",
    ["example.com", "300.0.0.1", "10.0.0.0/33", "1.2.3.4:", "1.2.3.4:99999", "1.2.3.4:-1", "1.2.3.4:٣", "[::1", "::1]",
     "[]:1", ":", "[]", "1.2.3.4:5:6", "[::1]5", "fe80::1%eth0/64/3", "a b"],
)  # fmt: skip
def test_malformed_addresses(text):
    with pytest.raises(errors.InvalidRequest, match=r"^address") as caught:
        query.parse_address(text, "address")
    assert caught.value.field == "address"


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text):
    try:
        query.parse_address(text, "address")
    except errors.InvalidRequest as refused:
        assert refused.field == "address"


def test_words_times_and_limits():
    assert query.parse_syscalls(["openat", "openat", "syscall_999", "other"], "syscalls") == (
        "openat",
        "syscall_999",
        "other",
    )
    assert query.parse_kinds(["exec", "open"], "kinds") == ("exec", "open")
    assert query.parse_moment(1.5, "since") == 1_500_000_000
    assert (query.parse_limit(0, "limit"), query.parse_limit(7, "limit")) == (1000, 7)
    for refused, words in [
        (lambda: query.parse_syscalls(["opnat"], "syscalls"), "did you mean 'openat'"),
        (lambda: query.parse_syscalls(["read", *map("syscall_{}".format, range(64))], "syscalls"), "more than 64"),
        (lambda: query.parse_kinds(["Exec\n"], "kinds"), "no kind of event"),
        (lambda: query.parse_moment(float("nan"), "since"), "Unix seconds"),
        (lambda: query.parse_moment(-1, "since"), "Unix seconds"),
        (lambda: query.parse_moment(1e300, "since"), "Unix seconds"),
        (lambda: query.parse_limit(-1, "limit"), "limit is -1"),
    ]:
        with pytest.raises(errors.InvalidRequest, match=words) as caught:
            refused()
        assert caught.value.field


def test_times_as_people_write_them(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Europe/Vienna")
    time.tzset()
    now = 1_800_000_000.0
    for text, seconds in [
        ("2h", now - 7200),
        ("90s", now - 90),
        ("1.5d", now - 129_600),
        ("2w", now - 14 * 86_400),
        ("2026-11-24", 1_795_474_800.0),
        ("2026-11-24T12:30", 1_795_519_800.0),
        ("2026-11-24 12:30:00Z", 1_795_523_400.0),
        ("2026-11-24T12:30:00.5+02:00", 1_795_516_200.5),
        ("1795523400", 1_795_523_400.0),
        ("1795523400.25", 1_795_523_400.25),
        (" 3m ", now - 180),
    ]:
        assert client_moment(text, now) == seconds, text
    for text in ("", "yesterday", "5", "2 hours", "-2h", "2026-13-01", "h", "0001-01-01"):
        with pytest.raises(ValueError, match="is no time; write how long ago"):
            client_moment(text, now)
    monkeypatch.undo()
    time.tzset()
