"""Options of reload that make no sense are refused before anything is looked at."""

from __future__ import annotations

import pytest

from reuseport_tool.cli import main
from reuseport_tool.cli.types import DURATION
from reuseport_tool.errors import UsageError
from reuseport_tool.group import urls
from reuseport_tool.models import parse_endpoint
from reuseport_tool.reload import thresholds

BAD_OPTIONS = [
    ("--canary", "25,5"),
    ("--canary", "0,5"),
    ("--canary", "5,101"),
    ("--canary", "nan"),
    ("--canary", "x"),
    ("--canary", "5", "--strategy", "sysctl"),
    ("--canary", "5", "--run", "true"),
    ("--step", "-1"),
    ("--step", "3 weeks"),
    ("--abort-on", "bugs"),
    ("--abort-on", "drops=0"),
    ("--abort-on", "drops="),
    ("--resume", "--abort"),
    ("--resume", "--force"),
    ("--health-command", "caf\udce9"),
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=ascii)
def test_bad_options(options: tuple[str, ...]) -> None:
    command = [] if "--run" in options else ["--", "true"]
    assert main.run(["reload", "8080", *options, *command]) == 2


BAD_URLS = [
    "ftp://127.0.0.1/",
    "http://127.0.0.1:8081/",
    "http://127.0.0.2:8080/",
    "http://[::1]:8080/",
    "http://[::1/",
    "http://127.0.0.1:8080/a b",
    "http://127.0.0.1:99999/",
    "127.0.0.1:8080",
    "",
]


@pytest.mark.parametrize("text", BAD_URLS)
def test_bad_urls(text: str) -> None:
    with pytest.raises(UsageError):
        urls.url(text, [parse_endpoint("127.0.0.1:8080")])


GOOD_URLS = {
    "http://127.0.0.1:8080": "127.0.0.1:8080",
    "http://127.0.0.2:8080/health?x=1": "0.0.0.0:8080",
    "https://[::1]/": "[::]:443",
}


@pytest.mark.parametrize("text", GOOD_URLS)
def test_a_url_leads_to_its_group(text: str) -> None:
    group = parse_endpoint(GOOD_URLS[text])
    assert urls.url(text, [parse_endpoint("10.0.0.1:8080"), group]).group == group


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == pytest.approx(seconds)


def test_thresholds() -> None:
    assert thresholds.parse("drops") == thresholds.Threshold("drops", 1)
    assert thresholds.parse("resets=20") == thresholds.Threshold("resets", 20)
