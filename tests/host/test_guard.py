"""What rules deny of files has no effect, by whatever call and name; where the host cannot hold to it, that is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import Daemon, LiveRun, scaled, spec, wait_until
from tests.host.rule_cases import PYTHON
from tests.leaks import bpf_objects

TRIES = Path(__file__).with_name("guard_tries.py")
PATHS = ["/work/secret", "/work/kept/**", "/work/up/down/secret", "**/id_key"]
KINDS = ["open", "write", "unlink", "rename", "chmod", "link", "mkdir"]
Scratch = Callable[..., Path]


def policy(action: str = "deny", paths: list[str] = PATHS, kinds: list[str] = KINDS) -> str:
    rules = (
        f'[[rules]]\nname = "kept-away"\non = {kinds}\nmatch.path = {paths}\nseverity = "high"\naction = "{action}"\n'
    )
    tool = f'[[rules]]\nname = "no-tool"\non = "exec"\nmatch.path = "/work/tool"\naction = "{action}"\n'
    return f'extends = "strict"\n{rules}{tool}'


def make_work(scratch: Scratch) -> Path:
    work = scratch("work", uid=1000)
    (work / "kept/d").mkdir(parents=True)
    (work / "up/down").mkdir(parents=True)
    for name in ("secret", "secret2", "free", "kept/f", "up/down/secret", "up/down/other"):
        (work / name).write_text(Path(name).name)
    shutil.copy("/bin/true", work / "tool")
    shutil.copy(TRIES, work / "tries.py")
    for path in work.rglob("*"):
        os.chown(path, 1000, 1000)
    return work


def state_of(work: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(work)): (
            path.lstat().st_mode,
            path.lstat().st_nlink,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in work.rglob("*")
    }


def tried(supervisor: Supervisor, work: Path, *names: str, text: str) -> RunResult:
    argv = [PYTHON, "/work/tries.py", *names]
    return supervisor.execute(argv, policy=text, mounts=[f"{work}:/work:rw"], timeout=scaled(60))


@pytest.mark.host_only
def test_without_the_hooks_it_is_refused(supervisor: Supervisor) -> None:
    feature = next(one for one in supervisor.host().features if one.name == "bpf_lsm")
    if feature.available:
        assert supervisor.execute(["true"], policy=policy(), timeout=scaled(30)).outcome == "exited"
        return
    assert feature.detail and "lsm=" in feature.remedy
    with pytest.raises(errors.HostLacks, match="needs bpf_lsm, which this host lacks") as caught:
        supervisor.execute(["true"], policy=policy(), timeout=scaled(30))
    assert caught.value.metadata["feature"] == "bpf_lsm" and "lsm=" in caught.value.metadata["remedy"]
    # What kills acts when the call has been made, as ever.
    assert supervisor.execute(["true"], policy=policy("kill"), timeout=scaled(30)).outcome == "exited"


@pytest.mark.vm_only
def test_nothing_of_it_happens(supervisor: Supervisor, scratch: Scratch) -> None:
    work = make_work(scratch)
    before = state_of(work)
    result = tried(supervisor, work, text=policy())
    assert result.outcome == "exited", (result.detail, result.stderr)
    found = json.loads(result.stdout)
    assert {name: word for name, word in found["tries"].items() if word != "EPERM"} == {}
    assert {name: word for name, word in found["allowed"].items() if word != "ok"} == {}
    opened, denied, secrets = found["flipped"]
    assert opened and denied and not secrets, found["flipped"]
    assert state_of(work) == before
    assert result.enforcement.lsm == "denied files"
    ours = [one for one in result.violations if one.rule in ("kept-away", "no-tool")]
    # A descriptor for the name alone (O_PATH) is had: nothing can be read by it.
    alerts = [(one.syscall, one.path) for one in ours if one.action == "alert"]
    assert alerts == [("openat", "/work/secret")]
    violations = [one for one in ours if one.action != "alert"]
    assert {(one.rule, one.action) for one in violations} == {("kept-away", "deny"), ("no-tool", "deny")}
    # Each try once, with the path that it was really about.
    told = len(found["tries"]) + denied
    assert len(violations) == told, [(one.syscall, one.path) for one in violations][:60]
    assert all(one.pid > 1 and one.exe.startswith("/") for one in violations)
    assert {one.path for one in violations if one.rule == "kept-away"} == {
        "/work/secret", "/work/kept", "/work/kept/new", "/work/kept/x", "/work/kept/d", "/work/up", "/work/up/down/secret",
        "/work/id_key",
    }  # fmt: skip
    assert {one.kind for one in violations} == {"open", "write", "unlink", "rename", "chmod", "link", "mkdir", "exec"}


@pytest.mark.vm_only
@pytest.mark.parametrize("name", ["unlink", "exec"])
def test_what_kills_does_not_happen_either(supervisor: Supervisor, scratch: Scratch, name: str) -> None:
    work = make_work(scratch)
    before = state_of(work)
    result = tried(supervisor, work, name, text=policy("kill"))
    assert result.outcome == "violation" and not result.stdout, (result.detail, result.stdout)
    assert [(one.rule, one.action) for one in result.violations] == [
        ("no-tool" if name == "exec" else "kept-away", "kill")
    ]
    assert state_of(work) == before


@pytest.mark.vm_only
def test_only_the_run_whose_rules_say_so(daemon: Daemon, supervisor: Supervisor, scratch: Scratch) -> None:
    work = make_work(scratch)
    guarded = LiveRun(daemon, spec("cat", policy="", policy_toml=policy()))
    guarded.wait_started()
    other = tried(supervisor, work, "read", "link-from", "mkdir", text=policy(paths=["/work/other/**"]))
    assert set(json.loads(other.stdout)["tries"].values()) == {"ok"} and not other.violations
    assert (work / "secret").read_text() == "secret" and (work / "x").exists()
    guarded.close_stdin()
    guarded.finish()


@pytest.mark.vm_only
def test_no_mount_is_a_way_round(supervisor: Supervisor, scratch: Scratch) -> None:
    """Where no filter of calls forbids them, and with the capabilities of a user namespace."""
    work = make_work(scratch)
    work.chmod(0o777)
    rule = f'[[rules]]\nname = "kept-away"\non = "open"\nmatch.path = "{work}/secret"\naction = "%s"\n'
    mounted = f"mkdir {work}/m && unshare -Urm sh -c 'mount --bind {work} {work}/m && cat {work}/m/secret'"
    for action, said in (("deny", b""), ("alert", b"secret")):
        result = supervisor.execute(
            ["sh", "-c", f"cat {work}/secret; {mounted}"],
            policy=f'extends = "basic"\n{rule % action}',
            timeout=scaled(60),
        )
        assert result.stdout == said * 2, (action, result.stderr)
        assert [one.action for one in result.violations][:1] == [action]
        (work / "m").rmdir()


@pytest.mark.vm_only
def test_a_long_way_down_is_not_a_way_out(supervisor: Supervisor, scratch: Scratch) -> None:
    """Names of 255 bytes, and more directories than are looked at: what cannot be resolved is denied."""
    work = make_work(scratch)
    text = (
        "import os, errno\nos.chdir('/work/kept2')\n"
        "def at(depth, name):\n"
        "    for _ in range(depth):\n"
        "        os.mkdir(name); os.chdir(name)\n"
        "    try: open('x', 'w'); return 'ok'\n"
        "    except OSError as e: return errno.errorcode[e.errno]\n"
        "print(at(10, 'n' * 255), at(300, 'n'))"
    )
    (work / "kept2").mkdir()
    os.chown(work / "kept2", 1000, 1000)
    argv = [PYTHON, "-c", text]
    options = {"mounts": [f"{work}:/work:rw"], "timeout": scaled(60)}
    for paths, said in ((["/work/kept2/**"], "EPERM EPERM"), (PATHS, "ok EPERM")):
        result = supervisor.execute(argv, policy=policy(paths=paths, kinds=["write"]), **options)
        assert result.stdout.decode().strip() == said, result.stderr
        assert result.violations[-1].rule == "path.unresolved"
        shutil.rmtree(work / "kept2")
        (work / "kept2").mkdir()
        os.chown(work / "kept2", 1000, 1000)


@pytest.mark.vm_only
def test_nothing_stays_when_the_daemon_is_killed(make_daemon: Callable[..., Daemon]) -> None:
    before = bpf_objects()
    one = make_daemon("guard")
    with Supervisor(one.address) as client:
        assert client.execute(["true"], policy=policy(), timeout=scaled(60)).outcome == "exited"
    assert bpf_objects() - before
    one.kill()
    wait_until(lambda: not bpf_objects() - before, 10, "programs, maps and links are gone")
    one.start()  # which takes away what else it left
