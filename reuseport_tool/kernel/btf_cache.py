"""What was asked of the kernel's type information before: reading it all takes 50 ms, and a build never changes."""

from __future__ import annotations

import atexit
import functools
import hashlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from reuseport_tool.kernel import program_cache

P = ParamSpec("P")
T = TypeVar("T", int, bool, int | None)

_WORDS: dict[str, int | None] = {"None": None, "True": True, "False": False}


def remembered(ask: Callable[P, T]) -> Callable[P, T]:
    """Ask the kernel once for its build: answers of earlier runs come from the cache. Errors are not kept."""

    @functools.wraps(ask)
    def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        question = " ".join([ask.__name__, *map(str, args), *map(str, kwargs.values())])
        known = _answers()
        if question not in known:
            known[question] = ask(*args, **kwargs)
            _save_at_exit()
        return known[question]  # type: ignore[return-value]

    return answer


@functools.cache
def _answers() -> dict[str, int | None]:
    store = program_cache.store()
    body = store.get(_name()) if store else None
    answers: dict[str, int | None] = {}
    for line in (body or b"").decode().splitlines():
        question, _, value = line.rpartition(" ")
        answers[question] = _WORDS[value] if value in _WORDS else int(value)
    return answers


def _name() -> str:
    return hashlib.sha256(b"btf\n" + program_cache.kernel_identity().encode()).hexdigest()


@functools.cache
def _save_at_exit() -> None:
    atexit.register(save)


def save() -> None:
    """Write down all that is known by now."""
    store = program_cache.store()
    if store is not None:
        store.put(_name(), "".join(f"{question} {value}\n" for question, value in _answers().items()).encode())
