"""What MkDocs runs while it builds the pages: their order, and formulas as MathML."""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path
from typing import Any

from latex2mathml import converter

log = logging.getLogger("mkdocs.hooks.site")  # below "mkdocs", so that --strict counts warnings

ORDER = (
    "index.md",
    "getting-started.md",
    "streams.md",
    "real-streams.md",
    "classic-streams.md",
    "data.md",
    "strategies",
    "contract.md",
    "measurement.md",
    "prompts.md",
    "engines.md",
    "records.md",
    "export.md",
    "benchmarks.md",
    "scorer-checks.md",
    "tiny-mirrors.md",
)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """List every page that is there: those of `ORDER` first, a folder with its index first."""
    docs = Path(config.docs_dir)
    found = [path.name for path in sorted(docs.iterdir()) if path.suffix == ".md" or path.is_dir()]
    names = [name for name in ORDER if name in found]
    config.nav = [_entry(docs, name) for name in [*names, *(n for n in found if n not in names)]]
    return config


def on_page_content(text: str, page: Any, **_: Any) -> str:
    """Replace formulas by MathML, which browsers show without a script from elsewhere."""

    def replace(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        formula = html.unescape(match[2]).strip()
        found = str(converter.convert(formula, display=display))
        unknown = re.search(r">(\\\w+|&)<", found)
        if unknown:
            where = page.file.src_uri
            log.warning("%s: no MathML for %s in the formula %s", where, unknown[1], formula)
        return found

    return FORMULA.sub(replace, text)


def _entry(docs: Path, name: str) -> Any:
    folder = docs / name
    if not folder.is_dir():
        return name
    pages = sorted(path.name for path in folder.glob("*.md"))
    pages.sort(key=lambda page: page != "index.md")
    return {name.capitalize(): [f"{name}/{page}" for page in pages]}
