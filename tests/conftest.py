"""For every lane: SUPERVISOR_REQUIRE=host or vm turns a skip into a failure and leaves out what the lane cannot mean."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

REQUIRE_VARIABLE = "SUPERVISOR_REQUIRE"
LANES = ("host", "vm")
OTHER_LANE_MARKER = {"host": "vm_only", "vm": "host_only"}


def required_lane() -> str:
    """The lane that must run whole, or "" where skips are allowed."""
    lane = os.environ.get(REQUIRE_VARIABLE, "")
    if lane and lane not in LANES:
        raise pytest.UsageError(f"{REQUIRE_VARIABLE}={lane}: one of {', '.join(LANES)}")
    return lane


def pytest_configure(config: pytest.Config) -> None:
    required_lane()
    # Ignored in whatever a shell without job control has put into the background, and so in all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What only another lane can show is deselected, not skipped, so that no skip is left to be excused."""
    lane = required_lane()
    if not lane:
        return
    other = [item for item in items if item.get_closest_marker(OTHER_LANE_MARKER[lane])]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]


def _refuse_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    """A skip becomes a failure that says why; an expected failure is reported as a skip, too, and stays one."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{REQUIRE_VARIABLE}={required_lane()} allows no skip, yet: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if required_lane():
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if required_lane():
        _refuse_skip(report)
    return report
