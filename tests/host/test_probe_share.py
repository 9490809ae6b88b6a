"""What one run puts into the rings leaves room for what another does, however slow the reader: here nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor.linux.cgroup import Hierarchies, RunGroup
from supervisor.linux.host import cgroup_layout
from supervisor.model import Limits
from supervisor.policy_file import PolicySet
from supervisor.probes.engine import Probes, Seen, Watch
from supervisor.probes.layout import SYSCALL_SLOTS, Level
from supervisor.probes.load import open_probes
from supervisor.rules.detector import RuleSet
from supervisor.shipped import shipped_policy_dir

OPENS = "import sys\nfor n in range(int(sys.argv[1])): open('/dev/null').close()"


@dataclass
class Watched:
    """A run of the probes' alone: a group, and what is executed in it."""

    probes: Probes
    group: RunGroup
    watch: Watch

    def execute(self, argv: Sequence[str]) -> None:
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=self.group.unified.directory)
        try:
            subprocess.run(
                argv, check=True, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.write(procs, b"0") and None
            )
        finally:
            os.close(procs)

    def finish(self) -> Seen:
        return self.probes.finish(self.watch)


@pytest.fixture
def runs() -> Iterator[list[Watched]]:
    hierarchies = Hierarchies.create(cgroup_layout(), f"share-{os.getpid()}")
    try:
        probes, _ = open_probes(hierarchies.group, 2, hierarchies.unified)
        assert probes is not None
        groups = [RunGroup.create(hierarchies, f"run{number}", Limits()) for number in range(2)]
        try:
            # Without rules no file is looked at.
            needs = RuleSet(PolicySet(shipped_policy_dir()).get("strict")).needs
            yield [Watched(probes, group, probes.watch(group.identity, Level.FULL, needs=needs)) for group in groups]
        finally:
            for group in groups:
                group.kill()
                assert group.remove()
                group.close()
            probes.close()
    finally:
        hierarchies.remove()


@pytest.mark.parametrize("kind", ["calls", "files"])
def test_a_flood_leaves_room(runs: list[Watched], attacks: Path, kind: str) -> None:
    flooder, innocent = runs
    if kind == "calls":
        flooder.execute([str(attacks / "flood"), "1000000", "0"])
        innocent.execute([str(attacks / "flood"), "10000", "0"])
    else:
        flooder.execute([sys.executable, "-c", OPENS, "50000"])
        innocent.execute([sys.executable, "-c", OPENS, "500"])
    seen = innocent.finish()
    assert seen.dropped == 0
    assert sum(map(len, seen.calls)) == sum(seen.counts[: 2 * SYSCALL_SLOTS])
    seen = flooder.finish()
    assert seen.dropped > 0
    if kind == "calls":
        assert sum(map(len, seen.calls)) + seen.dropped == sum(seen.counts[: 2 * SYSCALL_SLOTS])
