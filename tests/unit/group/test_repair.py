"""What killed and failed runs leave over a kernel in memory: lost pins, journals, locks, and an error at any change."""

from __future__ import annotations

import errno
import os

import pytest

from reuseport_tool.errors import Conflict, ToolError, Unsupported
from reuseport_tool.group import detach, journals, places, repair
from reuseport_tool.models import Policy
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import WEB
from tests.unit.group.verbs import attached, folder, shown


def test_lost_pins_are_told_and_made_anew(kernel: Kernel) -> None:
    cookies = {kernel.listen(7), kernel.listen(8)}
    before = attached(kernel)
    for path in folder(kernel).rglob("*"):
        if path.is_file():
            path.unlink()
    (folder(kernel) / "state").rmdir()
    assert "pins of the program" in shown(kernel).damage
    with pytest.raises(Conflict) as caught:
        attached(kernel)
    assert "--repair" in caught.value.hint
    (report,) = repair.repair(WEB, kernel.root).attached
    assert (report.result, report.program, report.registered) == ("repaired", before.program, ())
    assert shown(kernel).damage is None
    assert kernel.chosen() == cookies
    assert repair.repair(WEB, kernel.root).attached[0].result == "unchanged"


@pytest.mark.parametrize("lost", ["choice", "members", "program", "generation_1"])
def test_one_lost_pin_is_damage_that_repair_mends(kernel: Kernel, lost: str) -> None:
    cookie = kernel.listen(7)
    attached(kernel)
    (folder(kernel) / "state" / lost).unlink()
    if lost != "generation_1":
        assert "damaged" in shown(kernel).damage
    assert repair.repair(WEB, kernel.root).attached[0].result == "repaired"
    group = shown(kernel)
    assert (group.damage, group.listeners[0].generation) == (None, 1)
    assert kernel.chosen() == {cookie}


def test_another_users_program_is_not_taken_over(kernel: Kernel) -> None:
    kernel.listen(7)
    running = attached(kernel).program.id
    (folder(kernel) / "state" / "choice").unlink()
    kernel.objects[running].uid = os.geteuid() + 1
    with pytest.raises(Conflict, match="could still change its maps"):
        repair.repair(WEB, kernel.root)


def test_repair_needs_a_kernel_that_tells(kernel: Kernel) -> None:
    kernel.listen(7)
    kernel.tells = False
    with pytest.raises(Unsupported):
        repair.repair(WEB, kernel.root)


@pytest.mark.parametrize(("newest", "numbers"), [(1, {1: 1}), (17, {1: 17, 2: 2, 0: 16}), (40, {8: 40, 9: 25})])
def test_generations_get_their_numbers_back(newest: int, numbers: dict[int, int]) -> None:
    assert {index: repair.number_of(index, newest) for index in numbers} == numbers


@pytest.mark.parametrize("adopted", [True, False])
def test_a_replacement_that_was_killed_between_its_steps_is_settled(kernel: Kernel, adopted: bool) -> None:
    """The new program is pinned beside the old one; it may run already."""
    kernel.listen(7)
    old = attached(kernel).program.id

    def die(name: str) -> None:
        if name == "attach":
            raise KeyboardInterrupt

    kernel.before_change = die
    with pytest.raises(KeyboardInterrupt):
        attached(kernel, policy=Policy.ROUND_ROBIN)
    kernel.before_change = lambda name: None
    following = folder(kernel) / "state" / "program_next"
    new = int(following.read_text())
    if adopted:
        kernel.running[WEB, 0] = new
    assert attached(kernel).program.id == (new if adopted else old)
    assert not following.exists()


def test_an_interrupted_reload_is_shown_and_blocks_all_but_detach(kernel: Kernel) -> None:
    kernel.listen(7)
    attached(kernel)
    with places.locked(kernel.root, WEB) as group:
        head = journals.Header(sequence=1, pid=77, begun_at=5.0, step="stop")
        journals.write([group], head, b"x" * 40_000)
        assert journals.read(group).text == b"x" * 40_000
        assert journals.is_running(group)
    transaction = shown(kernel).reload
    assert (transaction.running, transaction.step, transaction.pid) == (False, "stop", 77)
    for verb in (lambda: attached(kernel), lambda: repair.repair(WEB, kernel.root)):
        with pytest.raises(Conflict, match="was interrupted"):
            verb()
    detach.detach(WEB, kernel.root)
    assert list(kernel.root.iterdir()) == []


def test_a_journal_of_somebody_else_is_not_read(kernel: Kernel) -> None:
    kernel.listen(7)
    attached(kernel)
    os.link(folder(kernel) / "state" / "choice", folder(kernel) / "journal")
    with pytest.raises(Conflict, match="is not this tool's"):
        journals.read(places.group_folder(kernel.root, WEB))


def test_a_lock_that_is_held_is_respected(kernel: Kernel) -> None:
    kernel.listen(7)
    with (
        places.locked(kernel.root, WEB),
        pytest.raises(Conflict, match=f"process {os.getpid()}"),
        places.locked(kernel.root, WEB, at_once=True),
    ):
        pass
    assert list(kernel.root.iterdir()) == []


def changes(kernel: Kernel, policy: Policy | None = None) -> int:
    """How many changes an attach of two listeners takes."""
    made: list[str] = []
    kernel.before_change = made.append
    attached(kernel, policy=policy)
    kernel.before_change = lambda name: None
    return len(made)


def fail_at(kernel: Kernel, number: int) -> None:
    left = [number]

    def count(name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOMEM, "out of memory")

    kernel.before_change = count


@pytest.mark.parametrize("again", [False, True])
def test_an_error_at_any_change_leaves_every_listener_served_and_is_mended_by_the_next_attach(
    kernel: Kernel, again: bool
) -> None:
    cookies = {kernel.listen(7), kernel.listen(8)}
    total = changes(kernel)
    if again:
        total = changes(kernel, Policy.ROUND_ROBIN)
    assert total > (1 if again else 10)
    for number in range(1, total + 1):
        detach.detach(WEB, kernel.root)
        if again:
            attached(kernel)
        fail_at(kernel, number)
        policy = Policy.ROUND_ROBIN if again else None
        with pytest.raises((OSError, ToolError)):
            attached(kernel, policy=policy)
        kernel.before_change = lambda name: None
        assert kernel.chosen() == cookies
        report = attached(kernel, policy=policy)
        assert (report.program.policy, kernel.chosen()) == ("round-robin" if again else "hash", cookies)
        assert shown(kernel).problems == ()
        assert not kernel.fds
