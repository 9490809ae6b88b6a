"""The policies that somebody means: the daemon's, by name, or files. Without a daemon, those that ship with the supervisor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor import errors

if TYPE_CHECKING:
    from supervisor.client.result import Policy, PolicyCheck
    from supervisor.policy import Policy as Found


def all_policies() -> Sequence[Policy]:
    from supervisor.cli.connect import daemon

    if not _offline():
        with daemon() as client:
            return client.policies()
    shipped = _Shipped()
    return [shipped.policy(name) for name in shipped.names()]


def named_policy(name: str) -> Policy:
    """The policy called `name`. Raises NotFound."""
    from supervisor.cli.connect import daemon

    if _offline():
        return _Shipped().policy(name)
    with daemon() as client:
        return client.policy(name)


def check_text(text: str, name: str) -> PolicyCheck:
    """The verdict on a policy's text; `name` is what it is called where it does not say."""
    from supervisor.cli.connect import daemon

    if _offline():
        return _Shipped().check(text, name)
    with daemon() as client:
        return client.check_policy(text, name)


def policy_meant(asked: str, field: str) -> Policy:
    """By name, or of a file where `asked` has a / in it, ends in .toml or is -, as `run --policy` takes it.

    Raises NotFound for a name, InvalidRequest with line and problem for a file.
    """
    if asked != "-" and "/" not in asked and not asked.endswith(".toml"):
        return named_policy(asked)
    file = Path(asked)
    verdict = check_text(read_text(file, field), name_of(file))
    if verdict.policy is None:
        shown = [
            f"{file}:{one.line}: {one.message}" if one.line else f"{file}: {one.message}" for one in verdict.problems
        ]
        raise errors.InvalidRequest("; ".join(shown), reason="INVALID_POLICY", metadata={"file": asked})
    return verdict.policy


def in_force(policy: Policy) -> Found:
    """What the daemon said of a policy, as it can be compared and learnt from."""
    from supervisor.policy_file import PolicySet

    return PolicySet().resolve_text(policy.resolved_toml, f"policy {policy.name}", name=policy.name)


def read_text(file: Path, field: str) -> str:
    """The text of a policy's file; - is standard input. Raises InvalidRequest."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise errors.InvalidRequest(f"cannot read {file}: {why}", field=field) from error


def name_of(file: Path) -> str:
    """What the policy in a file is called where its text does not say; empty where the file has no such name."""
    return file.stem if file.suffix == ".toml" and file.stem.isprintable() else ""


def _offline() -> bool:
    from supervisor.cli.connect import listening, named

    return not named() and not listening()


class _Shipped:
    """The policies of this installation, as the client shows a daemon's."""

    def __init__(self) -> None:
        from supervisor.policy_file import PolicySet
        from supervisor.shipped import shipped_policy_dir

        self._set = PolicySet(shipped_policy_dir())

    def names(self) -> Sequence[str]:
        return self._set.names()

    def policy(self, name: str) -> Policy:
        return self._shown(self._set.get(name))

    def check(self, text: str, name: str) -> PolicyCheck:
        from supervisor.client.result import PolicyCheck as Check
        from supervisor.client.result import PolicyProblem

        problems = [PolicyProblem(each.line, each.key, each.message) for each in self._set.check_text(text, name=name)]
        return Check(tuple(problems), None if problems else self._shown(self._set.resolve_text(text, name=name)))

    def _shown(self, found: Found) -> Policy:
        from supervisor.client.result import Policy as Shown

        resolved = self._set.resolved_toml(found)
        return Shown(found.name, found.description, found.extends, found.toml, resolved, found.digest)
