"""The further tiny tasks: disjoint, balanced, repeatable, scored as said, and without a leak."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from importlib.metadata import entry_points
from random import Random
from typing import Any

import pytest
import toy_runs
from clbench_tasks import scorers, tiny_tasks
from clbench_tasks.tiny import choices, facts, labels, skills, writing
from clbench_tasks.tiny.splits import Row, SharedText, Splits, draw, words
from evaltoys import evaluator

from clbench import experiment, leak, registry
from clbench.digests import digest
from clbench.evalplan import EvalPlan
from clbench.harness import IMPOSSIBLE, Oracle, run_harness
from clbench.results import Record
from clbench.task import Eval

CHOICES = {
    choices.LOGIC: tiny_tasks.logic,
    choices.SOCIAL: tiny_tasks.social,
    choices.SCIENCE: tiny_tasks.science,
    choices.BOOLQ: tiny_tasks.boolq,
    labels.NLI: tiny_tasks.nli,
    labels.PAIRS: tiny_tasks.pairs,
    labels.PARAPHRASE: tiny_tasks.paraphrase,
    labels.SENTIMENT: tiny_tasks.sentiment,
    labels.TOPIC: tiny_tasks.topic,
    labels.REVIEWS: tiny_tasks.reviews,
    labels.PRODUCTS: tiny_tasks.products,
    labels.ENTITIES: tiny_tasks.entities,
    labels.QUESTIONS: tiny_tasks.questions,
}
TASKS = CHOICES | {
    writing.SUMMARY: tiny_tasks.summary,
    writing.TRANSLATE: tiny_tasks.translate,
}
DIGESTS = {
    "tiny_logic": "adf569464dd58205",
    "tiny_social": "fbb181fde2bd69a5",
    "tiny_science": "2bade939084f1c53",
    "tiny_boolq": "fbe7a11ccbaa6b9f",
    "tiny_nli": "f5cc8499be17dc1a",
    "tiny_pairs": "9400444480b2f22e",
    "tiny_paraphrase": "237dc0b8e8fd904d",
    "tiny_sentiment": "a0023f68bf9e7b81",
    "tiny_topic": "97f6ecd490820066",
    "tiny_reviews": "ec2cc5c4d5153eb7",
    "tiny_products": "1eb9d03569059fe6",
    "tiny_entities": "75641ad5db48192d",
    "tiny_questions": "e7d4233d5363b63d",
    "tiny_summary": "7b9d415626e35f7d",
    "tiny_translate": "726c3286443b9940",
}
OTHERS = {"tiny-math": "math", "tiny-code": "code", "tiny-if": "if"}

every = pytest.mark.parametrize("splits", TASKS, ids=lambda splits: splits.name)
every_choice = pytest.mark.parametrize("splits", CHOICES, ids=lambda splits: splits.name)


@cache
def parts(splits: Splits) -> dict[str, list[Row]]:
    """Return the rows of each split, drawn once."""
    train, held_out = splits.train_examples(), splits.validation_examples()
    return {"eval": splits.eval_items(), "train": train, "validation": held_out}


def scored(spec: Eval, lm: Any) -> dict[str, float]:
    """Return what lm-eval prints for a model that writes or chooses as `lm` does."""
    plan = evaluator(spec).plan(spec.id)
    return dict(run_harness(lm(plan), plan)["results"][plan.task.task_name])


class Errs(Oracle):
    """Chooses an option that is not the right one, and writes the answer of another item."""

    def __init__(self, plan: EvalPlan) -> None:
        super().__init__(plan.task)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        certain, impossible = (0.0, True), (IMPOSSIBLE, False)
        found = super().loglikelihood(requests)
        return [impossible if answer == certain else certain for answer in found]


# What is asked


@every
def test_sizes_ids_and_fields(splits: Splits) -> None:
    rows = [row for part in parts(splits).values() for row in part]
    assert [len(part) for part in parts(splits).values()] == [200, 2000, 100]
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == 2300
    assert rows[17]["id"] == f"{splits.name}/eval/00017"
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert row["question"] in row["prompt"]
        assert row["answer"] == f" {row['gold'] if 'gold' in row else row['options'][row['label']]}"


@every
def test_rows_are_those_that_were_measured(splits: Splits) -> None:
    assert splits.train_examples(50) == parts(splits)["train"][:50]
    assert digest(parts(splits))[:16] == DIGESTS[splits.name]


@every
def test_no_problem_is_in_two_splits(splits: Splits) -> None:
    def make(rng: Any) -> Any:
        problem, row = splits.make(rng)
        return problem, {**row, "problem": repr(problem)}

    names = ("train", "validation", "eval")
    drawn = {n: draw(make, n, 100, 0, "x", num_labels=splits.num_labels) for n in names}
    assert len({row["problem"] for rows in drawn.values() for row in rows}) == 300


@every_choice
def test_labels_are_balanced(splits: Splits) -> None:
    for rows in parts(splits).values():
        counts = Counter(row["label"] for row in rows)
        assert sorted(counts) == list(range(splits.num_labels))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert {len(row["options"]) for row in splits.eval_items()} >= {splits.num_labels}


@every
def test_eval_items_are_enough_clusters(splits: Splits) -> None:
    clusters = {row["cluster"] for row in splits.eval_items()}
    assert len(clusters) >= 50 if splits is choices.SCIENCE else len(clusters) == 200


# How it is scored


@every
def test_the_ceiling_is_one_and_another_answer_earns_less(splits: Splits) -> None:
    task = TASKS[splits]()
    for spec in (*task.evals, *task.validation_evals):
        assert evaluator(spec).ceiling(spec.id) == 1.0
    (spec,) = task.evals
    assert spec.id == splits.name
    assert task.validation_evals[0].metric == spec.metric
    if splits in CHOICES:
        assert scored(spec, Errs)[spec.metric] == 0.0
        assert spec.chance == 1 / splits.num_labels


def test_pairs_report_f1_and_the_others_do_not() -> None:
    with_f1 = {
        task().name for task in CHOICES.values() if "f1,none" in task().evals[0].other_metrics
    }
    assert with_f1 == {"pairs", "paraphrase"}
    (spec,) = tiny_tasks.pairs().evals
    assert scored(spec, lambda plan: Oracle(plan.task))["f1,none"] == 1.0


def test_written_answers_are_graded() -> None:
    doc = {"gold": "The bank met the king in the hall."}
    assert scorers.rouge(doc, [" The bank met the king in the hall."])["rougeL"] == 1.0
    half = scorers.rouge(doc, ["The bank met"])
    assert half["rougeL"] == pytest.approx(2 * 3 / (3 + 8))
    assert half["rouge2"] == pytest.approx(2 * 2 / (2 + 7))
    assert scorers.rouge(doc, [""])["rougeL"] == 0.0


def test_translations_are_scored_as_a_whole_in_percent() -> None:
    (spec,) = tiny_tasks.translate().evals
    results = scored(spec, lambda plan: Oracle(plan.task))
    assert [results["chrf,none"], results["bleu,none"]] == pytest.approx([100, 100])
    result = evaluator(spec).ceiling(spec.id)
    assert result == 1.0  # BLEU prints a little over 100, which is no score in 0..1


def test_a_translation_goes_word_by_word() -> None:
    english = {german: word for word, german in writing.GERMAN.items()}
    for row in writing.TRANSLATE.eval_items():
        assert " ".join(english[word] for word in row["question"].split()) == row["gold"]


# What leaks into what


def test_no_task_and_no_calibration_text_holds_a_question() -> None:
    tasks = [make() for make in TASKS.values()]
    sources = {f"train {t.name}": [[r.prompt, r.answer] for r in t.train()] for t in tasks}
    sources["calibration"] = [[text] for text in facts.calibration_texts()]
    edition = registry.stream("math-code-if").edition("tiny")
    specs = [e for task in tasks for e in task.evals] + list(edition.evals)
    found = leak.report(sources, evaluator(*specs).probes())
    assert found["flags"] == []
    hits = {(s, e): n["hits"] for s, by in found["evals"].items() for e, n in by.items()}
    assert not any(hits.values())


@every
def test_pretraining_text_of_these_skills_holds_no_question(splits: Splits) -> None:
    rng = Random(0)
    probe = SharedText(row["question"] for row in splits.eval_items())
    assert not any(probe.found_in(skills.other_skill(rng)) for _ in range(3000))


def test_science_teaches_no_world_fact() -> None:
    asked = {(f.subject.casefold(), f.answer.casefold()) for f in facts.load_facts()}
    for rows in parts(choices.SCIENCE).values():
        for told in (set(words(row["prompt"])) for row in rows):
            assert not any(subject in told and answer in told for subject, answer in asked)


def test_a_thing_of_science_is_of_one_kind() -> None:
    things = [thing for members in choices.MEMBERS.values() for thing in members]
    assert len(things) == len(set(things)) == 54
    assert choices.MEMBERS.keys() == choices.HAVE.keys()


# Streams


def test_every_task_has_a_name_that_streams_can_use() -> None:
    points = entry_points(group="clbench.tasks")
    made = {point.name: point.load()() for point in points if point.name.startswith("tiny-")}
    names = {f"tiny-{task.name}": task.name for task in (make() for make in TASKS.values())}
    assert {name: task.name for name, task in made.items()} == names | OTHERS
    assert all(task.about and task.license and task.info["id"] for task in made.values())


@pytest.mark.parametrize(
    ("stream", "tasks"),
    [
        ("secura-mcq", "logic social science boolq"),
        ("secura-qa", "math summary translate if code"),
        (
            "secura-16",
            "math logic sentiment summary nli code social pairs translate topic science if boolq "
            "paraphrase reviews entities",
        ),
        ("standard-cl", "entities products questions topic reviews"),
    ],
)
def test_streams_hold_their_tasks_and_the_world(stream: str, tasks: str) -> None:
    edition = registry.stream(stream).edition("tiny")
    assert [task.name for task in edition.tasks] == tasks.split()
    assert [e.id for e in edition.world] == ["tiny_facts", "tiny_facts_greedy"]
    assert edition.preset == "tiny"
    assert len({e.id for e in edition.evals}) == len(edition.evals)
    assert edition.validating().evals


def test_a_stream_of_choices_runs_from_end_to_end(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    model = toy_runs.save_toy_model(tmp_path / "model")
    config = toy_runs.toy_config(model, stream="secura-mcq", strategy="lora")
    record = experiment.run(config, out=tmp_path / "run")
    assert record.status == "complete"
    assert len(record.matrix.rows) == 5
    cells = [record.matrix.score(row, e) for row in range(5) for e in record.matrix.evals]
    assert len(cells) == 5 * 6
    assert None not in cells
    assert Record.load(tmp_path / "run").evals["tiny_logic"].chance == 0.25
