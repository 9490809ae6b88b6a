"""`make violations`: every forbidden call of test_violations.py on this machine, as one table."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from supervisor.client import Supervisor
from tests.host.daemon_fixture import Daemon
from tests.host.hostile import compile_attacks
from tests.host.test_violations import ADMINISTRATION, EFFECTS, Shared, attempt


def main() -> int:
    base = Path(tempfile.mkdtemp(prefix="supervisor-test-"))
    base.chmod(0o755)
    table = Table(title="System calls under kill")
    for title in ("call", "effect", "after the call", "outcome", "violation", "program", "tree gone after"):
        table.add_column(title)
    bad = 0
    console = Console()
    daemon = Daemon(base)
    try:
        attacks = compile_attacks(base / "attacks")
        daemon.start()
        with Supervisor(daemon.address) as client, console.status("running"):
            for name in (*EFFECTS, *ADMINISTRATION):
                place = base / name
                place.mkdir()
                shared = Shared.make(place)
                before = shared.look()
                result = attempt(client, attacks, shared, name, (name,))
                absent = shared.look() == before
                found = result.violations[0] if result.violations else None
                args = ", ".join(f"{value:#x}" for value in found.args) if found else ""
                bad += not (absent and shared.counter == 1 and found)
                table.add_row(
                    name,
                    "absent" if absent else "[red]PRESENT",
                    "nothing" if shared.counter == 1 else "[red]RAN ON",
                    result.outcome.value if result.outcome else "",
                    f"{found.syscall}({args}) {found.abi}" if found else "[red]none",
                    f"{found.exe} ({found.pid})" if found else "",
                    f"{(result.ended_at - found.time) * 1e3:.1f} ms" if found else "",
                )
    finally:
        daemon.stop()
        shutil.rmtree(base)
    console.print(table)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
