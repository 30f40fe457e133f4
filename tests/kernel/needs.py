"""What a test needs of the kernel, found out by the tool's own probes."""

from __future__ import annotations

import os
import re

import pytest

from reuseport_tool.models import Feature
from reuseport_tool.probes import features
from reuseport_tool.probes.features import Probe


def answer(name: str) -> Feature:
    pins = Probe(name=features.BPFFS, minimum_kernel="4.4", needs=(), run=lambda: features._bpffs(None))
    return next(probe for probe in (*features._PROBES, pins) if probe.name == name).answer()


class KernelTooOld(pytest.skip.Exception):
    """The one skip that is allowed where skipping is not: the kernel is older than what the probe did not find."""


def expected_here(feature: Feature) -> bool:
    """Whether the kernel is new enough, so that a no is a failure and not a reason to skip."""
    since = feature.minimum_kernel
    return "." in since and _release() >= _version(since)


def _release() -> tuple[int, ...]:
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def require(name: str) -> None:
    """Skip where the kernel lacks a feature; fail where it is new enough to have it."""
    feature = answer(name)
    if not feature.available and not expected_here(feature):
        too_old = "." in feature.minimum_kernel
        raise (KernelTooOld if too_old else pytest.skip.Exception)(f"{name}: {feature.detail}")
    assert feature.available is True, feature
