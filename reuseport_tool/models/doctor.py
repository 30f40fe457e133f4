"""What the kernel and the process can do."""

from __future__ import annotations

from reuseport_tool.record import record


@record
class Feature:
    """The answer of one probe."""

    name: str
    """Name of the probe."""
    available: bool | None
    """Null when the probe could not tell."""
    detail: str
    """What the probe did, or why it could not tell."""
    minimum_kernel: str | None
    """The release that brought the feature, or null when no release tells. For readers: the tool never compares it."""


@record
class Capability:
    """One capability of the process."""

    name: str
    """For example CAP_BPF."""
    held: bool
    """Whether this process has it."""
    used_for: str
    """The jobs that need it."""


@record
class Doctor:
    """What `doctor` found."""

    kernel: str
    """The kernel's release."""
    ok: bool
    """The strategy `migrate` works here, and a migrated connection wakes a server that sleeps."""
    missing: tuple[str, ...]
    """Names of the features that keep `ok` from being true."""
    features: tuple[Feature, ...]
    """One entry for each probe."""
    capabilities: tuple[Capability, ...]
    """One entry for each capability that some job needs."""
