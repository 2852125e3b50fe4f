"""Bad input of all kinds is one sentence that names it and the choices, before anything is done."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hub_stream
import pytest
import test_own_hub
from click.testing import CliRunner
from hub_fixtures import hub_environment
from lm_eval.tasks._index import Entry, Kind
from test_streamfile import FILE, edition, json_lines

from clbench import evaluation, preparation
from clbench.cli import main
from clbench.config import EvalConfig
from clbench.dataset import Source
from clbench.errors import UserError
from clbench.evaluation import Evaluator
from clbench.hub import Hub
from clbench.results import Record
from clbench.task import Eval

LM_EVAL = """[tasks.eval]
lm_eval = "{}"
metric = "{}"
data = "{}"
shots = 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which has records of a user's."""
    json_lines(
        tmp_path / "train.jsonl", [{"country": f"C{i}", "capital": f"T{i}"} for i in range(40)]
    )
    sums = [{"question": f"{i}?", "choices": ["a", "b"], "answer": f"#### {i}"} for i in range(9)]
    json_lines(tmp_path / "sums.jsonl", sums)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_eval(name: str, metric: str, data: str = "train.jsonl") -> Eval:
    """Return one of lm-eval's tasks over the user's records, as a stream file asks for it."""
    text = FILE.partition("[tasks.eval]")[0] + LM_EVAL.format(name, metric, data)
    return edition(text).evals[0]


def refusal(*specs: Eval) -> str:
    """Return the sentence that evals are refused with before any model is there."""
    preparation.quiet_libraries()
    with pytest.raises(UserError) as caught:
        Evaluator({}, None, specs, EvalConfig()).describe()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# lm-eval's own tasks


@pytest.mark.parametrize(
    ("name", "module", "choices"),
    [
        ("humaneval", "humaneval", 'give use = "humaneval", or name another task of lm-eval\'s'),
        ("mbpp_instruct", "mbpp", 'give use = "mbpp", or name another task of lm-eval\'s'),
        ("cruxeval_input", "cruxeval", "isolation only; name another task of lm-eval's"),
    ],
)
def test_generated_code_is_never_run_by_lm_eval(folder: Path, name: str, module: str, choices: str):
    sentence = refusal(own_eval(name, "pass@1,create_test"))
    assert f"lm-eval's task '{name}' runs what the model writes in this process" in sentence
    assert sentence.endswith(choices)
    assert f"lm_eval.tasks.{module}.utils" not in sys.modules  # which runs code when imported


def test_a_program_of_lm_eval_is_refused(folder: Path):
    assert "lm-eval's task 'squadv2' is a program" in refusal(own_eval("squadv2", "f1,none"))


def test_a_group_of_tasks_names_some_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch):
    group = Entry("mmlu", Kind.GROUP, folder, cfg={"task": ["stem", "mmlu_law"]})
    tag = Entry("stem", Kind.TAG, None, tags={f"mmlu_{i}" for i in range(6)})
    law = Entry("mmlu_law", Kind.TASK, folder)
    index: Mapping[str, Any] = {entry.name: entry for entry in (group, tag, law)}
    monkeypatch.setattr(evaluation, "_task_index", lambda: index)
    assert refusal(own_eval("mmlu", "acc,none")) == (
        "lm-eval's 'mmlu' is a group of tasks; give use = \"mmlu\", or name one of its tasks: "
        "mmlu_0, mmlu_1, mmlu_2, mmlu_3, mmlu_4, and 2 more"
    )
    assert "'stem' is a group of tasks; name one" in refusal(own_eval("stem", "acc,none"))
    assert re.search(r"has no task 'a/b'$", refusal(own_eval("a/b", "acc,none")))


@pytest.mark.parametrize(
    ("name", "data", "column", "columns"),
    [
        ("arc_easy", "train.jsonl", "question", "country, capital"),  # a template
        ("hellaswag", "train.jsonl", "ctx_a", "country, capital"),  # a function
        ("mmlu_abstract_algebra", "few.jsonl", "answer", "question, choices"),  # a name alone
    ],
)
def test_a_column_that_lm_eval_misses_is_named(
    folder: Path, name: str, data: str, column: str, columns: str
):
    few = [{"question": f"{i}?", "choices": list("abcd")} for i in range(9)]
    json_lines(folder / "few.jsonl", few)
    spec = own_eval(name, "acc,none", data)
    if name == "hellaswag":
        spec = edition(
            FILE.partition("[tasks.eval]")[0]
            + LM_EVAL.format(name, "acc,none", data)
            + 'split = "validation"'
        ).evals[0]
    assert refusal(spec) == (
        f"eval {name}: lm-eval's task '{name}' reads column '{column}' of the records of {data}; "
        f"choices: {columns}"
    )


def test_a_wrong_key_of_lm_eval_names_the_right_ones(folder: Path):
    assert refusal(own_eval("gsm8k", "exact_match,none", "sums.jsonl")) == (
        "unknown metric of eval gsm8k 'exact_match,none'; did you mean exact_match,strict-match? "
        "choices: exact_match,flexible-extract, exact_match,strict-match"
    )


# A stream file


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("score =", 'stops = ["x", ""]\nscore =', "tasks.capitals.eval: stops holds '', which wo"),
        (
            'score = "exact_match"',
            'lm_eval = ""\nmetric = "acc,none"',
            "tasks.capitals.eval.lm_eval is '': string should have at least 1",
        ),
        (
            "[tasks.eval]",
            'train_limit = "5"\n[tasks.eval]',
            "tasks.capitals.train_limit is '5': input should be a valid integer",
        ),
        ("score =", "chance = '0.5'\nscore =", "tasks.capitals.eval.chance is '0.5': input should"),
        (
            "{country}",
            "{country!r:>10}",
            "tasks.capitals: the template 'Q: {country!r:>10}?\\nA:' formats column country, whic",
        ),
        (
            "[tasks.eval]",
            "options = ['a', 3]\n[tasks.eval]",
            "tasks.capitals.options.1 is 3: input should be a valid string",
        ),
        (
            "[tasks.eval]",
            "options = 3\n[tasks.eval]",
            "tasks.capitals.options is 3: input should be a valid tuple or a valid string",
        ),
        (
            FILE,
            "tasks = [3]",
            "stream.tasks.0 is 3: input should be a valid string or a valid dictionary",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_when_it_is_read(
    folder: Path, old: str, new: str, sentence: str
):
    assert old in FILE
    with pytest.raises(UserError) as caught:
        edition(FILE.replace(old, new, 1))
    assert str(caught.value).startswith(f"my.toml: {sentence}")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_given_as_data_is_said_to_be_one(folder: Path):
    sentence = f"{str(folder)!r} is a folder, and data names a file in one"
    with pytest.raises(UserError, match=re.escape(sentence)):
        edition(FILE.replace("train.jsonl", "."))


# Options


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--tasks", "math,math", "task math is named twice; each is learned once"),
        ("--tasks", "", "no task is named; choices: math, code, if"),
        (
            "--data-dir",
            "/tmp",
            "--data-dir '/tmp' is given, and stream math-code-if reads no data set that is "
            "published as a folder; leave it away",
        ),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    folder: Path, option: str, value: str, sentence: str
):
    assert run(*RUN, option, value) == sentence
    if option == "--data-dir":
        assert run("fetch", "--stream", "math-code-if", option, value) == sentence
    assert not (folder / "out").exists()


# A data set of the hub


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            "",
            "data set acme/sums has several configurations and none is named; give config; "
            "choices: plain, hard",
        ),
        (
            'config = "plan"',
            "unknown configuration of data set acme/sums 'plan'; did you mean plain? choices: "
            "hard, plain",
        ),
    ],
)
def test_a_configuration_is_named_or_chosen(tmp_path: Path, config: str, sentence: str):
    with (
        hub_environment(hub_stream.repos(), tmp_path / "home"),
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        monkeypatch.chdir(tmp_path)
        write_own_hub(tmp_path / "my.toml", config)
        assert run("fetch", "--stream", "my.toml") == sentence


# Places that cannot be used


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file, in which no folder can be made."""
    path = tmp_path / "file"
    path.write_text("")
    return path


def run(*words: str) -> str:
    """Return the sentence that a command of clbench is refused with."""
    result = CliRunner().invoke(main, [*words, "-q"])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("clbench: ").strip()


RUN = ("run", "--stream", "math-code-if", "--strategy", "lora", "--out", "out")


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_done(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLBENCH_CACHE", str(file))
    for command in (RUN, ("fetch", "--stream", "math-code-if")):
        assert run(*command) == (
            f"the cache '{file}' cannot be written (Not a directory); "
            "let CLBENCH_CACHE name another folder"
        )
    assert not (folder / "out").exists()


@pytest.mark.parametrize("place", ["file/x/y", "/proc/x/y"])
def test_a_run_directory_that_cannot_be_made_is_named(folder: Path, file: Path, place: str):
    sentence = run(*RUN[:-1], place)
    assert re.fullmatch(
        rf"the run directory '{place}' cannot be written \(.*\); choose another --out", sentence
    )


def test_a_lock_that_cannot_be_written_is_named_before_the_hub_is_asked(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with hub_environment(hub_stream.repos(), tmp_path / "home") as env:
        write_own_hub(tmp_path / "my.toml")
        assert run("fetch", "--stream", "my.toml", "--lock", "file/clbench.lock") == (
            "the folder of the lock 'file' cannot be written (Not a directory); "
            "choose another --lock"
        )
        assert env.hub.requests == []


def test_a_cache_of_the_hub_that_cannot_be_written_is_named(tmp_path: Path, file: Path):
    with (
        hub_environment(hub_stream.repos(), file),
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
        write_own_hub(tmp_path / "my.toml")
        assert re.fullmatch(
            rf"the folder {file}/\S+ for data set 'acme/sums' cannot be used "
            r"\(Not a directory\); let HF_HOME name another folder",
            run("fetch", "--stream", "my.toml"),
        )


def write_own_hub(path: Path, config: str = 'config = "plain"') -> None:
    path.write_text(test_own_hub.FILE.replace('config = "plain"', config))


# Records without an answer


EMPTY = ["", None, " ", "Rome"]
SMALL = ["--set", "train.steps=1", "--set", "train.max_length=64"]


def test_records_with_an_empty_answer_are_left_out_and_counted(folder: Path):
    records = [{"country": f"C{i}", "capital": EMPTY[i % 4]} for i in range(40)]
    json_lines(folder / "train.jsonl", records)
    text = FILE.replace(" {capital}", " It is {capital}.")  # whose text is never empty
    (folder / "my.toml").write_text('preset = "tiny"\n' + text)
    command = ["run", "--stream", "my.toml", "--strategy", "lora", "--out", "out", *SMALL]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "task capitals: 27 of 36 training rows have an empty answer" in result.output
    assert "eval capitals: 3 of 4 records have an empty answer or cannot be" in result.output
    record = Record.load(folder / "out")
    rows = record.data["tasks"]["capitals"]
    assert (rows["num_rows"], rows["num_empty"], rows["num_examples"]) == (36, 27, 9)
    assert record.evals["capitals"].model_dump()["num_left_out"] == 3
    assert record.matrix.rows[0]["capitals"].num_items == 1


def test_an_option_or_one_of_a_list_of_answers_may_be_empty(folder: Path):
    golds = [["x", ""], [], ["", "y"], [None]]
    json_lines(folder / "train.jsonl", [{"country": "C", "capital": g} for g in golds])
    task = edition(FILE).tasks[0]
    assert isinstance(task.train, Source)
    assert task.train.prepare is not None
    rows = [
        task.train.template.row("", task.train.prepare(r)) for r in Hub().table(task.train.data)
    ]
    assert [row.answer for row in rows] == [" x", "", " y"]
    ask = task.evals[0].prepare
    assert ask is not None
    assert ask({"country": "C", "capital": [None]}) is None
    assert ask({"country": "C", "capital": ["", "y", "z"]})["golds"] == ["y", "z"]
    choice = edition(FILE.replace("[tasks.eval]", 'options = ["a", "b"]\n[tasks.eval]')).tasks[0]
    assert isinstance(choice.train, Source)
    assert choice.train.prepare is not None
    found = [
        choice.train.prepare({"country": "C", "capital": v})["capital"] for v in ("b", 0, None)
    ]
    assert found == ["b", "a", ""]


def test_an_eval_without_any_answer_is_refused(folder: Path):
    json_lines(folder / "train.jsonl", [{"country": f"C{i}", "capital": ""} for i in range(40)])
    assert refusal(*edition(FILE).evals) == (
        "eval capitals can ask none of the 4 records of split test, whose answers are empty or "
        "which it leaves out"
    )
