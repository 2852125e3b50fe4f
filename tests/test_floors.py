"""What loads what, seen from outside: a fresh interpreter and its modules."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clbench

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "lm_eval", "datasets", "peft", "accelerate"}
PLUGINS = {"clbench_strategies", "clbench_tasks"}
LIGHT = ["metrics", "results", "config", "registry", "strategy", "stream", "task", "comparison"]


def loaded(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after some code."""
    probe = f"import sys\n{code}\nprint()\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd="/"
    )
    return set(done.stdout.splitlines()[-1].split())


def verb(*arguments: str) -> str:
    return (
        "from clbench.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as end: assert end.code == 0, end.code"
    )


def test_quick_verbs_load_nothing_heavy():
    verbs = [["--help"], ["run", "--help"], ["export", "--help"], ["list"], ["--version"]]
    found = loaded("\n".join(verb(*arguments) for arguments in verbs))
    assert not found & (HEAVY | {"numpy", "scipy", "pydantic"})
    assert "click" in found


def test_light_modules_load_nothing_heavy_and_no_plugin():
    found = loaded("\n".join(f"import clbench.{name}" for name in LIGHT))
    assert not found & (HEAVY | PLUGINS)
    assert "numpy" in found


def test_only_evaluation_imports_lm_eval():
    """But for one comparison of answers, which is imported when the first is compared."""
    folders = ("clbench", "strategies", "tasks")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "lm_eval" in _imports(path)
    }
    inside = {f"clbench/{name}.py" for name in ("evaluation", "harness", "jointeval")}
    assert found == inside | {"tasks/math_answer.py"}


def test_plugins_import_their_own_folder_relatively():
    for folder in ("strategies", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            own = _imports(path) & {"clbench_strategies", "clbench_tasks", folder}
            assert not own, f"{path} imports {own}; write it relative, or mypy loses it"


def test_public_names_load_from_where_they_are_said_to_be():
    for name in clbench.__all__:
        assert getattr(clbench, name) is not None
    assert set(dir(clbench)) == set(clbench.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        clbench.nonsense  # noqa: B018


def test_public_names_are_these():
    assert set(clbench.__all__) == {
        *("run", "__version__", "RunConfig", "TrainConfig", "CalibrationConfig", "EvalConfig"),
        *("Strategy", "TaskContext", "Batch", "Example", "Step", "Trained"),
        *("Stream", "Edition", "Task", "Eval", "Row"),
        *("Record", "ScoreMatrix", "UserError", "RunFailed"),
    }


def test_every_package_is_in_the_wheel():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / folder for name, folder in table["package-dir"].items()}
    found = {
        ".".join([name, *init.parent.relative_to(folder).parts])
        for name, folder in folders.items()
        for init in folder.rglob("__init__.py")
    }
    assert found == set(table["packages"])


def test_the_version_is_said_once_more_and_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == clbench.__version__
    assert f"version: {clbench.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_the_lock_pins_everything_with_hashes_and_names_no_host():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "\ntorch===" in text
        pins = [line for line in text.splitlines() if line and line[0] not in " #"]
        assert all("==" in pin and pin.endswith("\\") for pin in pins)
        assert text.count("--hash=sha256:") >= len(pins)


def test_the_lock_of_tests_holds_the_lock_of_runs():
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.split(" ")[0] for line in lines if line and line[0] not in " #"}

    assert pins("requirements.lock") < pins("requirements-dev.lock")


def test_every_dependency_is_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "requirements.lock").read_text()
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0]
        assert f"\n{name}==" in text, name


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_listing_as_json_is_json():
    done = subprocess.run(
        [sys.executable, "-c", verb("list", "--json")], capture_output=True, text=True, check=True
    )
    assert {"strategies", "streams", "models", "presets"} == set(json.loads(done.stdout))
