"""What the running kernel can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One probe. `available` is None when the probe could not tell."""

    name: str
    available: bool | None
    detail: str
    minimum_kernel: str


@dataclass(frozen=True)
class Capability:
    """One capability of the process, and the verbs' jobs that take it."""

    name: str
    held: bool
    used_for: str


@dataclass(frozen=True)
class Doctor:
    """`ok` says that the strategy `migrate` works here and wakes who sleeps on the new listener; the
    detail of each feature says the rest. `missing` names the features that keep `ok` from being true."""

    kernel: str
    ok: bool
    missing: tuple[str, ...]
    features: tuple[Feature, ...]
    capabilities: tuple[Capability, ...]
