"""`clbench check`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clbench import registry
from clbench.cli import main
from clbench.testing import CHECKS, Finding, Subject, check_name, verdict

GUARD = """
from dataclasses import dataclass
from clbench import Strategy

@dataclass
class Guard(Strategy):
    kind = "guard"
    implies = "lora"
    strength: float
"""


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """Let every check hold, but for what a test puts here; no check runs."""
    special: dict[str, Finding] = {}

    def examine(checked: Subject):
        for check in CHECKS:
            name = check_name(check)
            yield special.get(f"{checked.name} {name}", Finding(name, "held", "", 0.5))

    monkeypatch.setattr(verdict, "examine", examine)
    return special


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


@pytest.mark.usefixtures("found")
def test_one_strategy_is_a_row_per_check():
    result = invoke("lora")
    assert result.exit_code == 0
    head, _, *rows = result.stdout.splitlines()
    assert head.split() == ["lora", "s"]
    assert [row.split() for row in rows] == [[check_name(c), "held", "0.5"] for c in CHECKS]


def test_several_are_a_row_each_with_their_reasons_below(found: dict[str, Finding]):
    found["lora learns"] = Finding("learns", "expected", "it is slow", 0.5)
    found["full composes"] = Finding("composes", "failed", "delta() is not 0", 0.5)
    result = invoke("lora", "full")
    lines = result.stdout.splitlines()
    assert [line for line in lines if ": " in line] == [
        "lora: learns fails as declared: it is slow",
        "full: composes FAILED: delta() is not 0",
    ]
    table = {line.split()[0]: line.split()[1:] for line in lines[2:4]}
    assert table["lora"] == [*"+++++", "x", *"++++++++", "7.0"]
    assert table["full"] == [*"+++++++++++++", "F", "7.0"]
    assert "6 learns" in result.stdout
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == "clbench: full does not keep the contract"


def test_json_holds_every_finding_and_the_hyperparameters(found: dict[str, Finding]):
    found["lora learns"] = Finding("learns", "failed", "no", 0.5)
    result = invoke("lora", "--json", "--set", "rank=3")
    assert result.exit_code == 3
    (one,) = json.loads(result.stdout)
    assert (one["strategy"], one["params"]["lora"]["rank"]) == ("lora", 3)
    assert [check["check"] for check in one["checks"]] == [check_name(c) for c in CHECKS]
    learns = {"check": "learns", "status": "failed", "reason": "no", "seconds": 0.5}
    assert one["checks"][5] == learns


@pytest.mark.usefixtures("found")
def test_all_is_every_listed_strategy():
    result = invoke("--all", "--json")
    assert result.exit_code == 0
    listed = [entry.name for entry in registry.listing(registry.STRATEGIES)]
    assert [one["strategy"] for one in json.loads(result.stdout)] == listed


@pytest.mark.usefixtures("found")
def test_one_that_cannot_be_loaded_leaves_the_others_to_be_checked(monkeypatch):
    broken = registry.Entry("broken", "no_such_module:Broken", "a-package", "1")
    listing = [broken, *registry.listing(registry.STRATEGIES)]
    monkeypatch.setattr(registry, "listing", lambda group: listing)
    result = invoke("--all", "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)) == len(listing) - 1
    assert "unknown strategy 'broken'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give the names of strategies to check, or --all"),
        (["lora", "--all"], "give the names of strategies to check, or --all"),
        (["lor"], "unknown strategy 'lor'; did you mean lora?"),
        (["lora", "--set", "rank=0"], "rank 0 is not a positive integer"),
        (["lora", "--set", "rnak=1"], "unknown field 'rnak'"),
        (["lora+full"], "lora and full are both adapters"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert sentence in result.stderr


@pytest.mark.usefixtures("found")
def test_a_required_hyperparameter_has_to_come_from_somewhere(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(GUARD)
    name = f"{path}:Guard"
    refused = invoke(name)
    assert refused.exit_code == 2
    assert "needs strength" in refused.stderr
    given = invoke(name, "--set", "strength=0.5", "--json")
    assert given.exit_code == 0, given.stderr
    assert json.loads(given.stdout)[0]["params"]["guard"] == {"strength": 0.5}
