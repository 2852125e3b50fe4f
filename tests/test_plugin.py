"""A stranger's package: built, installed, listed, and run through the whole stream."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from toy_runs import save_toy_model

from clbench.cli import main
from clbench.results import Record

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the plugin as its user would, into a folder of its own."""
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(PLUGIN, source)
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, source]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_is_fifteen_lines():
    code = (PLUGIN / "clbench_sparse.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 15


@pytest.mark.usefixtures("installed")
def test_it_is_listed_with_its_package():
    strategies = json.loads(invoke("list", "--json"))["strategies"]
    assert {"name": "sparse", "package": "clbench-sparse", "version": "0.1.0"} in strategies


@pytest.mark.usefixtures("installed")
def test_it_keeps_the_contract():
    assert "held" in invoke("check", "sparse")  # a failure ends with 3


@pytest.mark.usefixtures("installed")
def test_it_runs_the_stream_and_holds_the_weights_back(tmp_path: Path):
    model = save_toy_model(tmp_path / "model")
    sizes = ["train.steps=4", "train.batch_size=4", "eval.samples=2", "eval.rank_items=2"]
    run = ["run", "--stream", "math-code-if", "--model", str(model), "--data", "tiny", "-q"]
    for setting in [*sizes, "train.lr=0.01"]:
        run += ["--set", setting]
    strong = tmp_path / "strong"
    assert "after if" in invoke(
        *run, "--strategy", "sparse", "--out", str(strong), "--set", "strength=1000"
    )
    record = Record.load(strong)
    assert record.status == "complete"
    assert record.config.strategy == "lora+sparse"
    assert record.config.params["sparse"] == {"strength": 1000.0}
    first = ["--set", "run.tasks=['math']"]
    weak, plain = tmp_path / "weak", tmp_path / "plain"
    invoke(*run, *first, "--strategy", "sparse", "--out", str(weak), "--set", "strength=0")
    invoke(*run, *first, "--strategy", "lora", "--out", str(plain))
    assert moved(weak) == moved(plain)
    assert moved(strong) < moved(plain)


def moved(run: Path) -> float:
    """Return how far the first task took the weights, relative to their norm."""
    phases = json.loads((run / "record.json").read_text())["provenance"]["phases"]
    return next(p["dw_rel"]["all"] for p in phases if (p["row"], p["phase"]) == (1, "fold"))
