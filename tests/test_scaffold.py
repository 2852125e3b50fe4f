"""`clbench new`: the package that it writes passes its own tests, installed as a stranger would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from toy_runs import save_toy_model

from clbench.cli import main
from clbench.results import Record
from clbench.scaffold import write_plugin

NAME = "keep-close"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin(NAME, tmp_path_factory.mktemp("new") / "package")[0].parent


@pytest.fixture(scope="module")
def site(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, package]
    subprocess.run(command, check=True)
    return target


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_it_says_what_it_wrote_and_what_to_do_next(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("new", NAME)
    assert result.exit_code == 0, result.output
    files = ["clbench_keep_close.py", "test_clbench_keep_close.py", "pyproject.toml", "README.md"]
    assert sorted(p.name for p in (tmp_path / NAME).iterdir()) == sorted(files)
    assert result.stdout.splitlines()[:4] == [f"{NAME}/{file}" for file in files]
    assert f"clbench check {NAME}" in result.stdout


def test_it_is_clean(package: Path):
    for verb in (["check", "--select", "E,F,I,UP,B,SIM,RUF,PT"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *verb, "--isolated", "--line-length", "100", "."]
        done = subprocess.run(command, capture_output=True, text=True, cwd=package)
        assert done.returncode == 0, done.stdout
    assert "$" not in "".join(path.read_text() for path in package.iterdir() if path.is_file())


def test_it_passes_its_own_tests(package: Path, site: Path):
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=package, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "15 passed" in done.stdout  # 13 checks apply, and two tests of its own


def test_it_runs_the_stream(site: Path, tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    strategies = json.loads(invoke("list", "--json").stdout)["strategies"]
    assert {"name": NAME, "package": f"clbench-{NAME}", "version": "0.1.0"} in strategies
    model = save_toy_model(tmp_path / "model")
    sizes = ["train.steps=2", "train.batch_size=4", "eval.samples=2", "eval.rank_items=2"]
    run = ["run", "--stream", "math-code-if", "--model", str(model), "--data", "tiny", "-q"]
    for setting in [*sizes, f"{NAME}.strength=0.5"]:
        run += ["--set", setting]
    result = invoke(*run, "--strategy", NAME, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    record = Record.load(tmp_path / "run")
    assert record.status == "complete"
    assert record.config.params[NAME] == {"strength": 0.5}


def test_an_existing_folder_is_refused(tmp_path: Path):
    result = invoke("new", NAME, "--dir", str(tmp_path))
    assert result.exit_code == 2
    assert "exists already; give another folder with --dir" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Mine", "my_strategy", "my--one", "2nd", "my-2nd", "none", "a+b"])
def test_a_name_that_no_strategy_can_have_is_refused(name: str, tmp_path: Path):
    result = invoke("new", name, "--dir", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert f"{name!r} is no name for a strategy" in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_taken_is_refused(tmp_path: Path):
    result = invoke("new", "lora", "--dir", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert "strategy 'lora' exists already, in package clbench" in result.stderr
