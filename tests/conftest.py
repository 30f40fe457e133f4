"""Isolation: every test that touches the kernel runs in a network namespace and a bpffs of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.kernel import libc, netns
from tests import order
from tests.kernel.needs import KernelTooOld
from tests.servers import restart
from tests.tool import Tool

REQUIRE = os.environ.get("REUSEPORT_TOOL_KERNEL_TESTS") == "require"


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled programs for the whole run, and none of the machine's. Workers inherit it.

    A shell starts what runs in the background with SIGINT and SIGQUIT ignored, and nohup with SIGHUP. The servers and
    the tool would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if "REUSEPORT_TOOL_CACHE" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="reuseport-tool-cache-")
        os.environ["REUSEPORT_TOOL_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked slow runs first."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = order.slow_first(slow, [item for item in items if item not in slow], workers)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With --durations: how long the tests of each folder took, on all workers together."""
    if config.getoption("durations") is not None:
        reports = [report for found in terminalreporter.stats.values() for report in found]
        timed = [(report.nodeid, report.duration) for report in reports if hasattr(report, "duration")]
        terminalreporter.section("seconds by folder")
        for folder, duration_s in order.by_folder(timed):
            terminalreporter.write_line(f"{duration_s:8.1f}s {folder}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With REUSEPORT_TOOL_KERNEL_TESTS=require a skip is an error, unless the kernel is too old for the test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    too_old = call.excinfo is not None and call.excinfo.errisinstance(KernelTooOld)
    if REQUIRE and report.skipped and not too_old:
        report.outcome = "failed"
        report.longrepr = f"skipped where skipping is forbidden: {call.excinfo.value if call.excinfo else ''}"


@pytest.fixture(scope="session")
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def in_netns(root: None) -> Iterator[None]:
    """The test's thread, and every process it starts, in a network namespace of its own."""
    with netns.throw_away():
        yield


@pytest.fixture
def bpffs(root: None, tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own; its pins die with the mount."""
    folder = tmp_path / "bpffs"
    folder.mkdir()
    libc.mount("bpf", str(folder), "bpf")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tool(in_netns: None, bpffs: Path) -> Tool:
    """The command line, working in the test's namespace and bpffs."""
    return Tool(bpffs)


@pytest.fixture
def servers_end(in_netns: None) -> Iterator[None]:
    """Every server that the test started ends with it."""
    yield
    restart.end_all()


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that are ended with the test, with everything that they started themselves."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: object, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen([str(word) for word in command], text=True, start_new_session=True, **options)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
