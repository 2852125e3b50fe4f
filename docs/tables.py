"""Write the tables that are generated into the pages: `python docs/tables.py`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from clbench import api, registry
from clbench.strategy import Strategy

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "strategies"
FILES = {
    ROOT / "README.md": "strategies",
    PAGES / "index.md": "strategies",
    ROOT / "docs" / "streams.md": "streams",
}
BEGIN = "<!-- The table of {}: written by `python docs/tables.py`. -->"
END = "<!-- End of the table. -->"
STREAM_HEAD = ("stream", "`--data`", "tasks in order", "world", "calibrated on")
HEAD = ("strategy", "kind", "what it does", "calibrated on", "paper")
CITATION = re.compile(r" \([^()]*arXiv [^()]*\)")
ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def names() -> list[str]:
    """Return the strategies that come with clbench: adapters first, then guards."""
    entries = registry.listing(registry.STRATEGIES)
    ours = [entry.name for entry in entries if entry.package == "clbench"]
    return sorted(ours, key=lambda name: registry.strategy_class(name).kind)


def build(name: str) -> Strategy:
    """Return one strategy with the settings of the embedded preset, as a run builds it."""
    params = api.resolve("math-code-if", name).params.get(name, {})
    return registry.strategy_class(name)(**params)


def table(file: Path) -> str:
    """Return the table of strategies, with links as they are from `file`."""
    return _written([HEAD, *(_row(name, file) for name in names())])


def stream_table() -> str:
    """Return the table of the streams that come with clbench, a line for each edition."""
    entries = registry.listing(registry.STREAMS)
    ours = [entry.name for entry in entries if entry.package == "clbench"]
    return _written([STREAM_HEAD, *(row for name in ours for row in _editions(name))])


def _editions(name: str) -> Iterator[tuple[str, ...]]:
    stream = registry.stream(name)
    for data in stream.editions:
        edition = stream.edition(data)
        yield (
            f"`{name}`",
            f"`{data}`",
            ", ".join(task.name for task in edition.tasks),
            ", ".join(spec.id for spec in edition.world),
            edition.calibration_id,
        )


def _written(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(file: Path, text: str) -> str:
    """Return `text`, which stands in `file`, with a fresh table between the two marks."""
    mark = BEGIN.format(FILES[file])
    before, begin, rest = text.partition(mark)
    _, end, after = rest.partition(END)
    assert begin, f"{file} lacks {mark}"
    assert end, f"{file} lacks {END}"
    fresh = stream_table() if FILES[file] == "streams" else table(file)
    return f"{before}{mark}\n\n{fresh}\n\n{END}{after}"


def _row(name: str, file: Path) -> tuple[str, ...]:
    return (_link(name, file), *_facts(name))


@functools.cache
def _facts(name: str) -> tuple[str, ...]:
    strategy = build(name)
    doc = type(strategy).__doc__ or ""
    summary = CITATION.sub("", doc.strip().partition("\n")[0]).rstrip(".").replace("|", "\\|")
    papers = dict.fromkeys(ARXIV.findall(doc))
    return (
        strategy.kind,
        summary,
        ", ".join(sorted(strategy.calibration_sources())),
        ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in papers),
    )


def _link(name: str, file: Path) -> str:
    page = PAGES / f"{name}.md"
    if not page.exists():
        return f"`{name}`"
    return f"[`{name}`]({page.relative_to(file.parent).as_posix()})"


if __name__ == "__main__":
    for path in FILES:
        path.write_text(updated(path, path.read_text(encoding="utf-8")), encoding="utf-8")
