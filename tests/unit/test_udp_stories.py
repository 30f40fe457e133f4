"""The cases of `check udp-reload` hold on a machine of any speed."""

from __future__ import annotations

import pytest

from reuseport_tool.check.udp_stories import STORIES, Story


def _option(story: Story, name: str) -> str | float | None:
    options = story.options or ()
    return next((options[at + 1] for at in reversed(range(len(options))) if options[at] == name), None)


KEEPING = [story for story in STORIES if story.options and "--flow-timeout" in story.options and story.ends]


@pytest.mark.parametrize("story", KEEPING, ids=lambda story: story.name)
def test_a_drain_may_take_longer_than_its_flows_however_slow_the_machine_is(story: Story) -> None:
    """Only numbers grow with the machine's slowness: a default would be too short for flows that last longer."""
    drain, flow = _option(story, "--drain-timeout"), _option(story, "--flow-timeout")
    assert isinstance(drain, float)
    assert isinstance(flow, float)
    assert drain > 10 * flow
