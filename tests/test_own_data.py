"""The ten lines of the docs, from records to a finished run, and what becomes of changed files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_streamfile import json_lines

import clbench
from clbench.cli import main
from clbench.errors import UserError
from clbench.results import Record

ROOT = Path(__file__).resolve().parent.parent
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Peru": "Lima"}
ROWS = [
    {"country": f"{country} {year}", "capital": capital}
    for year in range(8)
    for country, capital in CAPITALS.items()
]
SMALL = ("train.steps=3", "calibration.num_windows=8", "calibration.window=64", "eval.samples=3")
QUICK = [*(word for setting in SMALL for word in ("--set", setting)), "-q"]


def page() -> tuple[str, list[str]]:
    """Return the stream file of the page and the command that runs it."""
    text = (ROOT / "docs" / "streams.md").read_text().partition("## Your own data")[2]
    (file,) = re.findall(r"^```toml\n(world = .*?)^```", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^clbench (run --stream capitals\.toml .*)$", text, re.MULTILINE)
    return file, shlex.split(command)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Carry the page out in a new folder."""
    folder = tmp_path_factory.mktemp("own")
    file, command = page()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CLBENCH_CACHE", str(folder / "cache"))
        json_lines(folder / "capitals.jsonl", ROWS)
        (folder / "capitals.toml").write_text(file)
        patch.setattr("sys.argv", ["clbench", *command, *QUICK])
        return folder, CliRunner().invoke(main, [*command, *QUICK])


@pytest.fixture
def folder(done: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(done[0])
    monkeypatch.setenv("CLBENCH_CACHE", str(done[0] / "cache"))
    return done[0]


def run_directory(folder: Path) -> Path:
    (found,) = (folder / "runs" / "capitals" / "lora-null").iterdir()
    return found


def test_it_takes_ten_lines():
    file, _ = page()
    assert len(file.splitlines()) == 10
    readme = (ROOT / "README.md").read_text()
    assert "capitals.toml" not in readme or file in readme


def test_records_become_a_finished_run(done: tuple[Path, Result], folder: Path):
    assert done[1].exit_code == 0, done[1].output
    assert "after capitals" in done[1].stdout
    again = shlex.join(["clbench", *page()[1], *QUICK, "--seed", "1"])
    assert f"\n  {again}  # another seed\n" in done[1].stdout
    record = Record.load(run_directory(folder))
    assert record.status == "complete"
    assert set(record.flags) == {"few_items", "limited"}
    assert record.config.stream == "capitals"
    assert record.matrix.evals == ("capitals", "tiny_facts")
    assert [row["capitals"].num_items for row in record.matrix.rows] == [3, 3]
    task = record.data["tasks"]["capitals"]
    assert (task["num_rows"], task["part"]) == (36, "kept")
    assert record.evals["capitals"].model_dump()["data"]["test"][0]["part"] == "held_out"


def test_a_record_names_what_was_trained_and_scored(folder: Path):
    shown = CliRunner().invoke(main, ["show", str(run_directory(folder))]).stdout
    after = shown.partition("the paired difference")[2]
    for line in (
        r"train capitals +capitals\.jsonl \(without the last tenth\) +sha256 \w{12} +36 +not",
        r"eval capitals +capitals\.jsonl \(the last tenth\) +sha256 \w{12} +not stated",
        r"calibration +tiny_facts/statements",
        r'train capitals: template with prompt "Question: What is the capital of \{country\}\?\\n'
        r'Answer:", answer " \{capital\}"',
        r"eval capitals: clbench's, version 1, zero-shot, .*prompt "
        r'"Question: What is the capital of \w+ \d\?\\nAnswer:"',
        r"eval capitals +exact_match,normalized +3 drawn +0 +32 new tokens",
        r"eval tiny_facts +exact_match,remove_whitespace +3 drawn",
        r"items of each eval, at most: 3",
        r"stream file: capitals\.toml",
        r"leak: none; no eval's question is in what the model was trained",
    ):
        assert re.search(line, after), line


def test_a_definition_is_in_the_record_without_its_file(folder: Path):
    run = json.loads((run_directory(folder) / "record.json").read_text())["config"]["run"]
    assert run["definition"]["tasks"]["capitals"]["answer"] == " {capital}"
    assert run["definition"]["order"] == ["capitals"]
    assert list(run["definition"]["files"]) == ["capitals.jsonl"]


def test_a_finished_run_is_read_back_and_a_changed_file_is_another_run(folder: Path):
    _, command = page()
    out = ["--out", str(run_directory(folder))]
    before = Record.load(run_directory(folder))
    again = CliRunner().invoke(main, [*command, *QUICK, *out, "--json"])
    assert json.loads(again.stdout) == before.to_json()
    file, records = folder / "capitals.toml", folder / "capitals.jsonl"
    for path, old, new, named in (
        (file, "{country}?", "{country} ?", "definition.tasks.capitals.prompt 'Question: What is"),
        (records, "Rome", "Roma", "definition.files.capitals.jsonl '"),
    ):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        refused = CliRunner().invoke(main, [*command, *QUICK, *out])
        path.write_text(text)
        assert refused.exit_code == 2
        assert named in refused.stderr
        assert "holds a run of another configuration" in refused.stderr
    assert Record.load(run_directory(folder)) == before


def test_python_takes_the_same_options(folder: Path):
    with pytest.raises(UserError, match="unknown task 'x'; choices: capitals"):
        clbench.run("capitals.toml", "lora", tasks=["x"], train_limit=5, eval_limit=3)
    settings = {"train.steps": 1}
    record = clbench.run(
        "capitals.toml", "lora", train_limit=5, eval_limit=2, settings=settings, out="few"
    )
    assert record.data["tasks"]["capitals"]["num_rows"] == 5
    assert record.matrix.rows[0]["capitals"].num_items == 2
    run = record.config.model_dump()["run"]
    assert (run["train_limit"], run["eval"]["samples"]) == (5, 2)
