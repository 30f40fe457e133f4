"""Kill the tool, by SIGKILL, in the middle of a reload.

Run as `python -m tests.kernel.reload.killed --kills 200` (root): a server under load is reloaded again and again, each
run of the tool is killed at a random moment, and then resumed or aborted. Prints a summary as JSON; exit
status 1 if a connection was lost, or something was left.

The tool runs in a fork of this process, which has imported everything: a moment is then one in the reload and not
one in Python's start.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reuseport_tool.bench.load import Load
from reuseport_tool.errors import Conflict, NotFound, ToolError
from reuseport_tool.group import status
from reuseport_tool.kernel import commands, diag, libc, netns, processes
from reuseport_tool.models import Protocol, Step, parse_endpoint
from reuseport_tool.probes import features
from reuseport_tool.record import record
from reuseport_tool.reload import transaction as reload
from reuseport_tool.reload.plan import Plan, Progress

PORT = 8080
SERVER = [sys.executable, str(Path(__file__).parents[1] / "server.py")]
_WAIT_S = 60.0
_LOCK_S = 10.0  # a child that was being made when the tool was killed holds its lock until execve(2)


def quiet(
    begin: Callable[[str], None] = lambda _: None,
    end: Callable[[Step], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Progress:
    return Progress(begin=begin, end=end, note=note, warn=lambda _: None)


def in_fork(act: Callable[[], object]) -> int:
    """Start `act` in a child that ends without a word; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except ToolError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return pid


def killed_after(act: Callable[[], object], delay_s: float, begun: int | None = None) -> bool:
    """Whether the run was killed; False when it had ended before. The delay counts from a byte in the pipe `begun`."""
    pid = in_fork(act)
    if begun is not None:
        select.select([begun], [], [], _WAIT_S)
    deadline = time.monotonic() + delay_s
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    _, how = os.waitpid(pid, 0)
    return os.WIFSIGNALED(how)


def reload_to(name: str, bpffs: Path, progress: Progress | None = None, listeners: int = 1) -> None:
    command = (*SERVER, str(PORT), name, "--listeners", str(listeners))
    plan = Plan(command=command, listeners=listeners, output=Path("/dev/null"))
    reload.reload([parse_endpoint(str(PORT))], plan, bpffs, progress or quiet())


def settle(how: str, bpffs: Path) -> str:
    """Resume or abort what was interrupted; what can only be resumed is. Returns what was done."""
    endpoint = parse_endpoint(str(PORT))
    try:
        if how == "abort":
            try:
                return reload.abort(endpoint, bpffs, quiet(), _LOCK_S).result
            except Conflict:
                pass
        return reload.resume(endpoint, bpffs, quiet(), _LOCK_S).result
    except NotFound:
        return "nothing"


@record
class Picture:
    """What a group looks like between two reloads."""

    listeners: int
    owners: int
    generations: int
    unregistered: int
    interrupted: bool


def picture(bpffs: Path) -> Picture:
    with status.Observer(parse_endpoint(str(PORT)), bpffs) as observer:
        (group,) = observer.read().groups
    return Picture(
        listeners=len(group.listeners),
        owners=len({entry.pid for entry in group.listeners}),
        generations=len({entry.generation for entry in group.listeners}),
        unregistered=sum(entry.flag != "working" for entry in group.listeners if group.program),
        interrupted=group.reload is not None,
    )


@contextmanager
def place() -> Iterator[Path]:
    """A network namespace and a bpffs; servers that are left in it are ended."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        libc.mount("bpf", str(folder), "bpf")
        stack.callback(subprocess.run, ["umount", str(folder)], check=True)
        stack.enter_context(netns.throw_away())
        stack.callback(end_owners)
        yield folder


def end_owners() -> None:
    held = processes.holders([entry.inode for entry in diag.bound_sockets(Protocol.TCP)])
    commands.end(sorted({holder.pid for holders in held.values() for holder in holders}))


def start_first() -> subprocess.Popen[str]:
    first = subprocess.Popen([*SERVER, str(PORT), "first"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    return first


def torture(kills: int, seed: int) -> tuple[dict[str, object], bool]:
    """Returns a summary and whether all was well."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    wrong = []
    features.migration_works()  # forks inherit what has been tried
    features.migration_wakes()
    with place() as bpffs:
        first = start_first()
        whole_s = _whole_s(bpffs)
        first.wait(timeout=_WAIT_S)
        with Load("127.0.0.1", PORT, clients=8) as load:
            done = 0
            while done < kills:
                moment_s = chance.uniform(0, whole_s)
                was_killed = _kill_a_reload(bpffs, moment_s)
                done += was_killed
                # What else the machine does makes reloads longer and shorter: follow that.
                whole_s *= 1.02 if was_killed else 0.9
                ends["killed" if was_killed else "ended before"] += 1
                ends[_step(bpffs)] += 1
                ends[settle(chance.choice(["resume", "abort"]), bpffs)] += 1
                seen = picture(bpffs)
                print(f"{done} of {kills} killed, {dict(ends)}", file=sys.stderr)
                if seen != dataclasses.replace(seen, listeners=1, owners=1, unregistered=0, interrupted=False):
                    wrong.append(f"killed after {moment_s:.4f} s: {seen}")
            ledger = load.stop()
    summary = {"seed": seed, **ends, "wrong": wrong, **dataclasses.asdict(ledger), "lost": ledger.lost}
    return summary, not wrong and not ledger.lost and ledger.answered > 0


def _kill_a_reload(bpffs: Path, moment_s: float) -> bool:
    """Kill one so long after its first step began; see killed_after()."""
    begun, tell = os.pipe()
    try:
        progress = quiet(begin=lambda name: name == "prepare" and os.write(tell, b"x"))
        return killed_after(lambda: reload_to("next", bpffs, progress), moment_s, begun)
    finally:
        os.close(begun)
        os.close(tell)


def _step(bpffs: Path) -> str:
    """In which step the reload was killed."""
    try:
        return f"in {reload.interrupted(bpffs, parse_endpoint(str(PORT))).step}"
    except NotFound:
        return "in none"


def _whole_s(bpffs: Path) -> float:
    """How long the steps of a reload take here."""
    start = time.monotonic()
    os.waitpid(in_fork(lambda: reload_to("next", bpffs)), 0)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    summary, well = torture(options.kills, options.seed)
    print(json.dumps(summary))
    sys.exit(not well)


if __name__ == "__main__":
    main()
