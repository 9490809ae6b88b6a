"""Groups of processes under probes of their own, without a daemon: what the probes do is seen when nobody, or somebody else, reads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from supervisor.linux.cgroup import Hierarchies, RunGroup
from supervisor.linux.host import cgroup_layout
from supervisor.model import Limits
from supervisor.policy_file import PolicySet
from supervisor.probes.engine import Probes, Seen, Watch
from supervisor.probes.layout import Level
from supervisor.probes.load import open_probes
from supervisor.rules.detector import RuleSet
from supervisor.shipped import shipped_policy_dir


@dataclass
class Watched:
    """A run of the probes' alone: a group, and what is executed in it."""

    probes: Probes
    group: RunGroup
    watch: Watch

    def start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=self.group.unified.directory)
        try:
            return subprocess.Popen(argv, stdout=subprocess.PIPE, preexec_fn=lambda: os.write(procs, b"0") and None)
        finally:
            os.close(procs)

    def execute(self, argv: Sequence[str]) -> bytes:
        process = self.start(argv)
        output, _ = process.communicate()
        assert process.returncode == 0, argv
        return output

    def finish(self) -> Seen:
        return self.probes.finish(self.watch)


@contextmanager
def watched(count: int, level: Level = Level.FULL) -> Iterator[list[Watched]]:
    """So many, held to the rules of `strict`: without rules no file is looked at."""
    hierarchies = Hierarchies.create(cgroup_layout(), f"probed-{os.getpid()}")
    with ExitStack() as stack:
        stack.callback(hierarchies.remove)
        probes, features = open_probes(hierarchies.group, count, hierarchies.unified)
        assert probes is not None, features
        stack.callback(probes.close)
        needs = RuleSet(PolicySet(shipped_policy_dir()).get("strict")).needs
        made = []
        for number in range(count):
            group = RunGroup.create(hierarchies, f"run{number}", Limits())
            stack.callback(group.close)
            stack.callback(group.remove)
            stack.callback(group.kill)
            made.append(Watched(probes, group, probes.watch(group.identity, level, needs=needs)))
        yield made
