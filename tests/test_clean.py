"""Clean items: what training data holds is left out of scores, metrics and comparisons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import toy_runs
from sklearn.metrics import f1_score
from test_results import item, make_run
from test_streamfile import json_lines

import clbench
from clbench.comparison import compare
from clbench.digests import digest, items_digest
from clbench.errors import UserError
from clbench.leak import leaked
from clbench.matrix import Cell, References
from clbench.metrics import compute
from clbench.report import text
from clbench.rescoring import rescore, summarize_run
from clbench.results import Record, read_items, schema_text, write_atomic, write_items

NUM_ITEMS = 60


def found(hits, exact=0.0, ngram=0.05):
    """Return what a leak check says of one eval and source."""
    return {"leak_exact.v1": exact, "leak_ngram.v1": ngram, "hits": [f"{n:03d}" for n in hits]}


def leaking(folder, by_source, seed=0, **changes):
    """Write a finished run with a leak report: source -> eval -> what was found."""
    record = make_run(folder, seed)
    flags = ("leak",) if leaked([by_source]) else ()
    record = record.replace(data={"leak": {"evals": by_source}}, flags=flags, **changes)
    record = record.replace(**summarize_run(record, folder)._asdict())
    record.save(folder)
    return record


def mean_without(folder, row, eval_id, hits):
    """Average the scores in a file of items, but for some of them."""
    scores = [i["score"] for i in read_items(folder, row, eval_id) if int(i["id"]) not in hits]
    return math.fsum(scores) / len(scores)


# The score and the metrics


def test_the_clean_score_is_the_mean_of_the_other_items(tmp_path):
    hits = {3, 7, 11, 40}
    record = leaking(tmp_path, {"train math": {"e_math": found(hits)}})
    assert record.clean.left_out == {"e_math": 4}
    for k in range(3):
        cell, clean = record.matrix.rows[k]["e_math"], record.clean.matrix.rows[k]["e_math"]
        assert clean.score == mean_without(tmp_path, k, "e_math", hits)
        assert clean.score != cell.score
        assert (cell.num_items, clean.num_items) == (60, 56)
        left = [i for i in read_items(tmp_path, k, "e_math") if int(i["id"]) not in hits]
        assert clean.items_digest == items_digest(left)
        for other in ("e_code", "w_facts"):
            assert record.clean.matrix.rows[k][other] == record.matrix.rows[k][other]


def test_metrics_stay_on_all_items_and_those_of_clean_items_stand_beside_them(tmp_path):
    whole = make_run(tmp_path / "whole", seed=0).metrics
    record = leaking(tmp_path / "run", {"train math": {"e_math": found([3, 7, 11, 40])}})
    assert record.metrics == whole
    clean = record.clean.metrics
    assert clean.keys() == whole.keys()
    exact = compute(record.clean.matrix)
    assert {name: clean[name].value for name in exact} == {n: m.value for n, m in exact.items()}
    before, after = (mean_without(tmp_path / "run", k, "e_math", {3, 7, 11, 40}) for k in (1, 2))
    assert clean["bwt.v1"].value == pytest.approx(after - before, abs=1e-15)
    assert clean["bwt.v1"].value != whole["bwt.v1"].value
    low, high = clean["bwt.v1"].interval
    assert low < clean["bwt.v1"].value < high
    assert clean["world_delta.v1"] == whole["world_delta.v1"]  # interval and all


def test_world_items_count_among_the_clean_ones_only(tmp_path):
    record = leaking(tmp_path, {"train math": {"w_facts": found(range(20))}})
    rows = [
        [i["score"] for i in read_items(tmp_path, k, "w_facts") if int(i["id"]) >= 20]
        for k in (0, 2)
    ]
    lost = sum(was == 1 and now == 0 for was, now in zip(*rows, strict=True))
    assert record.clean.metrics["item_rw.v1[w_facts]"].value == lost / 40
    assert record.metrics["item_rw.v1[w_facts]"].terms == 60
    assert record.clean.metrics["item_rw.v1[w_facts]"].terms == 40


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ("train math", found([3], exact=0.001, ngram=0.01)),  # as much as is allowed
        ("calibration", found([3], exact=1.0, ngram=1.0)),
        ("pretraining", found([3], exact=1.0, ngram=1.0)),
    ],
)
def test_what_is_no_leak_leaves_nothing_out(source, numbers, tmp_path):
    assert leaked([{source: {"e_math": numbers}}]) == {}
    record = leaking(tmp_path, {source: {"e_math": numbers}})
    assert record.clean is None
    assert "clean" not in record.to_json()


def test_an_eval_that_leaks_loses_the_hits_of_all_training_data_and_no_others(tmp_path):
    sources = {
        "train math": {
            "e_math": found([3], exact=0.0011, ngram=0.0),
            "e_code": found([5], ngram=0),
        },
        "replay": {"e_math": found([9], ngram=0.01)},
        "calibration": {"e_math": found([20], ngram=0.5), "w_facts": found([1], ngram=0.5)},
    }
    assert leaked([sources]) == {"e_math": {"003", "009"}}
    record = leaking(tmp_path, sources)
    assert record.clean.left_out == {"e_math": 2}
    assert record.clean.matrix.score(2, "e_math") == mean_without(tmp_path, 2, "e_math", {3, 9})


def rewrite(folder, record, eval_id, change, metric="acc,none", score=None):
    """Write the items of an eval anew in every row, and its cells; return the record."""
    matrix = record.matrix
    for k, row in enumerate(matrix.rows):
        items = [i | change(k, n) for n, i in enumerate(read_items(folder, k, eval_id))]
        write_items(folder, k, eval_id, items)
        of_row = score(items) if score else math.fsum(i["score"] for i in items) / len(items)
        matrix = matrix.with_row(k, row | {eval_id: Cell(of_row, 60, items_digest(items))})
    evals = {e: block.model_dump() for e, block in record.evals.items()}
    evals[eval_id]["metric"] = metric
    return record.replace(matrix=matrix, evals=evals)


def with_leak(folder, record, by_source):
    record = record.replace(data={"leak": {"evals": by_source}}, flags=("leak",))
    return record.replace(**summarize_run(record, folder)._asdict())


def test_a_cluster_goes_as_a_whole(tmp_path):
    record = rewrite(
        tmp_path, make_run(tmp_path, 0), "e_math", lambda k, n: {"cluster": f"c{n // 3}"}
    )
    record = with_leak(tmp_path, record, {"train math": {"e_math": found([4, 20])}})
    assert record.clean.left_out == {"e_math": 6}
    hits = {3, 4, 5, 18, 19, 20}
    assert record.clean.matrix.score(1, "e_math") == mean_without(tmp_path, 1, "e_math", hits)
    assert "few_items" in record.clean.matrix.rows[1]["e_math"].flags  # 18 clusters are left
    assert record.matrix.rows[1]["e_math"].flags == ()


def test_a_corpus_metric_is_computed_anew_from_the_items_that_are_left(tmp_path):
    rng = np.random.default_rng(5)
    truth = [n % 3 == 0 for n in range(NUM_ITEMS)]

    def answers(k, n):
        says = bool(rng.random() < 0.4)
        right = float(says == truth[n])
        return {
            "lls": [0.0, 1.0] if says else [1.0, 0.0],
            "scores": {"acc,none": right, "f1,none": 0.0},
            "score": right,
        }

    def f1(items):
        says = [i["lls"][1] > 0 for i in items]
        return float(f1_score([truth[int(i["id"])] for i in items], says))

    record = rewrite(tmp_path, make_run(tmp_path, 0), "e_code", answers, "f1,none", f1)
    hits = range(0, 30, 3)  # ten of the twenty positive ones
    record = with_leak(tmp_path, record, {"train code": {"e_code": found(hits)}})
    for k in range(3):
        left = [i for i in read_items(tmp_path, k, "e_code") if int(i["id"]) not in hits]
        assert record.clean.matrix.score(k, "e_code") == pytest.approx(f1(left), abs=1e-12)
        assert f1(left) != pytest.approx(record.matrix.score(k, "e_code"), abs=1e-3)
        mean = math.fsum(i["score"] for i in left) / len(left)
        assert f1(left) != pytest.approx(mean, abs=1e-3)
    low, high = record.clean.metrics["final_avg.v1"].interval
    assert low < record.clean.metrics["final_avg.v1"].value < high


def test_without_a_clean_item_there_is_no_score_and_the_reason_is_shown(tmp_path):
    record = leaking(tmp_path, {"train math": {"e_math": found(range(NUM_ITEMS))}})
    cell = record.clean.matrix.rows[1]["e_math"]
    assert (cell.score, cell.reason, cell.num_items) == (None, "leaked", 0)
    metric = record.clean.metrics["final_avg.v1"]
    assert (metric.value, metric.reason, metric.missing) == (None, "missing", ("R[2,e_math]",))
    assert record.clean.metrics["world_delta.v1"].value is not None
    assert "– e_math: no clean item" in text.footnotes(record)


def test_references_are_scored_on_clean_items_too(tmp_path):
    record = make_run(tmp_path, 0)
    hits = {3, 7, 11, 41}
    for e in ("e_math", "e_code"):
        write_items(tmp_path, "single", e, [item(n, n % 4 != 0) for n in range(NUM_ITEMS)])
    record = record.replace(references=References(single={"math": 0.75, "code": 0.75}))
    record = with_leak(tmp_path, record, {"train math": {"e_math": found(hits)}})
    alone = mean_without(tmp_path, "single", "e_math", hits)
    assert alone != 0.75
    exact = compute(record.clean.matrix, References(single={"math": alone, "code": 0.75}))
    clean = record.clean.metrics["rel_pooled.v1"]
    assert clean.value == exact["rel_pooled.v1"].value != record.metrics["rel_pooled.v1"].value
    assert clean.interval is not None
    (tmp_path / "items" / "single.e_math.jsonl").unlink()
    metrics = summarize_run(record, tmp_path).clean.metrics
    assert metrics["rel_pooled.v1"].reason == "no_reference"


def test_what_is_read_off_a_trace_comes_from_the_rows_where_an_eval_leaks(tmp_path):
    points = [
        {"step": 10 * n, "scores": {"e_math": 0.1 * n, "e_code": 0.1 * n}} for n in range(1, 5)
    ]
    trace = {"eval_every": 10, "ends": [20, 40], "points": points}
    record = make_run(tmp_path, 0).replace(trace=trace)
    record = with_leak(tmp_path, record, {"train math": {"e_math": found([3, 7])}})
    assert record.metrics["min_acc.v1[2]"].grid == "10"
    clean = record.clean.metrics["min_acc.v1[2]"]
    assert clean.grid == "task"
    assert clean.value == record.clean.matrix.score(2, "e_math")


def test_a_score_without_its_items_is_no_clean_score(tmp_path):
    record = leaking(tmp_path, {"train math": {"e_math": found([3])}})
    (tmp_path / "items" / "1.e_math.jsonl").unlink()
    with pytest.raises(UserError, match="no items of e_math in row 1"):
        summarize_run(record, tmp_path)


# The record


def test_scoring_again_reproduces_the_clean_block(tmp_path):
    record = leaking(tmp_path, {"train math": {"e_math": found([3, 7, 11])}})
    assert Record.load(tmp_path) == record
    again = rescore(tmp_path)
    assert again.clean == record.clean
    assert again.metrics == record.metrics
    assert again.changed == ()
    assert rescore(tmp_path).path == again.path
    stored = json.loads(again.path.read_text())["clean"]
    assert stored == json.loads(json.dumps(record.clean.model_dump(mode="json")))
    other = record.clean.metrics | {"bwt.v1": record.metrics["fwt.v1"]}
    record.replace(clean=record.clean.model_copy(update={"metrics": other})).save(tmp_path)
    assert rescore(tmp_path).changed == ("clean bwt.v1",)


def test_records_without_the_block_are_read_as_they_were(tmp_path):
    record = leaking(tmp_path, {"train math": {"e_math": found([3, 7, 11])}})
    value = record.to_json()
    assert "clean" in value
    old = {key: entry for key, entry in value.items() if key not in ("clean", "record_digest")}
    write_atomic(tmp_path / "record.json", json.dumps(old | {"record_digest": digest(old)}))
    loaded = Record.load(tmp_path)
    assert loaded.clean is None
    assert loaded.record_digest() == digest(old)
    assert loaded.comparison_key() == record.comparison_key()
    again = rescore(tmp_path)
    assert again.clean == record.clean  # from the record and its items alone
    assert again.changed == ()
    assert "clean" not in json.loads(schema_text())["required"]


def test_a_run_shows_the_clean_score_beside_the_other(tmp_path):
    record = leaking(tmp_path, {"train math": {"e_math": found([3, 7, 11, 40])}})
    shown = text.result(record)
    header, *_ = (line for line in shown.splitlines() if "clean items" in line)
    assert header.split() == ["clean", "items"]
    line = next(line for line in shown.splitlines() if line.startswith("after code"))
    both = [
        f"{100 * matrix.score(2, 'e_math'):.1f}" for matrix in (record.matrix, record.clean.matrix)
    ]
    assert line.split()[2:4] == both
    ranked = shown.partition("ranked: without the items that training data holds (4 of e_math)")[2]
    assert f"{100 * record.clean.metrics['final_avg.v1'].value:.1f}" in ranked
    assert "world_delta.v1" not in ranked  # as above
    whole = text.result(make_run(tmp_path / "whole", seed=0))
    assert "clean" not in whole
    assert "ranked" not in whole


# Comparing


def test_two_runs_are_compared_on_what_is_clean_in_both(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    leaking(a, {"train math": {"e_math": found([3, 7])}}, seed=1)
    leaking(b, {"train math": {"e_math": found([7, 11, 40], ngram=0.009)}}, seed=2)
    hits = {3, 7, 11, 40}
    forth, back = compare(a, b, resamples=500), compare(b, a, resamples=500)
    cells = {line.name: line for line in forth.cells}
    line = cells["R[2,e_math]"]
    assert (line.a, line.b) == tuple(mean_without(run, 2, "e_math", hits) for run in (a, b))
    assert line.num_items == 56
    assert cells["R[2,e_code]"].num_items == 60
    assert line.difference == line.b - line.a
    metric = next(m for m in forth.metrics if m.name == "final_avg.v1")
    expected = [
        (mean_without(run, 2, "e_math", hits) + mean_without(run, 2, "e_code", ())) / 2
        for run in (a, b)
    ]
    assert [metric.a, metric.b] == pytest.approx(expected, abs=1e-15)
    (note,) = forth.notes
    assert (
        note
        == "leak: 4 items of e_math that training data of either run holds are left out of both"
    )
    assert note in text.comparison(forth, "a", "b")
    for one, other in zip(forth.cells, back.cells, strict=True):
        assert (one.a, one.b) == (other.b, other.a)
    assert back.notes == forth.notes


def test_runs_without_leaks_are_compared_on_all_items(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, seed in ((a, 1), (b, 2)):
        leaking(folder, {"train math": {"e_math": found([3], ngram=0.005)}}, seed=seed)
    comparison = compare(a, b, resamples=500)
    assert comparison.notes == ()
    assert {line.num_items for line in comparison.cells} == {60}


def test_nothing_is_compared_where_no_item_is_clean(tmp_path):
    leaking(tmp_path, {"train math": {"e_math": found(range(NUM_ITEMS))}})
    lines = {line.name: line for line in compare(tmp_path, tmp_path, resamples=500).cells}
    assert (lines["R[2,e_math]"].a, lines["R[2,e_math]"].difference) == (None, None)
    assert lines["R[2,e_code]"].difference == 0.0


# A whole run

STREAM = """
preset = "tiny"
[[tasks]]
name = "qa"
data = "qa.jsonl"
prompt = "Q: {question}\\nA:"
answer = " {answer}"
[tasks.eval]
score = "chrf"
new_tokens = 24
"""


def words(number):
    return [f"w{number}x{at}" for at in range(15)]


def test_a_part_of_a_question_in_the_training_data_leaves_it_out_of_the_clean_score(
    tmp_path: Path, monkeypatch
):
    """A row that asks a whole question is not trained on; one that asks 13 words of it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    rows = [{"question": " ".join(words(n)), "answer": "w" * 12} for n in range(40)]
    rows[3]["question"] = f"so {' '.join(words(38)[1:14])} then"
    rows[4]["question"] = f"so {' '.join(words(39))} then"
    rows[38]["answer"] = "zzzz"  # the last four are the eval: what 38 adds is seen in the score
    json_lines(Path("qa.jsonl"), rows)
    Path("qa.toml").write_text(STREAM)
    model = str(toy_runs.save_toy_model(tmp_path / "model"))
    settings = {"train.steps": 3, "train.lr": 0.01}
    record = clbench.run("qa.toml", "lora", model=model, settings=settings, out="run")

    assert record.data["tasks"]["qa"]["num_in_evals"] == 1
    assert record.data["leak"]["evals"]["train qa"]["qa"]["hits"] == ["2"]
    assert "leak" in record.flags
    assert record.clean.left_out == {"qa": 1}
    for k in (0, 1):
        items = {i["id"]: i for i in read_items("run", k, "qa")}
        assert len(items) == 4
        left = [items[name] for name in ("0", "1", "3")]
        outputs, golds = [i["filtered"] for i in left], [i["gold"][0] for i in left]
        by_hand = sacrebleu.corpus_chrf(outputs, [golds]).score / 100
        assert record.clean.matrix.score(k, "qa") == pytest.approx(by_hand, abs=1e-9)
    assert record.clean.matrix.score(1, "qa") > record.matrix.score(1, "qa") > 0
    assert record.clean.metrics["final_avg.v1"].value == record.clean.matrix.score(1, "qa")
    assert rescore("run").clean == record.clean == Record.load("run").clean
