"""Where a thread of this process sleeps in the kernel."""

from __future__ import annotations


def in_epoll_wait(thread_id: int) -> bool:
    """Whether a thread sleeps in epoll_wait(2), by the kernel function it sleeps in (proc_pid_wchan()).

    Where the kernel does not name functions (no CONFIG_KALLSYMS), whether it sleeps at all. False for
    a thread that has ended.
    """
    folder = f"/proc/self/task/{thread_id}"
    try:
        with open(f"{folder}/wchan") as file:
            function = file.read()
        with open(f"{folder}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return False
    return "epoll" in function or function.startswith("ep_") if function not in ("", "0") else state == "S"
