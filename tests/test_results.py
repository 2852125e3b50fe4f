"""Records, items and files on disk: strict, atomic, comparable, and enough to score again."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clbench.comparison import ONE_SEED, compare
from clbench.digests import canonical_json, digest, items_digest
from clbench.errors import UserError
from clbench.matrix import Cell, References, ScoreMatrix
from clbench.report import text
from clbench.rescoring import rescore, summarize_run
from clbench.results import (
    Record,
    differences,
    read_items,
    schema_text,
    write_atomic,
    write_items,
)

SCHEMA = Path(__file__).parent.parent / "docs" / "record.schema.json"
EVALS = ("e_math", "e_code", "w_facts")


def record_of(matrix, **changes):
    blocks = {
        "identity": {"run_id": "r", "suite_version": "0.1.0"},
        "config": {"stream": "s", "strategy": "lora", "token_budget": {"steps": 10}},
        "model": {"id": "toy", "dtype": "float32", "weights_digest": "ab"},
        "evals": {e: {"version": 1, "metric": "acc,none", "shots": 0} for e in EVALS},
        "matrix": matrix,
    }
    return Record.model_validate(blocks | changes)


def tiny_matrix(score=0.5):
    row = {"e_math": Cell(score), "w_facts": Cell(None, reason="refused")}
    return ScoreMatrix(("math",), {"math": ("e_math",)}, ("w_facts",), (row,))


def make_run(folder, seed, strategy="lora", num_items=60, tasks=("math", "code")):
    """Write a finished run whose model never existed: a record and its items."""
    rng = np.random.default_rng(seed)
    task_evals = {task: (f"e_{task}",) for task in tasks}
    rows = []
    for k in range(3):
        row = {}
        for e in EVALS:
            fixed = np.random.default_rng(99)  # the base model answers equally in every run
            right = (fixed if k == 0 else rng).random(num_items) < 0.4 + 0.1 * k
            items = [item(n, r) for n, r in enumerate(right)]
            write_items(folder, k, e, items)
            row[e] = Cell(float(right.mean()), num_items, items_digest(items))
        rows.append(row)
    matrix = ScoreMatrix(tasks, task_evals, ("w_facts",), tuple(rows))
    config = {"stream": "s", "strategy": strategy, "seed": seed, "token_budget": {"steps": 10}}
    record = record_of(matrix, config=config, status="complete")
    record = record.replace(**summarize_run(record, folder)._asdict())
    record.save(folder)
    return record


def item(number, score):
    empty = dict.fromkeys(("filtered", "lls", "em", "em_lenient", "em_lenient_floor"))
    name = f"{number:03d}"
    return {"id": name, "cluster": name, "prompt_digest": f"p{name}", "gold": "g"} | {
        "score": float(score),
        "scores": {"acc,none": float(score)},
        "output": "line one\u2028line two\n",
        **empty,
    }


# The record


def test_a_record_comes_back_as_it_was(tmp_path):
    record = record_of(tiny_matrix(), flags=("limited",), references=References({"math": 0.9}))
    path = record.save(tmp_path)
    assert path == tmp_path / "record.json"
    assert Record.load(tmp_path) == record == Record.load(path)
    stored = json.loads(path.read_text())
    assert stored["record_digest"] == record.record_digest()
    assert record.matrix.with_row(1, record.matrix.rows[0]).score(1, "e_math") == 0.5
    assert ScoreMatrix.from_json(stored["matrix"]) == record.matrix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_hold_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match="finite"):
        record_of(tiny_matrix(), cost={"seconds": [1.0, value]})
    with pytest.raises(ValueError, match=r"finite|JSON cannot hold"):
        record_of(tiny_matrix(), model={"id": "m", "dtype": "d", "extra": value}).save(tmp_path)
    with pytest.raises(ValueError, match=r"value.a\[1\] is"):
        canonical_json({"a": [0, value]})
    assert not list(tmp_path.iterdir())


def test_a_cell_has_a_score_in_range_or_a_reason():
    for bad in ({"score": 1.5}, {"score": None}, {"score": 0.5, "reason": "failed"}):
        with pytest.raises(ValueError, match=r"score"):
            Cell(**bad)
    with pytest.raises(ValueError, match="unknown reason"):
        Cell(None, reason="dog ate it")
    with pytest.raises(ValueError, match="999"):
        Cell(999.0)
    with pytest.raises(ValueError, match="no column"):
        ScoreMatrix(("math",), {"math": ("e_math",)}, (), ({"other": Cell(0.5)},))


CORRUPT = {
    "cut short": (lambda text: text[: len(text) // 2], "not strict JSON"),
    "not a number": (lambda text: text.replace("0.5", "NaN"), "not strict JSON"),
    "foreign": (lambda text: '{"results": {"gsm8k": 0.5}}', "no clbench record"),
    "a list": (lambda text: "[1, 2]", "no clbench record"),
    "newer": (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema 2"),
    "edited": (lambda text: text.replace("0.5", "0.9"), "changed after it was written"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_bad_record_is_one_sentence(name, tmp_path):
    damage, expected = CORRUPT[name]
    path = record_of(tiny_matrix()).save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=expected) as caught:
        Record.load(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_incomplete_record_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        Record.load(tmp_path / "nothing")
    value = record_of(tiny_matrix()).to_json()
    del value["record_digest"], value["matrix"]["tasks"]
    write_atomic(tmp_path / "record.json", json.dumps(value | {"record_digest": digest(value)}))
    with pytest.raises(UserError, match=r"no valid record: matrix.tasks"):
        Record.load(tmp_path)


def test_the_key_ignores_strategy_seed_order_and_timing_only():
    record = record_of(tiny_matrix(), data={"math": {"items": "x", "leak": {"exact": 0.0}}})
    evals = {e: {"version": 1, "metric": "acc,none", "shots": 0} for e in EVALS}
    config = {"stream": "s", "strategy": "lora", "token_budget": {"steps": 10}}
    same = [
        {"config": config | {"strategy": "ewc", "seed": 7, "order": [0], "params": {"rank": 4}}},
        {"matrix": tiny_matrix(0.9)},
        {"data": {"math": {"items": "x", "leak": {"exact": 0.5}}}},
        {"evals": {**evals, "e_math": evals["e_math"] | {"seconds": 3.0, "batch_agreement": 1.0}}},
        {"status": "complete"},
    ]
    for changes in same:
        assert record.replace(**changes).comparison_key() == record.comparison_key()
    other = {
        "config.token_budget.steps": {"config": config | {"token_budget": {"steps": 11}}},
        "config.trials": {"config": config | {"trials": 9}},
        "model.weights_digest": {"model": {"id": "toy", "dtype": "float32"}},
        "data.math.items": {"data": {"math": {"items": "y", "leak": {"exact": 0.0}}}},
        "evals.e_math.shots": {"evals": {**evals, "e_math": evals["e_math"] | {"shots": 5}}},
    }
    for field, changes in other.items():
        changed = record.replace(**changes)
        assert changed.comparison_key() != record.comparison_key()
        assert differences(record.compared(), changed.compared()) == [field]


def test_the_digest_covers_everything_but_itself():
    record = record_of(tiny_matrix())
    changed = record.replace(provenance={"command": "clbench run"})
    assert changed.record_digest() != record.record_digest()
    assert record.replace().record_digest() == record.record_digest()


def test_the_published_schema_is_current():
    assert SCHEMA.read_text() == schema_text(), (
        "write clbench.results.schema_text() to docs/record.schema.json"
    )
    schema = json.loads(SCHEMA.read_text())
    assert set(record_of(tiny_matrix()).to_json()) == set(schema["properties"]) - {"clean"}


# Files


def test_canonical_json_has_one_spelling():
    assert canonical_json({"b": 0.1, "a": [1, None, "ä"]}) == '{"a":[1,null,"ä"],"b":0.1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert len(digest(None)) == 64


def test_items_come_back_whatever_the_model_wrote(tmp_path):
    items = [item(n, n % 2) for n in range(3)]
    write_items(tmp_path, 1, "e_math", list(reversed(items)))
    assert read_items(tmp_path, 1, "e_math") == items
    write_items(tmp_path, "single", "e_math", items)
    assert (tmp_path / "items" / "single.e_math.jsonl").exists()
    with pytest.raises(UserError, match="there is no"):
        read_items(tmp_path, 2, "e_math")
    with pytest.raises(ValueError, match="file name"):
        write_items(tmp_path, 1, "../e_math", items)
    (tmp_path / "items" / "1.e_math.jsonl").write_text('{"id": "0"}\n{"id": \n')
    with pytest.raises(UserError, match="line 2 of"):
        read_items(tmp_path, 1, "e_math")


def test_items_digest_is_of_the_questions_alone():
    items = [item(n, 0) for n in range(3)]
    answered = [i | {"score": 1.0, "output": "other"} for i in reversed(items)]
    assert items_digest(items) == items_digest(answered)
    assert items_digest(items) != items_digest([i | {"gold": "h"} for i in items])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"no space left to write .*record.json.* 5,000 bytes"):
        write_atomic(path, b"x" * 5000)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state"
    script = (
        "import itertools, sys; from clbench.results import write_atomic\n"
        "for n in itertools.count(): write_atomic(sys.argv[1], str(n % 10) * 200_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    text = path.read_text()
    assert len(text) == 200_000
    assert len(set(text)) == 1


# Scoring again, comparing


def test_scoring_again_reproduces_every_metric(tmp_path):
    record = make_run(tmp_path, seed=0)
    before = (tmp_path / "record.json").read_bytes()
    assert record.metrics["bwt.v1"].interval is not None
    assert record.metrics["item_rw.v1[w_facts]"].value is not None
    again = rescore(tmp_path)
    assert again.metrics == record.metrics == Record.load(tmp_path).metrics
    assert again.changed == ()
    assert again.path == tmp_path / "rescored" / "1.json"
    assert (tmp_path / "record.json").read_bytes() == before
    assert rescore(tmp_path).path == again.path  # the same block is not written twice
    block = json.loads(again.path.read_text())
    assert block["record_digest"] == record.record_digest()
    assert block["metrics"]["bwt.v1"]["value"] == record.metrics["bwt.v1"].value


def test_a_wrong_stored_metric_is_found_and_kept(tmp_path):
    record = make_run(tmp_path, seed=0)
    wrong = {name: metric for name, metric in record.metrics.items() if name != "bwt.v1"}
    wrong["bwt.v1"] = record.metrics["fwt.v1"]
    record.replace(metrics=wrong).save(tmp_path)
    assert rescore(tmp_path).changed == ("bwt.v1",)
    assert Record.load(tmp_path).metrics["bwt.v1"] == record.metrics["fwt.v1"]


def test_items_that_do_not_give_the_score_are_refused(tmp_path):
    make_run(tmp_path, seed=0)
    items = read_items(tmp_path, 2, "e_code")
    write_items(tmp_path, 2, "e_code", [i | {"score": 1.0} for i in items])
    with pytest.raises(UserError, match=r"2\.e_code\.jsonl gives the score 1\.0, but the record"):
        rescore(tmp_path)
    write_items(tmp_path, 2, "e_code", items[:-1])
    with pytest.raises(UserError, match="other questions"):
        rescore(tmp_path)


def test_a_run_compared_with_itself_differs_by_nothing(tmp_path):
    make_run(tmp_path, seed=0)
    found = compare(tmp_path, tmp_path)
    assert len(found.cells) == 9
    for line in (*found.cells, *found.metrics):
        if line.difference is not None and line.reason is None:
            assert (line.difference, line.interval, line.p) == (0.0, (0.0, 0.0), 1.0)
    assert sum(line.interval is not None for line in found.metrics) > 15
    assert found.says == ONE_SEED
    assert "this artifact and that artifact answer these items differently" in found.says


def test_comparing_is_antisymmetric_and_paired(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_run(a, seed=1)
    make_run(b, seed=2, strategy="ewc")
    forth, back = compare(a, b, resamples=2000), compare(b, a, resamples=2000)
    assert forth.key == Record.load(a).comparison_key()
    for line, other in zip(forth.cells + forth.metrics, back.cells + back.metrics, strict=True):
        assert line.name == other.name
        if line.interval is not None:
            low, high = line.interval
            assert other.interval == pytest.approx((-high, -low), abs=1e-12)
            assert other.p == pytest.approx(line.p, abs=1e-12)
    cells = {line.name: line for line in forth.cells}
    assert cells["R[0,e_math]"].interval == (0.0, 0.0)  # the same base model
    last = cells["R[2,w_facts]"]
    assert last.test == "mcnemar"
    assert last.interval[0] < last.difference < last.interval[1]
    assert {line.name: line for line in forth.metrics}["rel_pooled.v1"].reason == "no_reference"


def test_a_comparison_shows_retention_beside_raw_scores_and_what_was_learned(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        make_run(tmp_path / name, seed=seed)
    shown = text.comparison(compare(tmp_path / "a", tmp_path / "b", resamples=200), "a", "b")
    lines = {line.split()[0]: line.split()[1:3] for line in shown.splitlines() if ".v1" in line}
    metrics = [Record.load(tmp_path / name).metrics for name in ("a", "b")]
    for name in ("world_ratio_clip.v1", "world_before.v1", "world_after.v1", "learning_acc.v1"):
        assert lines[name] == [f"{100 * found[name].value:.1f}" for found in metrics], name


def test_graded_or_clustered_items_are_tested_by_sign_flips(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        record = make_run(tmp_path / name, seed=seed)
        items = [
            i | {"cluster": str(n // 2)}
            for n, i in enumerate(read_items(tmp_path / name, 2, "e_math"))
        ]
        for k in range(3):
            scores = [i["score"] for i in read_items(tmp_path / name, k, "e_math")]
            rows = [i | {"score": s} for i, s in zip(items, scores, strict=True)]
            write_items(tmp_path / name, k, "e_math", rows)
        record.save(tmp_path / name)
    cells = {line.name: line for line in compare(tmp_path / "a", tmp_path / "b", 500).cells}
    assert cells["R[2,e_math]"].test == "sign_flip"
    assert cells["R[2,e_math]"].flags == ("few_items",)  # 30 clusters
    assert cells["R[2,e_code]"].test == "mcnemar"


def test_runs_of_different_keys_are_not_compared(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    record = make_run(a, seed=1)
    other = make_run(b, seed=1)
    changes = {"model": {"id": "other", "dtype": "bfloat16", "weights_digest": "ab"}}
    other.replace(**changes).save(b)
    with pytest.raises(UserError, match=r"they differ in model.dtype, model.id$"):
        compare(a, b)
    assert record.comparison_key() != Record.load(b).comparison_key()


def test_runs_in_other_orders_share_their_first_and_last_rows_only(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_run(a, seed=1)
    make_run(b, seed=1, tasks=("code", "math"))
    found = compare(a, b, resamples=500)
    assert {line.name[2] for line in found.cells} == {"0", "2"}
    assert "orders differ" in found.notes[0]
    assert {line.name: line for line in found.metrics}["final_avg.v1"].interval == (0.0, 0.0)
