"""The hooks of `make site`: README.md is the first page, and links to files that are no pages become their paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as index.md."""
    files.append(File.generated(config, "index.md", content=(CHECKOUT / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between pages stay; a link that leaves docs/ shows the file's path in the repository instead."""
    source = page.file.src_uri
    folder = CHECKOUT if source == "index.md" else (CHECKOUT / "docs" / source).parent

    def mended(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if "://" in target:
            return link[0]
        path = os.path.normpath(folder / target)
        inside = os.path.relpath(path, CHECKOUT / "docs")
        if inside in files.src_uris:
            here = os.path.dirname(source)
            return f"{image}[{text}]({os.path.relpath(inside, here or '.')}{anchor})"
        if path == str(CHECKOUT / "README.md"):
            return f"[{text}]({os.path.relpath('index.md', os.path.dirname(source) or '.')}{anchor})"
        name = os.path.relpath(path, CHECKOUT)
        return f"`{name}`" if text.strip("`") in (target, name) else f"{text} (`{name}`)"

    return LINK.sub(mended, markdown)
