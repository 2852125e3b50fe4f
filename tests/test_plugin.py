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
    code = (PLUGIN / "clbench_shrink.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 15


@pytest.mark.usefixtures("installed")
def test_it_is_listed_with_its_package():
    strategies = json.loads(invoke("list", "--json"))["strategies"]
    assert {"name": "shrink", "package": "clbench-shrink", "version": "0.1.0"} in strategies


@pytest.mark.usefixtures("installed")
def test_it_runs_the_stream_and_halves_what_each_task_changed(tmp_path: Path):
    model = save_toy_model(tmp_path / "model")
    sizes = ["train.steps=2", "train.batch_size=4", "eval.samples=2", "eval.rank_items=2"]
    run = ["run", "--stream", "math-code-if", "--model", str(model), "--data", "tiny", "-q"]
    for setting in sizes:
        run += ["--set", setting]
    half = tmp_path / "half"
    shrunk = [*run, "--strategy", "shrink"]
    assert "after if" in invoke(*shrunk, "--out", str(half))
    record = Record.load(half)
    assert record.status == "complete"
    assert record.config.strategy == "lora+shrink"
    assert record.config.params["shrink"] == {"keep": 0.5}
    whole = tmp_path / "whole"
    invoke(*shrunk, "--out", str(whole), "--set", "keep=1.0", "--set", "run.tasks=['math']")
    assert moved(half) == pytest.approx(0.5 * moved(whole), rel=1e-3)


def moved(run: Path) -> float:
    """Return how far the first task took the weights, relative to their norm."""
    phases = json.loads((run / "record.json").read_text())["provenance"]["phases"]
    return next(p["dw_rel"]["all"] for p in phases if (p["row"], p["phase"]) == (1, "fold"))
