"""Scores for a data set of one's own: what they count as right, asked through lm-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaltoys import evaluator
from test_streamfile import json_lines

from clbench import leak, scoring
from clbench.dataset import Columns, DataSet, Template
from clbench.errors import UserError
from clbench.evaluation import Oracle, run_harness
from clbench.task import Eval

ROWS = [
    {"q": "What is the capital of France?", "a": "Paris", "n": 7, "label": 0},
    {"q": "What is the capital of Italy?", "a": "Rome", "n": -12.5, "label": 1},
    {"q": "And of Japan?", "a": "Tokyo", "n": 1300, "label": 2},
]
CITIES = ("Paris", "Rome", "Tokyo")


def build(
    folder: Path,
    score: str,
    answer: str = " {a}",
    options: tuple[str, ...] | str = (),
    rows: Sequence[Mapping[str, Any]] = ROWS,
    **how: Any,
) -> Eval:
    json_lines(folder / "rows.jsonl", rows)
    data = DataSet("rows.jsonl", "", place="file", base=str(folder))
    template = Template("Question: {q}\nAnswer:", answer)
    columns = Columns(
        "rows.jsonl", {n: n for n in template.columns()}, template.columns()[-1], options
    )
    return scoring.build("mine", score, data, template, columns, **how)


class Says(Oracle):
    """Writes the same for every document."""

    text = ""

    def reference(self, doc: Any) -> str:
        return self.text


def run(spec: Eval, text: str) -> dict[str, Any]:
    """Return what lm-eval reports if the model writes this text for every document."""
    plan = evaluator(spec).plan("mine")
    writer = Says(plan.task)
    writer.text = text
    return run_harness(writer, plan)


def scored(spec: Eval, text: str) -> list[float]:
    key = spec.metric.partition(",")[0]
    return [float(sample[key]) for sample in run(spec, text)["samples"]["mine"]]


def total(spec: Eval, text: str) -> float:
    return float(run(spec, text)["results"]["mine"][spec.metric])


@pytest.mark.parametrize("score", ["exact_match", "contains", "final_number", "rougeL", "chrf"])
def test_a_right_answer_scores_one(tmp_path: Path, score: str):
    spec = build(tmp_path, score, " {n}" if score == "final_number" else " {a}")
    assert evaluator(spec).ceiling("mine") == pytest.approx(1.0)
    assert evaluator(spec).plan("mine").limited is False


def test_exact_match_forgives_case_punctuation_articles_and_spaces(tmp_path: Path):
    spec = build(tmp_path, "exact_match")
    for text in (" Paris", "the PARIS.", "  paris  "):
        assert scored(spec, text) == [1, 0, 0], text
    assert scored(spec, " Paris, France") == [0, 0, 0]


def test_contains_looks_for_whole_words(tmp_path: Path):
    spec = build(tmp_path, "contains")
    assert scored(spec, " It is Paris, or Tokyo!") == [1, 0, 1]
    assert scored(spec, " Parisian Romeo") == [0, 0, 0]


def test_the_final_number_is_compared_as_a_number(tmp_path: Path):
    spec = build(tmp_path, "final_number", " so it is {n}")
    assert scored(spec, "3 + 4 = 7.0") == [1, 0, 0]
    assert scored(spec, "7 or 1,300") == [0, 0, 1]
    assert scored(spec, "-12.50 in all") == [0, 1, 0]
    assert scored(spec, "none") == [0, 0, 0]


def test_rouge_and_chrf_grow_with_what_is_shared(tmp_path: Path):
    rows = [{"q": "Say it.", "a": "the cat sat on the mat"}]
    spec = build(tmp_path, "rougeL", rows=rows)
    assert scored(spec, "the cat sat") == [pytest.approx(2 / 3)]
    spec = build(tmp_path, "chrf", rows=rows)
    none, some, all_ = (total(spec, text) for text in ("xyz", "the cat sat", rows[0]["a"]))
    assert none == 0 < some < all_ == pytest.approx(100)


@pytest.mark.parametrize("column", ["a", "label"])
def test_a_choice_is_a_text_or_a_position(tmp_path: Path, column: str):
    spec = build(tmp_path, "choice", f" {{{column}}}", CITIES, chance=1 / 3)
    scorer = evaluator(spec)
    assert scorer.ceiling("mine") == 1.0
    plan = scorer.plan("mine")
    assert [doc["label"] for doc in plan.docs] == [0, 1, 2]
    asked = [instance.args for instance in plan.task.instances][:3]
    assert asked == [(plan.prompts[0], f" {city}") for city in CITIES]
    assert (plan.stops, plan.new_tokens, spec.chance) == (None, None, 1 / 3)


def test_options_may_be_a_column_and_the_answer_a_sentence(tmp_path: Path):
    rows = [{**row, "cities": list(CITIES)} for row in ROWS]
    spec = build(tmp_path, "choice", " It is {label}.", "cities", rows, chance=1 / 3)
    plan = evaluator(spec).plan("mine")
    assert plan.docs[1]["options"] == [f"It is {city}." for city in CITIES]
    assert evaluator(spec).ceiling("mine") == 1.0


def test_what_ends_an_answer_follows_from_the_score_unless_it_is_said(tmp_path: Path):
    def ends(score: str, **how: Any) -> tuple[list[str] | None, int | None]:
        plan = evaluator(build(tmp_path, score, **how)).plan("mine")
        return plan.stops, plan.new_tokens

    assert ends("exact_match") == (["\n"], 32)
    assert ends("rougeL") == (["\nQuestion:"], 128)
    assert ends("final_number", stops=["END"], new_tokens=9) == (["END"], 9)
    assert ends("contains", stops=[]) == ([], 64)


def test_a_short_question_is_looked_for_with_its_template(tmp_path: Path):
    assert scoring.SHORTEST == leak.SHORTEST
    probes = evaluator(build(tmp_path, "exact_match")).probes()["mine"]
    questions = [probe.question for probe in probes.values()]
    assert questions == [ROWS[0]["q"], ROWS[1]["q"], "Question: And of Japan?\nAnswer:"]


def test_choice_needs_options(tmp_path: Path):
    with pytest.raises(UserError, match="score 'choice' needs options"):
        build(tmp_path, "choice")
