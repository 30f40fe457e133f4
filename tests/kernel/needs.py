"""What a test needs of the kernel, found out by the tool's own probes."""

from __future__ import annotations

import os
import re

import pytest

from reuseport_tool.models import Feature
from reuseport_tool.probes import engine, features, misc
from reuseport_tool.probes.engine import Probe

_PROBES: dict[str, Probe] = {probe.name: probe for probe in (*features.PROBES, misc.pins_in(None))}


def answer(name: str) -> Feature:
    """The answer of now, whatever was found before."""
    return _PROBES[name].answer()


class KernelTooOld(pytest.skip.Exception):
    """The one skip that is allowed where skipping is not: the kernel is older than what the probe did not find."""


def expected_here(feature: Feature) -> bool:
    """Whether the kernel is new enough, so that a no is a failure and not a reason to skip."""
    since = feature.minimum_kernel
    return since is not None and _release() >= _version(since)


def _release() -> tuple[int, ...]:
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def require(name: str) -> None:
    """Skip where the kernel lacks a feature; fail where it is new enough to have it."""
    feature = engine.ask(_PROBES[name])
    if not feature.available and not expected_here(feature):
        raise (KernelTooOld if feature.minimum_kernel else pytest.skip.Exception)(f"{name}: {feature.detail}")
    assert feature.available is True, feature
