"""The pages say what the code does: tables, defaults, commands, expected failures, formulas."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from clbench import experiment
from clbench.cli import main
from clbench.matrix import ScoreMatrix
from clbench.results import Record
from clbench.strategy import Strategy

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "strategies"
HEADINGS = [
    "Definition",
    "Cost",
    "Hyperparameters",
    "Paper and released code",
    "Published numbers",
    "Expected failures",
    "Run it",
]
COLUMNS = ["field", "default", "paper", "meaning"]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load(ROOT / "docs" / "tables.py")


def problems(name: str, strategy: Strategy, text: str) -> list[str]:
    """Return what is wrong with the page of a strategy, a sentence each."""
    found = []
    first, *rest = re.findall(r"^(#{1,2}) (.*)$", _without_code(text), re.MULTILINE)
    if first != ("#", f"`{name}`"):
        found.append(f"the title is {first[1]!r}, not '`{name}`'")
    headings = [title for _, title in rest]
    if headings != HEADINGS:
        return [*found, f"the headings are {headings}, not {HEADINGS}"]
    sections = dict(zip(HEADINGS, _sections(text), strict=True))
    found += [f"{title} is empty" for title, body in sections.items() if not body]
    found += _table_problems(strategy, sections["Hyperparameters"])
    failures = _plain(sections["Expected failures"])
    for check, reason in strategy.expected_failures().items():
        if check not in failures or _plain(reason) not in failures:
            found.append(f"expected failure {check!r} is not repeated with its reason: {reason}")
    if not any(name in run for run in _commands(sections["Run it"])):
        found.append(f"no command runs {name}")
    return found


def _table_problems(strategy: Strategy, section: str) -> list[str]:
    table = re.search(r"^\|.*(\n\|.*)*", section, re.MULTILINE)  # the first one
    lines = table[0].splitlines() if table else []
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines]
    head, body = ([cell.strip() for cell in rows[0]], rows[2:]) if rows else (COLUMNS, [])
    stated = {row[0].strip().strip("`"): row[1].strip().strip("`") for row in body}
    expected = {f.name: _default(f) for f in dataclasses.fields(strategy) if f.init}
    found = [f"the columns are {head}, not {COLUMNS}"] if head != COLUMNS else []
    found += [f"{field} is not in the table" for field in expected.keys() - stated.keys()]
    found += [f"{field} is no field" for field in stated.keys() - expected.keys()]
    found += [
        f"the default of {field} is {expected[field]}, not {stated[field]}"
        for field in expected.keys() & stated.keys()
        if expected[field] != stated[field]
    ]
    return sorted(found)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required"


def _sections(text: str) -> list[str]:
    """Return what stands below each heading of the second level."""
    bodies: list[list[str]] = []
    code = False
    for line in text.splitlines():
        code ^= line.startswith("```")
        if line.startswith("## ") and not code:
            bodies.append([])
        elif bodies:
            bodies[-1].append(line)
    return ["\n".join(body).strip() for body in bodies]


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _plain(text: str) -> str:
    """Return words only: a page may wrap lines, set names in code and begin a sentence."""
    return " ".join(text.replace("`", "").rstrip(".").split()).casefold()


def _commands(text: str) -> list[list[str]]:
    """Return the arguments of every `clbench run` in the code blocks, each strategy in parts."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    runs = [shlex.split(line, comments=True) for line in lines if "clbench run " in line]
    return [[part for word in run for part in word.split("+")] for run in runs]


# The generated table


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.name)
def test_the_table_of_strategies_is_what_the_registry_says(path: Path) -> None:
    assert path.read_text() == tables.updated(path, path.read_text()), "run `python docs/tables.py`"


def test_the_table_names_what_a_class_says_of_itself() -> None:
    rows = {line.split("|")[1].strip(): line for line in tables.table(PAGES).splitlines()[2:]}
    row = next(line for name, line in rows.items() if "`lora-null`" in name)
    assert "| adapter | LoRA-Null: start where pre-trained inputs have no energy | world |" in row
    assert "[2503.02659](https://arxiv.org/abs/2503.02659)" in row
    assert len(rows) == len(tables.names())


def test_a_table_that_was_edited_is_mended() -> None:
    readme = ROOT / "README.md"
    edited = readme.read_text().replace("| world |", "| nothing |")
    assert edited != readme.read_text()
    assert tables.updated(readme, edited) == readme.read_text()


# One page per strategy


@pytest.mark.parametrize("name", tables.names())
def test_every_strategy_has_its_page(name: str) -> None:
    page = PAGES / f"{name}.md"
    assert page.exists(), f"docs/strategies/{name}.md is missing"
    assert problems(name, tables.build(name), page.read_text()) == []


def test_every_page_has_its_strategy() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"index"}
    assert pages <= set(tables.names())


@pytest.fixture
def configurations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the experiment by one that remembers which strategy it was asked for."""
    seen: list[str] = []
    record = Record.model_validate(
        {
            "identity": {"run_id": "r", "suite_version": "0"},
            "config": {"stream": "s", "strategy": "x"},
            "model": {"id": "tiny", "dtype": "float32"},
            "matrix": ScoreMatrix(("t",), {"t": ("e",)}),
        }
    )

    def run(config: Any, **_: Any) -> Record:
        seen.append(config.strategy)
        return record

    monkeypatch.setattr(experiment, "run", run)
    return seen


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_the_commands_of_a_page_are_understood(path: Path, configurations: list[str]) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        _, found, arguments = line.partition("clbench run ")
        if found:
            command = ["run", *shlex.split(arguments, comments=True)]
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 0, f"{line}: {result.output}"
            assert configurations[-1] in command


GOOD = """# `some-guard`

Three sentences.

## Definition

$$ a = b $$

## Cost

None.

## Hyperparameters

| field | default | paper | meaning |
| --- | --- | --- | --- |
| `strength` | required | 1 to 10 | how much |
| `mode` | `'online'` | | which |
| `gamma` | `1e-05` | | decay |

## Paper and released code

```python
## not a heading
```

## Published numbers

None known for a stream.

## Expected failures

- `does_not_drift`: it rounds the
  weights at every `merge`.

## Run it

```bash
clbench run --stream math-code-if \\
    --strategy lora+some-guard --set some-guard.strength=2  # or 3
```
"""


@dataclasses.dataclass
class SomeGuard(Strategy):
    strength: float
    mode: str = "online"
    gamma: float = 1e-5

    def expected_failures(self) -> dict[str, str]:
        return {"does_not_drift": "it rounds the weights at every merge"}


def test_a_page_that_is_right_has_no_problem() -> None:
    assert problems("some-guard", SomeGuard(2.0), GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# `some-guard`", "# Some guard", "title"),
        ("## Cost", "## Costs", "headings"),
        ("## Cost\n\nNone.", "## Cost", "Cost is empty"),
        ("| paper | meaning |", "| meaning | paper |", "columns"),
        ("`'online'`", "`online`", "default of mode is 'online', not online"),
        ("| `strength` | required |", "| `strength` | `1.0` |", "default of strength is required"),
        ("| `mode` | `'online'` | | which |\n", "", "mode is not in the table"),
        ("| `gamma` |", "| `gama` |", "gama is no field"),
        ("`does_not_drift`: it", "It", "'does_not_drift' is not repeated"),
        ("weights at every `merge`", "weights", "'does_not_drift' is not repeated"),
        ("--strategy lora+some-guard", "--strategy lora", "no command runs some-guard"),
    ],
)
def test_what_is_wrong_with_a_page_is_said(old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert any(
        said in problem for problem in problems("some-guard", SomeGuard(2.0), _page(old, new))
    )


def _page(old: str, new: str) -> str:
    return GOOD.replace(old, new)


# The site


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra: docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        shown = place.parent if place.name == "index" else place
        assert (tmp_path / shown / "index.html").exists(), page
    assert "strategies/" in home
    assert not re.search(r'(src|href)="https?://[^"]*\.(js|css|woff2?)', home)
    assert not list(tmp_path.glob("*.py"))


def test_formulas_become_mathml_and_strange_ones_are_named(caplog) -> None:
    if importlib.util.find_spec("latex2mathml") is None:
        pytest.skip("latex2mathml is not installed (extra: docs)")
    site = load(ROOT / "docs" / "site.py")
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="strategies/x.md"))
    text = r'<p><span class="arithmatex">\(a &lt; b\)</span></p>'
    with caplog.at_level(logging.WARNING):
        shown = site.on_page_content(text, page=page)
    assert shown.startswith("<p><math")
    assert "arithmatex" not in shown
    assert caplog.records == []
    block = '<div class="arithmatex">\\[\n\\nosuch x\n\\]</div>'
    assert 'display="block"' in site.on_page_content(block, page=page)
    assert "strategies/x.md" in caplog.text
    assert "\\nosuch" in caplog.text
