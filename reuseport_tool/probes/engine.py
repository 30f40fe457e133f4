"""How a probe answers: yes, no, or could not tell."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable

from reuseport_tool.errors import MissingCapability, ProgramRejected, ToolError, Unsupported
from reuseport_tool.kernel import capabilities
from reuseport_tool.models import Feature
from reuseport_tool.record import record

_ABSENT = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOPROTOOPT,
    errno.EAFNOSUPPORT,
    errno.EPROTONOSUPPORT,
    errno.ENODEV,
    errno.ENOENT,
)


@record
class Probe:
    """One feature and how to try it.

    Attributes:
        since: the release that brought the feature, for readers; None where no release tells.
        needs: the capabilities that trying it takes, for the answer where that is refused.
        run: does it; returns the detail of a yes, and raises otherwise. Unsupported, ProgramRejected and
            the errors of an absent feature (EINVAL, ENOSYS, …) mean no; anything else could not tell.
    """

    name: str
    since: str | None
    needs: tuple[str, ...] = ()
    run: Callable[[], str]

    def answer(self) -> Feature:
        """Try it now."""
        try:
            available, detail = True, self.run()
        except (MissingCapability, PermissionError) as error:
            available, detail = None, self._refused(error)
        except (Unsupported, ProgramRejected) as error:
            available, detail = False, error.message
        except ToolError as error:
            available, detail = _absent(error.__cause__), error.message
        except OSError as error:
            available, detail = _absent(error), error.args[-1]
        return Feature(name=self.name, available=available, detail=detail, minimum_kernel=self.since)

    def _refused(self, error: Exception) -> str:
        missing = capabilities.missing(self.needs)
        if missing:
            return f"not permitted: {', '.join(missing)} missing"
        return f"{error} (in spite of all capabilities: a user namespace, seccomp or lockdown?)"


def _absent(error: BaseException | None) -> bool | None:
    """False for the errors of an absent feature, None for those that tell nothing."""
    return False if isinstance(error, OSError) and error.errno in _ABSENT else None


@functools.cache
def ask(probe: Probe) -> Feature:
    """The answer, tried once in a process."""
    return probe.answer()
