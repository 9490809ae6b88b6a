"""Every default rule: what fires it, by every way, its innocent neighbours, and what follows."""

from __future__ import annotations

import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.model import RunResult
from supervisor.policy import Rule
from supervisor.policy_file import PolicySet
from supervisor.run_events import Output
from supervisor.shipped import shipped_policy_dir
from supervisor.v1 import run_pb2
from tests.host.daemon_fixture import TIME_FACTOR, Daemon, LiveRun, fewer, scaled, spec
from tests.host.rule_cases import CASES, FIRES, FLIPPING, NEIGHBOURS, PYTHON, Case, py, sh
from tests.host.test_network_filter import Peer

RULES: dict[str, Rule] = {rule.name: rule for rule in PolicySet(shipped_policy_dir()).get("strict").rules}


UNBOUND = 'name = "unbound"\nextends = "basic"\nrule_sets = ["default"]\n'


def patient(policy: str = "strict") -> str:
    """`policy`, with as much more time for what counts as this machine is slower."""
    text = (shipped_policy_dir() / "rules" / "default.toml").read_text()
    tables = [
        f'[[rules]]\nname = "{rule["name"]}"\non = {rule["on"]!r}\nmatch = {{ {match(rule)} }}\nseverity = "{rule["severity"]}"\n'
        f'action = "{rule["action"]}"\ncount = {rule.get("count", 1)}\nseconds = {rule["seconds"] * TIME_FACTOR}\n'
        f'distinct = {rule.get("distinct", [])!r}\nnear = "{rule.get("near", "")}"\n'
        for rule in tomllib.loads(text)["rules"]
        if "seconds" in rule
    ]
    return f'extends = "{policy}"\n' + "".join(tables)


def match(rule: dict[str, dict[str, object]]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in rule.get("match", {}).items())


def execute(supervisor: Supervisor, argv: object, **options: object) -> RunResult:
    options.setdefault("policy", "strict" if TIME_FACTOR == 1 else patient())
    return supervisor.execute(list(argv), timeout=scaled(60), **options)  # type: ignore[call-overload, arg-type]


def test_every_default_rule_is_tried() -> None:
    elsewhere = {
        "process-memory-written",
        "credentials-risen",
        "shell-on-socket",
        "metadata-service",
        "link-local",
        "private-network",
        "mail",
    }
    assert set(RULES) == set(FIRES) | elsewhere
    assert set(NEIGHBOURS) == set(FIRES) | {"credentials-risen"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_it_fires(supervisor: Supervisor, case: Case) -> None:
    # `strict` has no memory files where they could be executed.
    options = {"policy": UNBOUND} if case.rule in ("exec-from-memory", "memory-file-mapped") else {}
    result = execute(supervisor, case.argv, **options)
    rule = RULES[case.rule]
    assert result.trace.rules.get(case.rule), (result.detail, result.stderr, result.trace.rules)
    found = [one for one in result.violations if one.rule == case.rule]
    if rule.action == "log":
        assert not found and result.outcome == "exited"
        return
    assert found and {one.action for one in found} == {rule.action}
    assert found[0].kind in rule.on and found[0].severity == rule.severity
    assert found[0].pid > 1 and found[0].exe.startswith("/") and time.time() - 600 < found[0].time < time.time() + 1
    assert (result.outcome == "violation") == (rule.action == "kill")
    if rule.action == "kill":
        assert case.rule in result.detail
    assert supervisor.runs(limit=1)[0].violations == result.violations


@pytest.mark.parametrize("rule", NEIGHBOURS)
def test_its_neighbour_does_not(supervisor: Supervisor, rule: str) -> None:
    result = execute(supervisor, NEIGHBOURS[rule])
    assert result.outcome == "exited", (result.detail, result.stderr)
    assert rule not in result.trace.rules
    assert not result.violations


def test_a_socket_that_is_there_at_an_exec(supervisor: Supervisor) -> None:
    policy = 'extends = "strict"\n[[rules]]\nname = "reverse-shell"\non = "dup"\naction = "off"\n'
    argv = next(iter(FIRES["reverse-shell"].values()))
    moved = [argv[0], "-c", argv[2] + "\nos.execv('/bin/cat', ['cat'])"]
    result = supervisor.execute(moved, policy=policy, timeout=scaled(30))
    assert result.outcome == "violation"
    (one,) = result.violations
    assert (one.rule, one.kind, one.path) == ("shell-on-socket", "exec", "/usr/bin/cat")


def test_a_memory_file_under_any_name(supervisor: Supervisor) -> None:
    """Where the kernel cannot forbid them (before 6.3) they are seen; where it can, nothing is executed."""
    memory = "import os\nfd = os.memfd_create('innocent')\nos.write(fd, open('/bin/true', 'rb').read())\n"
    for text in (
        "os.execv(f'/proc/self/fd/{fd}', ['x'])",
        "os.symlink(f'/proc/{os.getpid()}/fd/{fd}', 'y'); os.execv('./y', ['y'])",
    ):
        result = supervisor.execute([PYTHON, "-c", memory + text], policy=UNBOUND, timeout=scaled(30))
        if b"Permission denied" not in result.stderr:
            assert "exec-from-memory" in [one.rule for one in result.violations], (text, result.stderr)
            assert result.outcome == "violation"


def test_process_memory_by_a_symlink(supervisor: Supervisor) -> None:
    """Here it succeeds, for the host's /proc can be written to: what counts is where the name leads."""
    result = supervisor.execute(
        py("import os; os.symlink('/proc/self/mem', 'x'); open('x', 'r+b')"), policy=UNBOUND, timeout=scaled(30)
    )
    assert result.outcome == "violation"
    assert [(one.rule, one.path.split("/")[-1]) for one in result.violations] == [("process-memory-written", "mem")]


def test_what_is_opened_counts_not_what_memory_holds(supervisor: Supervisor) -> None:
    count = fewer(4000, 200)
    result = supervisor.execute([PYTHON, "-c", FLIPPING, str(count)], policy="strict", timeout=scaled(60))
    assert result.exit_code == 0, result.stderr
    secrets = int(result.stdout)
    opened = [one for one in result.violations if one.rule == "keys-read"]
    assert secrets and min(secrets, 1990) <= len(opened), (secrets, len(opened))
    assert all(one.path.endswith("/.ssh/key") for one in opened)
    made = 1  # by the program itself, to write it
    assert result.trace.rules["keys-read"] == secrets + made


def test_a_user_that_is_not_the_runs(daemon: Daemon) -> None:
    """As after an exploit of the kernel: a process of the run is root of a sudden. Here one of the test's stands for it."""
    run = LiveRun(daemon, spec(*sh("sleep 60")))
    run_id = run.wait_started()
    text = "import os, sys; sys.stdin.read(1); os.getpid(); os.write(1, b'alive')"
    stranger = subprocess.Popen([PYTHON, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    (group,) = [found for found in Path("/sys/fs/cgroup").rglob(run_id) if (found / "cgroup.kill").exists()]
    (group / "cgroup.procs").write_text(str(stranger.pid))
    said, _ = stranger.communicate(b"x")
    assert (stranger.returncode, said) == (-signal.SIGKILL, b"")
    result = run.finish()
    assert result.outcome == run_pb2.OUTCOME_VIOLATION
    assert [one.rule for one in result.violations] == ["credentials-risen"]


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        ("metadata-service", "169.254.169.254", 80),
        ("metadata-service", "fd00:ec2::254", 80),
        ("metadata-service", "::ffff:169.254.169.254", 80),
        ("link-local", "169.254.1.1", 80),
        ("private-network", "10.1.2.3", 443),
        ("private-network", "192.168.0.1", 22),
        ("mail", "203.0.113.1", 25),
        ("mail", "2001:db8::1", 587),
    ],
)
@pytest.mark.parametrize("way", ["connect", "sendto"])
def test_addresses_of_the_network_set(supervisor: Supervisor, rule: str, host: str, port: int, way: str) -> None:
    """Filtered, so that nothing leaves this machine even where the rule should fail."""
    policy = 'extends = "strict"\n[network]\nmax = "filtered"\n'
    kind = "STREAM" if way == "connect" else "DGRAM"
    act = f"s.connect(({host!r}, {port}))" if way == "connect" else f"s.sendto(b'x', ({host!r}, {port}))"
    text = f"import socket; s = socket.socket(socket.AF_INET{'6' * (':' in host)}, socket.SOCK_{kind}); {act}"
    result = supervisor.execute(py(text), policy=policy, net="filtered", timeout=scaled(30))
    assert b"Operation not permitted" in result.stderr
    found = [(one.rule, one.action, one.port) for one in result.violations]
    assert (rule, "deny", port) in found and "network" not in {name for name, _, _ in found}


def address_rule(action: str, port: int) -> str:
    return (
        'extends = "moderate"\n[[rules]]\nname = "mine"\non = ["connect", "send"]\nmatch.address = "127.0.0.0/8"\n'
        f'match.port = {port}\naction = "{action}"\n'
    )


SEND = "import socket,sys;s=socket.socket(type=socket.SOCK_DGRAM);s.sendto(b'x',('127.0.0.1',int(sys.argv[1])));print('sent')"
CONNECT = "import socket,sys;socket.create_connection(('127.0.0.1',int(sys.argv[1])));print('sent')"


@pytest.mark.parametrize("action", ["deny", "kill"])
@pytest.mark.parametrize("program", [CONNECT, SEND], ids=["tcp", "udp"])
def test_an_address_that_a_rule_forbids_is_not_reached(supervisor: Supervisor, action: str, program: str) -> None:
    peer = Peer()
    try:
        for port, forbidden in ((peer.port, True), (peer.port, False)):
            policy = address_rule(action, port if forbidden else 1)
            result = supervisor.execute([*py(program), str(port)], policy=policy, net="full", timeout=scaled(30))
            if not forbidden:
                assert result.outcome == "exited" and not result.violations and b"sent" in result.stdout
                continue
            assert b"sent" not in result.stdout and peer.came == 0
            assert [(one.rule, one.action, one.port) for one in result.violations] == [("mine", action, port)]
            assert result.outcome == ("violation" if action == "kill" else "exited")
    finally:
        peer.close()


def test_a_system_call_of_a_rule_has_no_effect(supervisor: Supervisor) -> None:
    rule = 'extends = "strict"\n[[rules]]\nname = "no-links"\non = "syscall"\nmatch.syscall = ["symlink", "symlinkat"]\naction = "{}"\n'
    argv = sh("ln -s x y; ls -l y")
    killed = supervisor.execute(argv, policy=rule.format("kill"), timeout=scaled(30))
    assert killed.outcome == "violation"
    assert [(one.rule, one.action, one.syscall) for one in killed.violations] == [("no-links", "kill", "symlinkat")]
    denied = supervisor.execute(argv, policy=rule.format("deny"), timeout=scaled(30))
    assert b"Operation not permitted" in denied.stderr and denied.outcome == "exited"
    assert [(one.rule, one.action, one.syscall) for one in denied.violations] == [("no-links", "deny", "symlinkat")]
    alerted = supervisor.execute(argv, policy=rule.format("alert"), timeout=scaled(30))
    assert alerted.exit_code == 0
    assert [(one.rule, one.action, one.syscall) for one in alerted.violations] == [("no-links", "alert", "symlinkat")]


def test_no_instruction_after_what_a_number_decides(supervisor: Supervisor) -> None:
    """The probes' own signal, not the daemon's: the thread is gone before its call returns."""
    text = "import os\nf = open('x', 'w')\nos.write(1, b'before')\ntry: os.fchmod(f.fileno(), 0o4755)\nfinally: os.write(1, b'after')"
    for _ in range(fewer(20, 3)):
        result = supervisor.execute(py(text), policy="strict", timeout=scaled(30))
        assert (result.outcome, result.stdout) == ("violation", b"before")


def test_the_threshold(supervisor: Supervisor) -> None:
    text = 'extends = "strict"\n[response]\nviolation_threshold = {}\n'
    argv = sh("for n in 1 2 3; do cat /etc/shadow; done; sleep 60")
    result = supervisor.execute(argv, policy=text.format(3), timeout=scaled(60))
    assert result.outcome == "violation" and "response.violation_threshold" in result.detail
    assert [one.action for one in result.violations] == ["alert", "alert", "alert", "kill"]
    spared = supervisor.execute(sh("cat /etc/shadow"), policy=text.format(3), timeout=scaled(60))
    assert spared.outcome == "exited" and len(spared.violations) == 1


def test_violations_are_told_while_the_run_lives(supervisor: Supervisor) -> None:
    seen = []
    for event in supervisor.run(sh("cat /etc/shadow; sleep 0.5; echo late"), policy="strict", timeout=scaled(30)):
        late = isinstance(event, Output) and event.data == b"late\n"
        seen.append("late" if late else type(event).__name__)
    assert seen.count("ViolationSeen") == 1
    assert seen.index("ViolationSeen") < seen.index("late")


def test_rules_hold_with_the_trace_off(supervisor: Supervisor) -> None:
    policy = 'extends = "strict"\n[trace]\nlevel = "off"\n'
    result = supervisor.execute(sh("cat /etc/shadow; touch x; chmod u+s x"), policy=policy, timeout=scaled(30))
    assert result.outcome == "violation" and result.trace.level == "off" and not result.trace.syscalls
    assert [one.rule for one in result.violations] == ["secrets-read", "setuid-bit"]


def test_a_thousand_violations_arrive(supervisor: Supervisor) -> None:
    count = fewer(1000, 50)
    text = "import sys\nfor n in range(int(sys.argv[1])):\n  try: open(f'/run/secrets/{n}')\n  except OSError: pass"
    result = supervisor.execute([*py(text), str(count)], policy="strict", timeout=scaled(60))
    assert [one.path for one in result.violations] == [f"/run/secrets/{n}" for n in range(count)]
    assert result.trace.complete and result.trace.dropped == 0


def test_more_than_are_kept_are_counted(supervisor: Supervisor) -> None:
    text = "for n in range(2500):\n  try: open('/etc/shadow')\n  except OSError: pass"
    result = supervisor.execute(py(text), policy="strict", timeout=scaled(60))
    assert len(result.violations) == 2000 and result.trace.rules["secrets-read"] == 2500
    assert not result.trace.complete and result.trace.dropped == 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('on = "opne"\n', "did you mean 'open'"),
        ('on = "open"\nmatch.paht = "/x"\n', "match.paht"),
        ('on = "open"\n', "names the files"),
        ('on = "open"\nmatch.path = "/*/**"\n', "one name without wildcards"),
        ('on = "mprotect"\naction = "deny"\n', "cannot be denied by a rule"),
        ('on = "open"\nmatch.path = "/x/*/y"\naction = "deny"\n', "cannot be denied; what can has the form"),
        ('on = "connect"\nmatch.address = "10.0.0.0/99"\n', "match.address"),
        ('on = "connect"\nmatch.port = "99999"\n', "no range of ports"),
        ('on = "syscall"\nmatch.syscall = "opne"\n', "unknown system call"),
        ('on = "fork"\ncount = 0\n', "count"),
        ('on = "fork"\nnear = "nobody"\n', "no rule here"),
        ('on = "exec"\nmatch.file = "nowhere"\n', "is none of"),
    ],
)
def test_rules_that_cannot_be(supervisor: Supervisor, text: str, words: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=words):
        supervisor.execute(["true"], policy=f'extends = "strict"\n[[rules]]\nname = "bad"\n{text}')


def test_a_pattern_that_would_explode_does_not(supervisor: Supervisor) -> None:
    """Quadratic at worst; a regular expression of its like would take years."""
    pattern, argument = "*a" * 200 + "*b", "a" * 200
    policy = f'extends = "strict"\n[[rules]]\nname = "bad"\non = "exec"\nmatch.argv = "{pattern}"\naction = "kill"\n'
    deep = "/".join(["**", "a"] * 40) + "/b"
    policy += f'[[rules]]\nname = "deep"\non = "open"\nmatch.path = "{deep}"\naction = "kill"\n'
    began = time.monotonic()
    result = supervisor.execute(["/bin/echo", argument], policy=policy, timeout=scaled(30))
    assert result.outcome == "exited" and time.monotonic() - began < scaled(20)


def test_rule_sets_are_files(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/own.toml").write_text(
        '[[rules]]\nname = "a"\non = "fork"\n[[rules]]\nname = "b"\non = "memfd"\n'
    )
    (tmp_path / "p.toml").write_text(
        'rule_sets = ["own"]\nnetwork.mode = "full"\n[[rules]]\nname = "a"\non = "fork"\naction = "off"\n'
    )
    assert [rule.name for rule in PolicySet(tmp_path).get("p").rules] == ["b"]
    (tmp_path / "p.toml").write_text('rule_sets = ["owm"]\n')
    with pytest.raises(errors.InvalidRequest, match="did you mean 'own'"):
        PolicySet(tmp_path)
    (tmp_path / "rules/own.toml").write_text("[limits]\npids = 1\n")
    with pytest.raises(errors.InvalidRequest, match="and nothing else"):
        PolicySet(tmp_path)


def test_what_led_to_a_violation_is_kept(supervisor: Supervisor) -> None:
    """At the level summary: the last calls as they stood when it came to light, and those at the end of the run."""
    text = (
        "import os, time\nfor n in range(3000): os.getppid()\ntry: open('/etc/shadow')\nexcept OSError: pass\n"
        "time.sleep(0.5)\nfor n in range(3000): os.getuid()\nos.chmod('.', 0o4755)"
    )
    result = supervisor.execute(py(text), policy="strict", timeout=scaled(60))
    assert result.trace.level == "summary" and result.outcome == "violation"
    events = list(supervisor.trace(result.run_id))
    calls = [(event.syscall, event.result) for event in events if event.kind == "syscall"]
    assert ("openat", -2) in calls and calls[-1][0] in ("chmod", "fchmodat")
    # Of each moment what was just before it.
    assert 100 < sum(name == "getppid" for name, _ in calls) < 512
    assert 400 < sum(name == "getuid" for name, _ in calls) < 512
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert {"exec", "open"} <= {event.kind for event in events}
    found = list(supervisor.search_traces(run_id=result.run_id, path="/etc/shadow"))
    assert found, "a search finds it too"


def test_nothing_is_kept_of_a_run_without_a_violation(supervisor: Supervisor) -> None:
    result = supervisor.execute(["true"], policy="strict", timeout=scaled(30))
    with pytest.raises(errors.NotFound, match="violated nothing"):
        list(supervisor.trace(result.run_id))
