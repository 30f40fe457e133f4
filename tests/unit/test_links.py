"""Every link of the documentation leads to a file that is there, and to a heading that it has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(line) for line in listed.stdout.splitlines() if (CHECKOUT / line).exists()]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, a dash for each space."""
    lines = CODE.sub(lambda match: match[0].strip("`") if "\n" not in match[0] else "", page.read_text()).splitlines()
    heads = [re.sub(r"^#+\s+", "", line) for line in lines if re.match(r"#{1,6}\s", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for first, second in LINK.findall(CODE.sub("", (CHECKOUT / page).read_text())):
        target, _, anchor = (first or second).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (CHECKOUT / page).parent / target if target else CHECKOUT / page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(first or second)
    assert not broken


def test_there_are_pages() -> None:
    assert Path("README.md") in pages()
