"""Stream files: what they become, when they read, and the sentence for everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from clbench import api, registry
from clbench.dataset import Source
from clbench.errors import UserError
from clbench.hub import Hub
from clbench.stream import Edition
from clbench.task import Eval, Row, Task

CAPITALS = [{"country": f"C{i}", "capital": f"T{i}"} for i in range(40)]
FILE = """
[[tasks]]
name = "capitals"
data = "train.jsonl"
prompt = "Q: {country}?\\nA:"
answer = " {capital}"
[tasks.eval]
score = "exact_match"
"""


def rows_of_toys() -> Sequence[Row]:
    return [Row(str(i), f"{i}?", f" {i}") for i in range(9)]


def toy_task() -> Task:
    spec = Eval("toy_eval", 1, {"docs": list}, "acc,none", default_items=50)
    return Task("toy", rows_of_toys, (spec,), info={"id": "toys"})


def toy_world() -> Eval:
    return Eval("toy_world", 1, {"docs": list}, "acc,none")


def toy_texts() -> Callable[[], Sequence[str]]:
    return lambda: ["some world text"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a data file, in which tasks `toy` and others are registered."""
    json_lines(tmp_path / "train.jsonl", CAPITALS)
    known: Mapping[str, Mapping[str, Any]] = {
        registry.TASKS: {"toy": toy_task, "broken": toy_world},
        registry.EVALS: {"toy-world": toy_world},
        registry.SOURCES: {"toy-texts": toy_texts},
    }
    load = registry.load

    def find(group: str, name: str) -> Any:
        return known.get(group, {}).get(name) or load(group, name)

    monkeypatch.setattr(registry, "load", find)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def json_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def edition(text: str, data: str = "own") -> Edition:
    Path("my.toml").write_text(text)
    return registry.stream("my.toml").edition(data)


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        edition(text)
    sentence = str(caught.value)
    assert sentence.startswith("my.toml: ")
    assert "\n" not in sentence
    return sentence.removeprefix("my.toml: ")


# What a file becomes


def test_a_file_of_names_is_a_stream(folder: Path):
    (folder / "my.toml").write_text(
        """
        about = "two tasks"
        notes = "the order is ours"
        source = "secura"
        [editions.tiny]
        tasks = [{use = "toy", train_limit = 4}, {use = "toy", name = "again", eval_limit = 7}]
        [editions.full]
        tasks = ["toy"]
        world = ["toy-world"]
        calibration = "toy-texts"
        preset = "tiny"
        """
    )
    stream = registry.stream("./my.toml")
    assert (stream.name, stream.about, stream.source) == ("my", "two tasks", "secura")
    assert stream.notes == "the order is ours"
    assert list(stream.editions) == ["tiny", "full"]
    full = stream.edition("full")
    assert [e.id for e in full.evals] == ["toy_eval", "toy_world"]
    assert full.preset == "tiny"
    assert full.calibration_id == "toy-texts"
    assert full.calibration is not None
    assert not isinstance(full.calibration, Source)
    assert full.calibration() == ["some world text"]


def test_what_is_used_can_be_made_smaller(folder: Path):
    (task,) = edition(
        'tasks = [{use = "toy", name = "few", train_limit = 4, eval_limit = 7}]'
    ).tasks
    assert task.name == "few"
    assert not isinstance(task.train, Source)
    assert [row.id for row in task.train()] == ["0", "1", "2", "3"]
    assert task.evals[0].default_items == 7
    assert dict(task.info) == {"id": "toys", "limit": 4}
    (task,) = edition('train_limit = 3\neval_limit = 60\ntasks = ["toy"]').tasks
    assert not isinstance(task.train, Source)
    assert len(task.train()) == 3
    assert task.evals[0].default_items == 50  # its own is less


def test_nothing_is_looked_up_before_an_edition_is_asked_for(folder: Path):
    (folder / "my.toml").write_text('[editions.a]\ntasks = ["toy"]\n[editions.b]\ntasks = ["x"]\n')
    stream = registry.stream("my.toml")
    assert stream.edition("a").tasks[0].name == "toy"
    with pytest.raises(UserError, match=r"my\.toml: unknown task 'x'; choices: "):
        stream.edition("b")


def test_the_only_edition_is_that_of_every_model_and_others_are_chosen(folder: Path):
    (folder / "my.toml").write_text('tasks = ["toy"]')
    assert api.resolve("my.toml", "lora").data == "own"
    assert api.resolve("my.toml", "lora", model="org/name").data == "own"
    (folder / "my.toml").write_text(
        '[editions.a]\ntasks = ["toy"]\n[editions.b]\ntasks = ["toy"]\n'
    )
    assert api.resolve("my.toml", "lora", data="b").data == "b"
    sentence = (
        "stream my has no full data, the default for model 'org/name'; choices of --data: a, b"
    )
    with pytest.raises(UserError, match=sentence):
        api.resolve("my.toml", "lora", model="org/name")
    with pytest.raises(UserError, match="unknown data of stream my 'c'; choices: a, b"):
        api.resolve("my.toml", "lora", data="c")


def test_records_become_rows_and_the_last_tenth_is_scored(folder: Path):
    (task,) = edition(FILE).tasks
    assert isinstance(task.train, Source)
    rows = Hub().rows(task.train)
    assert len(rows) == 36
    assert rows[0].prompt == "Q: C0?\nA:"
    assert rows[0].answer == " T0"
    (spec,) = task.evals
    documents = Hub().table(spec.data["test"])
    assert [record["capital"] for record in documents] == ["T36", "T37", "T38", "T39"]
    assert spec.prepare is not None
    assert spec.prepare(documents[0]) == {
        "prompt": "Q: C36?\nA:",
        "question": "C36",
        "golds": ["T36"],
        "reference": " T36",
    }
