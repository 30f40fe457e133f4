"""Medians and quantiles, by one method: of the values themselves, with linear interpolation between two."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from reuseport_tool.models import Spread


def spread(values: Sequence[float], digits: int) -> Spread:
    """The median and the quartiles of at least two values, rounded."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=round(median, digits), low=round(low, digits), high=round(high, digits))


def relative(ours: Sequence[float], theirs: Sequence[float], digits: int) -> Spread:
    """The spread of the ratios of each round."""
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)], digits)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of at least two values do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
