"""What Prometheus itself says, through its promtool: to the metrics that are printed, the rules, and when they fire."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from reuseport_tool.cli.show import metrics
from reuseport_tool.models import Status
from tests.unit.test_metrics import BUSY, MIB, RULES

ALERTS = Path(__file__).with_name("alerts.yml")


NAMED_AS_THE_KERNEL_DOES = re.compile(r"reuseport_netstat_\w+ metric names should be written in 'snake_case'.*")


def promtool(*arguments: object, text: bytes = b"", codes: tuple[int, ...] = (0,)) -> str:
    """What it prints. Raises where it exits with any other code."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    assert done.returncode in codes, done.stdout.decode()
    return done.stdout.decode()


def test_the_metrics_are_as_they_should_be() -> None:
    """Exit code 3 is a lint, and the only one may be that the kernel's counters have the kernel's names."""
    text = metrics.exposition(Status(groups=(BUSY,)), MIB)
    said = promtool("check", "metrics", text=text, codes=(0, 3)).splitlines()
    assert [line for line in said if not NAMED_AS_THE_KERNEL_DOES.fullmatch(line)] == []


def test_metrics_that_nobody_can_read_are_found() -> None:
    text = metrics.exposition(Status(groups=(BUSY,)), MIB).replace(
        b"# TYPE reuseport_group_info gauge", b"# TYPE x y z"
    )
    promtool("check", "metrics", text=text, codes=(1,))


def test_the_rules_are_valid() -> None:
    assert f"{len(names(RULES, 'alert'))} rules found" in promtool("check", "rules", "--lint-fatal", RULES)


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", ALERTS)
    quiet, _, loud = ALERTS.read_text().partition("name: nothing is")
    assert names(quiet, "alertname") == names(RULES, "alert")
    assert set(re.findall(r"alertname: (\w+)\n +exp_alerts", loud)) == names(RULES, "alert")


def names(where: Path | str, key: str) -> set[str]:
    text = where.read_text() if isinstance(where, Path) else where
    return set(re.findall(rf"\b{key}: (\w+)", text))
