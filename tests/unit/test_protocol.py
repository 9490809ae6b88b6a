"""The launcher's two sides agree: protocol.h against protocol.py, name by name and byte by byte."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor import plan
from supervisor.launcher import protocol
from supervisor.plan_root import OpKind

LAUNCHER = Path(protocol.__file__).parent
HEADER = (LAUNCHER / "protocol.h").read_text()


def enum(name: str) -> dict[str, int]:
    body = re.search(rf"enum {name} \{{(.*?)\}};", HEADER, re.S)
    assert body is not None, name
    pairs = re.findall(r"^\s*([A-Z0-9_]+) = ([0-9]+)(?: << ([0-9]+))?", body[1], re.M)
    return {key: int(value) << int(shift or 0) for key, value, shift in pairs}


def test_stages_have_the_same_names_and_numbers() -> None:
    stages = enum("stage")
    assert [f"STAGE_{name.upper()}" for name in protocol.STAGES] == sorted(stages, key=stages.__getitem__)
    assert sorted(stages.values()) == list(range(len(protocol.STAGES)))


@pytest.mark.parametrize(
    ("name", "prefix", "python"),
    [
        ("request_type", "REQUEST_", protocol.Request),
        ("reply_type", "REPLY_", protocol.ReplyKind),
        ("op_kind", "OP_", OpKind),
    ],
)
def test_enums_agree(name: str, prefix: str, python: type[OpKind]) -> None:
    assert enum(name) == {prefix + member.name: int(member) for member in python}


def test_namespace_flags_agree() -> None:
    flags = enum("plan_flags")
    for name, value in protocol._NAMESPACE_FLAGS.items():
        assert flags[f"PLAN_{name.upper()}_NS"] == value
    assert flags["PLAN_TERMINAL"] == protocol._TERMINAL
    assert flags["PLAN_NOTIFY"] == protocol._NOTIFY
    assert flags["PLAN_AS_ROOT"] == protocol._AS_ROOT
    assert flags["PLAN_KEYRING"] == protocol._KEYRING
    assert flags["PLAN_MEMFD_NOEXEC"] == protocol._MEMFD_NOEXEC
    assert flags["PLAN_NO_NEW_PRIVS"] == protocol._NO_NEW_PRIVS


def test_limits_agree() -> None:
    defined = dict(re.findall(r"^#define ([A-Z_]+)\s+(\S.*?)\s*(?:/\*.*)?$", HEADER, re.M))
    assert int(defined["MAX_FDS"]) == protocol.MAX_FDS
    assert int(defined["MAX_VIOLATIONS"]) == protocol.MAX_VIOLATIONS
    assert defined["MAX_PACKET"] == "(128u * 1024)" and protocol.MAX_PACKET == 128 * 1024
    assert defined["MAX_PLAN"] == "(16u * 1024 * 1024)" and protocol.MAX_PLAN == 16 * 1024 * 1024
    assert int(defined["PROTOCOL_MAGIC"].rstrip("u"), 16) == protocol.MAGIC
    # What a plan may ask for at most, the launcher must take.
    assert int(defined["MAX_MOUNTS"]) >= plan.MAX_MOUNTS + 16


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_structures_have_the_same_size(tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    source.write_text(
        '#include <stdio.h>\n#include <stddef.h>\n#include "protocol.h"\n'
        'int main(void) { printf("%zu %zu %zu %zu %zu %zu %zu %zu\\n", sizeof(struct request_header),'
        " sizeof(struct plan_wire), sizeof(struct rlimit_wire), sizeof(struct op_wire), sizeof(struct violation_wire),"
        " sizeof(struct reply), offsetof(struct reply, violations), offsetof(struct plan_wire, landlock_fs)); return 0; }\n"
    )
    subprocess.run(["gcc", "-I", str(LAUNCHER), "-o", str(tmp_path / "sizes"), str(source)], check=True)
    said = subprocess.run([str(tmp_path / "sizes")], check=True, capture_output=True, text=True).stdout.split()
    assert [int(number) for number in said] == [
        protocol.HEADER.size,
        protocol.PLAN.size,
        protocol.RLIMIT.size,
        protocol.OP.size,
        protocol.VIOLATION.size,
        protocol.REPLY_SIZE,
        protocol.REPLY.size,
        protocol.PLAN.size - 24,
    ]


def test_what_is_no_reply_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes, not"):
        protocol.decode_reply(b"x")
    with pytest.raises(ValueError, match="no reply"):
        protocol.decode_reply(b"\xff" * protocol.REPLY_SIZE)
