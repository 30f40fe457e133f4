"""What the tests of a group call again and again: attach it, look at it, and where its pins are."""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.group import attach, places, status
from reuseport_tool.models import Attached, Endpoint, Group, Policy
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import WEB


def attached(kernel: Kernel, endpoint: Endpoint = WEB, policy: Policy | None = None, **how: object) -> Attached:
    (report,) = attach.attach(endpoint, policy, None, kernel.root, **how).attached  # type: ignore[arg-type]
    return report


def shown(kernel: Kernel, endpoint: Endpoint = WEB) -> Group:
    with status.Observer(endpoint, kernel.root) as observer:
        (group,) = observer.read().groups
    return group


def folder(kernel: Kernel, endpoint: Endpoint = WEB) -> Path:
    return Path(str(places.group_folder(kernel.root, endpoint)))


def shown_or_none(kernel: Kernel) -> Group | None:
    with status.Observer(None, kernel.root) as observer:
        groups = observer.read().groups
    return groups[0] if groups else None
