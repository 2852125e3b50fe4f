"""Tokens on disk: the same examples, counted fast, whole or absent; and which rows they are of."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_runs
from transformers import PreTrainedTokenizerFast

from clbench import data, preparation, recording, tokens, training
from clbench.config import EvalConfig, TrainConfig
from clbench.dataset import DataSet, Source, Template
from clbench.digests import ListDigest, digest
from clbench.errors import UserError
from clbench.hub import Hub
from clbench.preparation import Plan
from clbench.progress import Silent
from clbench.report import text
from clbench.rows import Rows
from clbench.strategy import Example
from clbench.stream import Edition
from clbench.task import Eval, Row, Task
from clbench.tokens import Tokens

ROWS = [Row(str(i), "ask " * (1 + i % 3), "say" * (i % 5 + 1)) for i in range(25)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_runs.save_toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(model)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def by_hand(tokenizer: Any, task: str) -> list[Example]:
    """Return the examples of ROWS: every byte is a token, EOS is 1."""
    found = []
    for at, row in enumerate(ROWS):
        prompt, whole = tokenizer.encode(row.prompt), tokenizer.encode(row.prompt + row.answer)
        mask = (False,) * len(prompt) + (True,) * (len(whole) + 1 - len(prompt))
        found.append(Example((*whole, 1), mask, task, at))
    return found


# On disk


def test_examples_come_back_as_they_were_made(tokenizer: Any, tmp_path: Path) -> None:
    made = data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "t")
    expected = by_hand(tokenizer, "toy")
    read = tokens.load(tmp_path / "t", "toy")
    assert read is not None
    for found in (made, read):
        assert list(found) == expected
        assert found[3:7] == expected[3:7]
        assert (found[-1], len(found)) == (expected[-1]._replace(index=24), 25)
    with pytest.raises(IndexError):
        read[25]
    other = tokens.load(tmp_path / "t", "other")
    assert other is not None
    assert {example.task for example in other} == {"other"}


def test_counts_need_no_example(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "t")
    expected = by_hand(tokenizer, "toy")
    monkeypatch.setattr(Tokens, "__getitem__", None)
    assert data.num_tokens(made) == data.num_tokens(expected)
    assert data.num_labels(made) == data.num_labels(expected)
    for budget in ({"epochs": 2.0}, {"steps": 7, "batch_size": 3}, {"tokens": 11}):
        config = TrainConfig.of(budget)
        assert training.budget(made, config) == training.budget(expected, config)


def test_rows_are_left_out_by_their_numbers_in_the_data(tokenizer: Any, tmp_path: Path) -> None:
    rows = [ROWS[0], Row("long", "x" * 99, "y"), *ROWS[1:4]]
    made = data.encode(rows, tokenizer, "toy", 64, tmp_path / "t")
    left = made.without([2, 1])
    expected = by_hand(tokenizer, "toy")
    assert [example.ids for example in left] == [expected[n].ids for n in (0, 2, 3)]
    assert [example.index for example in left] == [0, 1, 2]
    assert left.num_tokens == data.num_tokens(list(left))


def test_the_digest_of_the_rows_is_that_of_their_list(tokenizer: Any, tmp_path: Path) -> None:
    made = data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "t")
    assert made.facts["rows_digest"] == digest([list(row[:3]) for row in ROWS])
    assert ListDigest.of([]) == digest([])


def test_chunks_change_nothing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "whole"))
    monkeypatch.setattr(data, "ROWS_AT_A_TIME", 4)
    monkeypatch.setattr(tokens, "BUFFERED", 50)
    told: list[int] = []
    parts = data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "p", advance=told.append)
    assert list(parts) == whole
    assert told == [4] * 6 + [1]


def test_what_was_not_finished_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    def breaking() -> Iterator[Row]:
        yield from ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.encode(breaking(), tokenizer, "toy", 64, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="has no training rows"):
        data.encode([], tokenizer, "toy", 64, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_runs_at_once_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    def overtaken() -> Iterator[Row]:
        yield from ROWS
        data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "t")

    found = data.encode(overtaken(), tokenizer, "toy", 64, tmp_path / "t")
    assert list(found) == by_hand(tokenizer, "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_damaged_folder_is_not_read(tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    data.encode(ROWS, tokenizer, "toy", 64, folder)
    with open(folder / "ids.bin", "r+b") as file:
        file.truncate(40)
    assert tokens.load(folder, "toy") is None
    assert len(data.encode(ROWS, tokenizer, "toy", 64, folder)) == 25
    (folder / "facts.json").write_text("{")
    assert tokens.load(folder, "toy") is None


def test_a_full_disk_is_one_sentence(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"tokens cannot be kept under .*No space left"):
        data.encode(ROWS, tokenizer, "toy", 64, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


# Of a run

TEMPLATE = Template("Question: {q}\nAnswer:", " {a}", "{q}")
QUESTIONS = [f"how many apples has person number {i} in the garden" for i in range(6)]
RECORDS = [
    *({"q": f"unlike question {i} of the training data", "a": f"{i}"} for i in range(8)),
    {"q": f"Now: {QUESTIONS[2]}?", "a": "2"},
    {"q": "an empty one that has no answer", "a": None},
    {"q": "a long one " * 40, "a": "1"},
]


def quiz(name: str, **changes: Any) -> Eval:
    docs = [{"id": str(i), "prompt": f"Q: {q}\nA:", "question": q} for i, q in enumerate(QUESTIONS)]
    config = {
        "docs": lambda: [doc | {"gold": doc["id"]} for doc in docs],
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return Eval(name, 1, config, "exact_match,none", **changes)


def plan_of(model: Path, folder: Path, **changes: Any) -> Plan:
    """Return a run of one task on RECORDS, which ask what the second of two evals asks."""
    path = folder / "train.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    rows = Source(DataSet(str(path), place="file"), TEMPLATE)
    world = (quiz("world", data_id=str(path)), quiz("other"))
    edition = Edition((Task("sums", rows, (quiz("quiz"),)),), world, rows, "training rows")
    config = {
        "train": TrainConfig.of({"steps": 2, "batch_size": 2, "max_length": 100}),
        "eval": EvalConfig.of({"samples": 2}),
    }
    plan = preparation.prepare(toy_runs.toy_config(model, **config | changes))
    return dataclasses.replace(plan, edition=edition, hub=Hub())


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def phase(self, name: str, total: float | None = None) -> None:
        self.phases.append(name)


def test_every_row_is_accounted_for_and_said(model: Path, tmp_path: Path) -> None:
    plan, shown = plan_of(model, tmp_path), Notes()
    plan.read(shown)
    block = recording._task_block(plan, plan.edition.tasks[0])
    counts = {key: value for key, value in block.items() if key.startswith("num_")}
    assert counts == {
        "num_rows": 11,
        "num_examples": 8,
        "num_empty": 1,
        "num_too_long": 1,
        "num_in_evals": 1,
    }
    assert block["template"]["answer"] == " {a}"
    [source] = block["sources"]
    assert len(source["files"]) == 1
    assert shown.phases == ["check leaks", "tokenize sums"]
    assert shown.notes == [
        "task sums: 1 of 11 training rows are longer than 100 tokens and are left out",
        "task sums: 1 of 11 training rows have an empty answer and are left out",
        "task sums: 1 of 11 training rows ask what an eval asks and are left out",
    ]
    tokenizer = plan.loaded.tokenizer
    texts = [tokenizer.decode(example.ids) for example in plan.examples(plan.edition.tasks[0])]
    assert len(texts) == 8
    assert not any("apples" in text for text in texts)
    assert not any("apples" in text for text in plan.texts(plan.edition.tasks[0]))


def test_an_eval_asks_the_same_whether_its_items_are_scored_or_not(
    model: Path, tmp_path: Path
) -> None:
    for samples in (1, 2, 6):
        plan = plan_of(model, tmp_path, eval=EvalConfig.of({"samples": samples}))
        assert plan.asked(plan.edition.tasks[0]) == [8]


def test_the_record_tells_what_was_found_and_what_is_left(model: Path, tmp_path: Path) -> None:
    found = plan_of(model, tmp_path).leaks()
    assert found["before_removal"]["train sums"]["evals"]["quiz"]["leak_exact.v1"] == 1 / 6
    assert found["evals"]["train sums"]["quiz"]["leak_exact.v1"] == 0.0
    assert found["evals"]["calibration"]["quiz"]["leak_exact.v1"] == 1 / 6  # nothing is trained
    assert found["same_source"] == [["train sums", "world"], ["calibration", "world"]]
    assert found["flags"] == ["same_source"]


def test_a_joint_task_leaves_out_what_its_parts_leave_out(model: Path, tmp_path: Path) -> None:
    plan = plan_of(model, tmp_path)
    task = plan.edition.tasks[0]
    twice = dataclasses.replace(plan.edition, tasks=(task, dataclasses.replace(task, name="b")))
    plan = dataclasses.replace(plan, edition=twice.joined(), hub=Hub())
    [joint] = plan.edition.tasks
    assert plan.asked(joint) == [8, 19]
    assert len(plan.examples(joint)) == 16
    assert {example.task for example in plan.examples(joint)} == {"joint"}
    assert sorted(plan.leak_check.scans()) == ["calibration", "train b", "train sums"]


def test_a_second_run_reads_no_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(plan: Plan) -> dict[str, Any]:
        return {"task": recording._task_block(plan, plan.edition.tasks[0]), "leak": plan.leaks()}

    first = block(plan_of(model, tmp_path))

    def read(*_: object) -> None:
        raise AssertionError("the data was read again")

    monkeypatch.setattr(Hub, "table", read)
    monkeypatch.setattr("clbench.leak.Index", read)
    plan, shown = plan_of(model, tmp_path), Notes()
    plan.read(shown)
    assert block(plan) == first
    assert plan.calibration_digest
    assert shown.phases == []


@pytest.mark.parametrize(
    "change",
    ["rows", "template", "max_length", "limit", "version"],
)
def test_whatever_decides_the_tokens_is_in_their_name(
    model: Path, tmp_path: Path, cache: Path, change: str
) -> None:
    plan = plan_of(model, tmp_path)
    plan.examples(plan.edition.tasks[0])
    assert len(list((cache / "tokens").iterdir())) == 1
    values: dict[str, Any] = {}
    if change == "rows":
        text = (tmp_path / "train.jsonl").read_text()
        (tmp_path / "train.jsonl").write_text(text.replace("unlike", "another"))
    if change == "max_length":
        values["train"] = TrainConfig.of({"steps": 2, "max_length": 99})
    plan = plan_of(model, tmp_path, **values)
    task = plan.edition.tasks[0]
    assert isinstance(task.train, Source)
    source = {
        "template": dataclasses.replace(task.train, template=Template("{q}", "{a}")),
        "limit": dataclasses.replace(task.train, limit=7),
        "version": dataclasses.replace(task.train, version=2),
    }.get(change, task.train)
    plan.examples(dataclasses.replace(task, train=source))
    assert len(list((cache / "tokens").iterdir())) == 2


def test_generated_rows_are_known_by_themselves() -> None:
    task = Task("toy", lambda: ROWS, ())
    assert Rows(task, Hub()).identity == Rows(Task("b", lambda: list(ROWS), ()), Hub()).identity
    other = [*ROWS[:-1], ROWS[-1]._replace(request="asked otherwise in a chat")]
    assert Rows(Task("toy", lambda: other, ()), Hub()).identity != Rows(task, Hub()).identity


def test_nothing_left_but_what_evals_ask_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(RECORDS[8]) + "\n")
    plan = plan_of(model, tmp_path)
    with pytest.raises(UserError, match="every training row of task sums asks what an eval"):
        plan.examples(plan.edition.tasks[0])


def test_the_world_stands_with_and_without_what_calibration_shares(
    model: Path, tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path)
    record = recording.new_record(plan)
    matrix = record.matrix
    for row, scores in enumerate(((0.1, 0.6, 0.2), (0.9, 0.4, 0.1))):
        cells = zip(matrix.evals, scores, strict=True)
        matrix = matrix.with_row(row, {e: recording.Cell(score) for e, score in cells})
    shown = text.shared_data(record.replace(matrix=matrix, data={"leak": plan.leaks()}))
    assert "same distribution: calibration reads the data set of world" in shown
    assert "left out of training: 17 % of quiz's questions, found in train sums" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["all", "40.0", "25.0", "-15.0"] in lines
    assert ["without", "world", "20.0", "10.0", "-10.0"] in lines
    assert text.shared_data(record) == ""
