"""What `status --check` complains of, and what it must not complain of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reuseport_tool.group import problems
from reuseport_tool.models import Group, Listener, Program, Transaction
from tests.records import NGINX, some

LISTENER = some(Listener, cookie=77, **NGINX, generation=2, backlog=511, flag="working")


def listeners(*queues: int, flag: str = "working") -> tuple[Listener, ...]:
    return tuple(replace(LISTENER, cookie=index, accept_queue=queue, flag=flag) for index, queue in enumerate(queues))


GROUP = Group(
    endpoint="tcp://10.0.0.1:80",
    netns="net:[1]",
    program=Program(id=1, name="hash", policy="hash"),
    working_generation=2,
    listeners=listeners(3, 5),
    counters=None,
)
KILLED = Transaction(running=False, step="switch", pid=1, begun_at=0.0)


def kinds(group: Group) -> list[str]:
    return [str(problem.kind) for problem in problems.of_group(group)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"stale": True}, ["stale"]),
        ({"reload": KILLED}, ["stale"]),
        ({"reload": replace(KILLED, running=True)}, []),
        ({"program": Program(id=0, name="(classic BPF)", policy=None)}, ["foreign"]),
        ({"program": None}, []),
        ({"listeners": (*listeners(0, 0), replace(LISTENER, flag="foreign"))}, ["foreign"]),
        ({"listeners": listeners(0, 0, 400)}, ["imbalance"]),
        ({"listeners": listeners(0, 0, 200)}, []),
        ({"listeners": listeners(200, 190, 400)}, []),
        ({"listeners": listeners(400)}, []),
        ({"listeners": (*listeners(0, 0), *listeners(400, flag="old"))}, []),
        ({"stale": True, "listeners": listeners(0, 0, 400, flag="-")}, ["stale", "imbalance"]),
    ],
    ids=range(13),
)
def test_problems(change: dict[str, object], expected: list[str]) -> None:
    assert kinds(replace(GROUP, **change)) == expected  # type: ignore[arg-type]


def test_a_problem_names_who_is_meant() -> None:
    (problem,) = problems.of_group(replace(GROUP, listeners=listeners(0, 0, 400)))
    assert "listener 2 of nginx (process 4242)" in problem.detail
    assert "400/511" in problem.detail
