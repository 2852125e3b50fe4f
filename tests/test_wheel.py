"""The wheel holds everything that the folders hold, and works away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"clbench": "clbench", "strategies": "clbench_strategies", "tasks": "clbench_tasks"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because building writes beside the sources, and install it."""
    source = tmp_path_factory.mktemp("source")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, source]
    subprocess.run(command, check=True)
    return target


def test_it_holds_every_file_of_the_packages(site: Path):
    for folder, package in FOLDERS.items():
        assert files(site / package) == files(ROOT / folder)


def test_it_works_away_from_the_checkout(site: Path):
    code = """
import json, clbench, clbench.cli
from clbench import api
config = api.resolve("math-code-if", "lora-null")
print(json.dumps([clbench.__file__, config.preset, config.train.steps]))
"""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd="/", env=environment
    )
    where, preset, steps = json.loads(done.stdout)
    assert Path(where).is_relative_to(site)
    assert preset == "tiny"
    assert steps > 0


def files(folder: Path) -> set[str]:
    """Return the paths below a folder, without what Python leaves there."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
