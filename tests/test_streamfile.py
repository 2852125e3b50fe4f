"""Stream files: what they become, when they read, and the sentence for everything that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clbench import api, preparation, registry
from clbench.cli import main
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
CHOICE = 'options = ["T0", "T1"]\n[tasks.eval]'


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
        "question": "Q: C36?\nA:",
        "golds": ["T36"],
        "reference": " T36",
    }


def test_an_eval_of_another_split_leaves_all_rows_to_training(folder: Path):
    (task,) = edition(
        """
        [[tasks]]
        name = "reviews"
        hub = "owner/reviews"
        config = "plain"
        license = "MIT"
        columns = {text = "sentence"}
        prompt = "{text}\\n"
        answer = "{label}"
        options = ["bad", "good"]
        [tasks.eval]
        split = "validation"
        score = "choice"
        """
    ).tasks
    assert isinstance(task.train, Source)
    trained, scored = task.train.data, task.evals[0].data["test"]
    assert not isinstance(scored, tuple)
    assert (trained.place, trained.id, trained.config) == ("hub", "owner/reviews", "plain")
    assert [(d.split, d.part) for d in (trained, scored)] == [
        ("train", "all"),
        ("validation", "all"),
    ]
    assert trained.columns == scored.columns == ("sentence", "label")
    assert (task.license, dict(task.info)) == ("MIT", {"id": "owner/reviews"})
    assert task.evals[0].chance == 0.5
    assert task.train.prepare is not None
    assert task.train.prepare({"sentence": "fine", "label": 1}) == {"text": "fine", "label": "good"}
    assert task.evals[0].prepare is not None
    document = task.evals[0].prepare({"sentence": "fine", "label": 1})
    assert document is not None
    assert (document["options"], document["label"]) == (["bad", "good"], 1)


def test_lm_eval_s_own_tasks_and_registered_evals_score_a_task(folder: Path):
    (task,) = edition(
        FILE.replace(
            'score = "exact_match"',
            'lm_eval = "gsm8k"\nmetric = "exact_match,strict-match"\nhub = "openai/gsm8k"\n'
            'shots = 0\nsplit = "test"\n[[world]]\nuse = "toy-world"\neval_limit = 5',
        )
    ).tasks
    assert (task.evals[0].config, task.evals[0].metric) == ("gsm8k", "exact_match,strict-match")
    assert list(task.evals[0].data) == ["test"]
    assert (task.evals[0].shots, task.evals[0].version) == (0, None)
    assert isinstance(task.train, Source)
    assert task.train.data.part == "all"
    (task,) = edition(FILE.replace('score = "exact_match"', 'use = "toy-world"')).tasks
    assert [e.id for e in task.evals] == ["toy_world"]


def test_a_task_may_have_several_evals_and_templates_of_its_evals(folder: Path):
    (task,) = edition(
        FILE.replace("[tasks.eval]", "[[tasks.eval]]")
        + '[[tasks.eval]]\nname = "again"\nscore = "contains"\nprompt = "{country}:"\nstops = []\n'
    ).tasks
    assert [e.id for e in task.evals] == ["capitals", "again"]
    assert task.evals[1].prepare is not None
    document = task.evals[1].prepare({"country": "C1", "capital": "T1"})
    assert document is not None
    assert (document["prompt"], document["reference"]) == ("C1:", " T1")
    config = task.evals[1].config
    assert not isinstance(config, str)
    assert config["generation_kwargs"]["until"] == []


def test_what_is_measured_beside_the_scores_is_named(folder: Path):
    made = edition('tasks = ["toy"]\ndiagnostics = ["wikitext"]\neval_limit = 7')
    assert [spec.id for spec in made.diagnostics] == ["wikitext"]
    assert made.diagnostics[0].default_items == 7
    definition = registry.stream("my.toml").definitions["own"]()
    assert definition["diagnostics"] == ["wikitext"]


def test_world_and_calibration_may_be_one_s_own(folder: Path):
    made = edition(
        FILE
        + """
        [calibration]
        data = "train.jsonl"
        text = "{capital} is in {country}."
        limit = 2
        [[world]]
        name = "old"
        data = "train.jsonl"
        prompt = "{country}:"
        answer = " {capital}"
        score = "exact_match"
        """
    )
    assert isinstance(made.calibration, Source)
    assert made.calibration_id == "train.jsonl"
    assert [row.prompt + row.answer for row in Hub().rows(made.calibration)] == [
        "T0 is in C0.",
        "T1 is in C1.",
    ]
    (world,) = made.world
    assert world.id == "old"
    assert len(Hub().table(world.data["test"])) == 40


def test_a_list_of_right_answers_is_scored_as_a_whole_and_learned_by_its_first(folder: Path):
    json_lines(folder / "many.jsonl", [{"q": "a?", "golds": ["x", "y"]}] * 20)
    text = FILE.replace("train.jsonl", "many.jsonl").replace("{country}", "{q}")
    (task,) = edition(text.replace("{capital}", "{golds}")).tasks
    assert isinstance(task.train, Source)
    assert Hub().rows(task.train)[0].answer == " x"
    spec = task.evals[0]
    assert spec.prepare is not None
    assert spec.prepare({"q": "a?", "golds": ["x", "y"]})["golds"] == ["x", "y"]  # type: ignore[index]


# What is wrong


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("prompt =", "promt =", "unknown field of tasks.capitals 'promt'; did you mean prompt? "),
        (
            "[[tasks]]",
            "abot = 1\n[[tasks]]",
            "unknown key of the stream file 'abot'; did you mean a",
        ),
        (
            "[[tasks]]",
            "train_limit = 0\n[[tasks]]",
            "stream.train_limit is 0: input should be grea",
        ),
        ("train.jsonl", "trian.jsonl", "tasks.capitals: there is no data file '"),
        (
            'data = "train.jsonl"',
            "",
            'tasks.capitals: it has no records: give data = "FILE" or hub',
        ),
        (
            "data =",
            'hub = "a/b"\ndata =',
            "tasks.capitals: data and hub both say where the records",
        ),
        (
            "data =",
            'config = "x"\ndata =',
            "tasks.capitals: config belongs to hub, but data = 'tra",
        ),
        ('"capitals"', '"my capitals"', "tasks.my capitals: name 'my capitals' may hold letters,"),
        ('name = "capitals"', "", "tasks.0: name is missing"),
        ("{capital}", "yes", "tasks.capitals: the answer template ' yes' names no column of the "),
        (
            "{country}",
            "{country",
            "tasks.capitals: the template 'Q: {country?\\nA:' is malformed: ",
        ),
        (
            "{country}",
            "{0}",
            "tasks.capitals: the template 'Q: {0}?\\nA:' holds {0}, which is no co",
        ),
        (
            "exact_match",
            "exact",
            "tasks.capitals.eval: unknown score 'exact'; did you mean exact_ma",
        ),
        ('score = "exact_match"', "", "tasks.capitals: eval is missing: say how it is scored"),
        ("score =", "new_tokens = 0\nscore =", "tasks.capitals.eval.new_tokens is 0: input should"),
        ("score =", 'split = "x"\nscore =', "tasks.capitals.eval: split belongs to hub, but data "),
        ("score =", 'use = "x"\nscore =', "tasks.capitals.eval: use and score says how it is sco"),
        (
            'score = "exact_match"',
            'lm_eval = "gsm8k"',
            "tasks.capitals.eval: lm_eval = 'gsm8k' nee",
        ),
        (
            "exact_match",
            "choice",
            "tasks.capitals.eval: score 'choice' needs options: texts, or th",
        ),
        (
            "[[tasks]]",
            'world = ["toy-wrld"]\n[[tasks]]',
            "world.toy-wrld: unknown eval 'toy-wrld'; ",
        ),
        ("[[tasks]]", 'diagnostics = ["x"]\n[[tasks]]', "unknown eval 'x'; choices: "),
        (
            "[[tasks]]",
            'diagnostics = ["toy-world"]\n[[tasks]]',
            "eval 'toy_world' is a score and no diagnostic",
        ),
        (
            "[[tasks]]",
            'world = ["wikitext"]\n[[tasks]]',
            "eval 'wikitext' is no score; it belongs under diagnostics",
        ),
        ("[[tasks]]", 'calibration = "x"\n[[tasks]]', "unknown source 'x'; choices: "),
        ("[[tasks]]", "[editions.a]\n[[tasks]]", "tasks stands beside editions: move it into one"),
        (FILE, "tasks = []", "stream.tasks is []: list should have at least 1 item"),
        (FILE, "", "stream.tasks is missing"),
        (FILE, 'tasks = ["x"]', "unknown task 'x'; choices: "),
        (FILE, 'tasks = ["broken"]', "task 'broken' makes Eval(id='toy_world'"),
        (FILE, 'tasks = ["toy", "toy"]', "two tasks are called 'toy'; give one of them another"),
        (
            FILE,
            'tasks = ["toy", {use = "toy", name = "b"}]',
            "two evals are called 'toy_eval'; give",
        ),
        (
            FILE,
            '[[tasks]]\nuse = "toy"\nanswer = "x"',
            "tasks.toy: answer does not go with use = 't",
        ),
        (FILE, "[editions.a]\ntasks = 5", "editions.a.tasks is 5: input should be a valid list"),
        (FILE, "[editions]", "stream.editions is {}: dictionary should have at least 1 item"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(folder: Path, old, new, sentence: str):
    assert old in FILE
    text = FILE.replace(old, new, 1)
    data = "a" if "editions.a" in text else "own"
    with pytest.raises(UserError) as caught:
        edition(text, data)
    assert str(caught.value).startswith(f"my.toml: {sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("{country}", "{contry}", "unknown column of data set train.jsonl 'contry'; did you mean "),
        ("train.jsonl", "empty.jsonl", "data set empty.jsonl is empty"),
        ("train.jsonl", "one.jsonl", "data set one.jsonl has one record, too few to hold some out"),
        ("train.jsonl", "bad.jsonl", "data set bad.jsonl cannot be read: JSON parse error: "),
        ("train.jsonl", "holes.jsonl", "a record of data set holes.jsonl has no 'country': {'cap"),
        ("train.jsonl", "words.txt", "data set words.txt holds words.txt; choices of its kind: "),
        (
            "[tasks.eval]",
            CHOICE,
            "a record of data set train.jsonl answers 'T36'; choices: T0, T1",
        ),
    ],
)
def test_what_is_wrong_with_the_records_leaves_no_run_directory(
    folder: Path, old: str, new: str, sentence: str
):
    (folder / "empty.jsonl").write_text("")
    (folder / "words.txt").write_text("words")
    (folder / "bad.jsonl").write_text("{bad\n")
    json_lines(folder / "one.jsonl", CAPITALS[:1])
    json_lines(folder / "holes.jsonl", [{"capital": "T"}, *CAPITALS])
    (folder / "my.toml").write_text(FILE.replace(old, new))
    command = "run --stream my.toml --strategy lora --out out -q"
    result = CliRunner().invoke(main, command.split())
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith(f"clbench: {sentence}")
    assert result.stderr.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_strategy_that_reads_world_text_says_which_key_is_missing(folder: Path):
    (folder / "my.toml").write_text(FILE)
    sentence = (
        "strategy lora-null is calibrated on world text and stream my.toml has none: "
        'give it the key calibration, e.g. calibration = "tiny-facts"'
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        preparation.prepare(api.resolve("my.toml", "lora-null"))


@pytest.mark.parametrize("name", ["none.toml", "bad.toml"])
def test_a_file_that_is_not_there_or_no_toml_is_named(folder: Path, name: str):
    (folder / "bad.toml").write_text("tasks = [")
    with pytest.raises(UserError, match=f"stream file '{name}'"):
        registry.stream(name)
