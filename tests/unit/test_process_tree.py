"""Who made whom, told from events."""

from __future__ import annotations

import itertools

from trace_samples import START, call, end, event, execute, fork, sample

from supervisor.client.process_tree import ProcessTree
from supervisor.model import TracedProcess


def shape(tree):
    return [(depth, process.pid, process.label, process.ended) for depth, process in tree.walk()]


def test_a_shell_and_its_child():
    tree = ProcessTree.of(sample())
    assert tree.start == START
    (shell,) = tree.roots
    (ls,) = shell.children
    assert shape(tree) == [
        (0, 2, "sh -c 'ls \x1b[31m\n'", "killed by SIGKILL"),
        (1, 3, "ls /root", "exited 2"),
    ]
    assert (shell.calls, shell.failed, shell.threads, round(shell.seconds, 6)) == (6, 3, 2, 0.9)
    assert (ls.calls, ls.failed, ls.name, ls.parent_pid) == (5, 1, "ls", 2)
    assert (round(ls.start - START, 6), round(ls.seconds, 6)) == (0.002, 0.005)


def test_a_process_that_executes_again_remembers():
    tree = ProcessTree.of([*execute(0, 2, "sh"), *execute(1, 2, "python3"), *execute(2, 2, "true"), end(3, 2)])
    (process,) = tree.roots
    assert (process.program, process.before) == ("/usr/bin/true", ["/usr/bin/sh", "/usr/bin/python3"])


def test_one_that_never_executes_is_its_parent_s_program():
    tree = ProcessTree.of([*execute(0, 2, "sh", "-c", "x"), fork(1, 2, 3), fork(2, 3, 4), *execute(3, 4, "ls")])
    assert [(depth, pid, label) for depth, pid, label, _ in shape(tree)] == [
        (0, 2, "sh -c x"),
        (1, 3, "(sh -c x)"),
        (2, 4, "ls"),
    ]
    assert {ended for *_, ended in shape(tree)} == {"-"}


def test_pids_are_used_again():
    events = [*execute(0, 2, "sh")]
    for number in range(3):
        events += [fork(number + 1, 2, 3), *execute(number + 1.1, 3, f"p{number}"), end(number + 1.5, 3, number)]
    tree = ProcessTree.of(events)
    assert [(process.name, process.ended) for process in tree.roots[0].children] == [
        ("p0", "exited 0"),
        ("p1", "exited 1"),
        ("p2", "exited 2"),
    ]


def test_a_child_s_first_events_may_come_before_its_fork():
    """Rings are read one after the other, and only what was read together is sorted."""
    tree = ProcessTree.of([*execute(0, 2, "sh"), *execute(1.1, 3, "ls", parent=2), fork(1.0, 2, 3), end(2, 3)])
    assert shape(tree) == [(0, 2, "sh", "-"), (1, 3, "ls", "exited 0")]
    assert tree.roots[0].children[0].start == START + 1.0


def test_lost_events_leave_a_tree():
    tree = ProcessTree.of(
        [call(0, 7, "read"), end(1, 7, 1), fork(2, 9, 7), *execute(3, 7, "x"), fork(4, 7, 9), end(5, 7)]
    )
    assert [(process.pid, process.ended) for process in tree.roots] == [(7, "exited 1"), (9, "-")]
    assert not ProcessTree.of([]).roots


def test_a_thread_that_executes_takes_the_process_over():
    first = event(1, "exit", 2, result=0, detail="process exited with 0")
    tree = ProcessTree.of([*execute(0, 2, "a"), fork(0.5, 2, 3, "thread"), first, *execute(1.1, 2, "b"), end(2, 2, 5)])
    (process,) = tree.roots
    assert (process.name, process.ended, round(process.seconds, 6)) == ("b", "exited 5", 2.0)
    late = [*execute(0, 2, "a"), fork(0.5, 2, 3, "thread"), end(1, 2), event(2, "exit", 2, tid=3, detail="thread")]
    assert round(ProcessTree.of(late).roots[0].seconds, 6) == 2.0


def test_deep_trees_are_walked():
    events = list(itertools.chain(execute(0, 2, "sh"), *([fork(n, n, n + 1)] for n in range(2, 20_000))))
    assert [depth for depth, _ in ProcessTree.of(events).walk()][-1] == 19_998


def test_without_keeping_only_the_present_is_known():
    tree = ProcessTree(keep=False)
    for one in sample():
        tree.add(one)
    assert not tree.roots and tree.get(3) is not None and tree.get(3).ended == "exited 2"


def test_of_a_summary():
    processes = [
        TracedProcess(2, 1, "sh", "/usr/bin/sh", START, START + 2, -9),
        TracedProcess(3, 2, "ls", "/usr/bin/ls", START + 1),
    ]
    tree = ProcessTree.of_summary(processes)
    assert shape(tree) == [(0, 2, "/usr/bin/sh", "killed by SIGKILL"), (1, 3, "/usr/bin/ls", "-")]
    assert (tree.start, tree.roots[0].seconds) == (START, 2.0)
