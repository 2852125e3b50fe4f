"""The embedded stream: evals mirror the real ones, discriminate and share nothing with training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from clbench_tasks import tiny_evals
from clbench_tasks.tiny import facts, math
from evaltoys import char_tokenizer, evaluator
from toys import toy_model

from clbench import drift, leak, registry, sandbox
from clbench.errors import UserError
from clbench.evalchecks import check_code_eval
from clbench.evalplan import EvalPlan
from clbench.evaluation import Evaluator
from clbench.harness import Oracle, run_harness
from clbench.task import Eval, Row

STREAM = registry.stream("math-code-if")
EDITION = STREAM.edition("tiny")
IDS = ["tiny_math", "tiny_code", "tiny_instruct", "tiny_facts", "tiny_facts_greedy"]


@pytest.fixture(scope="module")
def scorer() -> Evaluator:
    """Return an evaluator of every eval of the stream."""
    return evaluator(*EDITION.evals)


class Writes(Oracle):
    """Answers the n-th document with the n-th text, in a circle, through the eval's stops."""

    def __init__(self, plan: EvalPlan, texts: Sequence[str]) -> None:
        super().__init__(plan.task)
        self.by_id = {name: texts[at % len(texts)] for at, name in enumerate(plan.ids)}

    def reference(self, doc: Any) -> str:
        return self.by_id[doc["id"]]


def scored(plan: EvalPlan, texts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return lm-eval's logged samples by filter."""
    samples = run_harness(Writes(plan, texts), plan)["samples"][plan.task.task_name]
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    return {name: [s for s in samples if s["filter"] == name] for name in filters}


def documents(spec: Eval) -> list[dict[str, Any]]:
    assert not isinstance(spec.config, str)
    docs: list[dict[str, Any]] = spec.config["docs"]()
    return docs


def test_the_stream_says_what_it_holds() -> None:
    assert [task.name for task in EDITION.tasks] == ["math", "code", "if"]
    assert [e.id for e in EDITION.evals] == IDS
    assert [e.id for e in EDITION.world] == IDS[3:]
    assert EDITION.preset == "tiny"
    with pytest.raises(UserError, match="tiny"):
        STREAM.edition("huge")


def test_building_the_streams_loads_nothing_heavy() -> None:
    heavy = "torch", "datasets", "transformers", "lm_eval", "numpy"
    code = f"""
import sys
from clbench import registry
streams = [registry.stream(e.name) for e in registry.listing(registry.STREAMS)]
assert [stream.edition(data) for stream in streams for data in stream.editions]
print([m for m in {heavy} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_sizes_are_those_of_the_default_run(scorer: Evaluator) -> None:
    assert [len(scorer.plan(name).ids) for name in IDS] == [200] * 5
    assert [scorer.plan(name).limited for name in IDS] == [False] * 3 + [True] * 2
    assert len(scorer.plan("tiny_facts").rank_ids) == 100
    full = evaluator(*EDITION.world, size="full")
    assert [len(full.plan(name).ids) for name in IDS[3:]] == [500, 500]
    assert len(full.plan("tiny_facts").rank_ids) == 500
    assert [scorer.plan(name).new_tokens for name in IDS] == [48, 48, 32, 24, None]


def test_every_ceiling_is_one(scorer: Evaluator) -> None:
    assert {name: scorer.ceiling(name) for name in IDS} == dict.fromkeys(IDS, 1.0)


def test_rows_are_what_a_model_reads_and_writes() -> None:
    for task in EDITION.tasks:
        rows = task.train()
        assert len(rows) == 2000
        assert len({row.id for row in rows}) == 2000
        assert all(isinstance(row, Row) and row.prompt and row.answer for row in rows)
        assert task.train() is rows  # drawn once
        (held_out,) = task.validation_evals
        evals = documents(task.evals[0]) + documents(held_out)
        assert len({doc["prompt"] for doc in evals}) == 300
        assert not {doc["prompt"] for doc in evals} & {row.prompt for row in rows}


def test_the_sizes_that_are_listed_are_those_that_are_there() -> None:
    for spec in EDITION.evals:
        assert len(documents(spec)) == spec.num_items
    assert [task.num_rows for task in EDITION.tasks] == [len(t.train()) for t in EDITION.tasks]


def test_training_and_calibration_leak_no_eval(scorer: Evaluator) -> None:
    sources = {
        f"train {task.name}": [[row.prompt, row.answer] for row in task.train()]
        for task in EDITION.tasks
    }
    sources["calibration"] = [[text] for text in EDITION.calibration()]
    found = leak.report(sources, scorer.probes())
    for source, by_eval in found["evals"].items():
        for name, numbers in by_eval.items():
            assert numbers["leak_exact.v1"] <= leak.MOST_EXACT, (source, name, numbers["hits"])
            assert numbers["leak_ngram.v1"] <= leak.MOST_NGRAM, (source, name, numbers["hits"])
    assert found["flags"] == []


# Math


def test_math_is_read_by_lm_eval_as_by_its_own_scorer(scorer: Evaluator) -> None:
    plan = scorer.plan("tiny_math")
    gold = [doc["gold"] for doc in plan.docs]
    shapes = (
        "#### {g}",
        "{g} 7",
        "7 {g}",
        "#### 7\n{g}",
        "",
        "none",
        "a{g}.",
        "-{g}",
        "#### {g}\nQuestion: 9",
    )
    texts = [shapes[at % len(shapes)].format(g=g) for at, g in enumerate(gold)]
    by_filter = scored(plan, texts)
    right = 0
    for at, (text, answer) in enumerate(zip(texts, gold, strict=True)):
        expected = math.score(text.split("Question:")[0], answer)
        assert by_filter["flexible-extract"][at]["exact_match"] == expected["flexible"], text
        assert by_filter["strict-match"][at]["exact_match"] == expected["strict"], text
        right += expected["flexible"]
    assert 40 < right < 160


# Code


def passes(doc: dict[str, Any], completion: str) -> bool:
    """Run a program of our own making in this process."""
    scope: dict[str, Any] = {}
    exec(doc["prefix"] + completion, scope)
    try:
        results = [scope[doc["entry_point"]](*arguments) for arguments, _ in doc["cases"]]
    except Exception:
        return False
    return results == [expected for _, expected in doc["cases"]]


def test_reference_code_passes_and_emptied_code_fails() -> None:
    docs = documents(EDITION.tasks[1].evals[0])
    assert len(docs) == 200
    assert min(len(doc["cases"]) for doc in docs) >= 3
    assert all(passes(doc, doc["reference"]) for doc in docs)
    assert not any(passes(doc, doc["emptied"]) for doc in docs)


def test_they_do_so_in_the_sandbox_too() -> None:
    isolation = sandbox.find_isolation("none")
    assert isolation is not None
    plan = evaluator(EDITION.tasks[1].evals[0], samples=6).plan("tiny_code")
    assert check_code_eval(plan, isolation).passed


# Instructions


def test_loose_is_never_below_strict_and_silence_follows_nothing(scorer: Evaluator) -> None:
    plan = scorer.plan("tiny_instruct")
    answers = [doc["reference"] for doc in plan.docs]
    wrapped = [f"Sure:\n{a}\nDone" if at % 2 else f"*{a}*" for at, a in enumerate(answers)]
    for texts in (answers, wrapped, [""]):
        (samples,) = scored(plan, texts).values()
        for sample in samples:
            assert sample["if_prompt_loose"] >= sample["if_prompt_strict"]
            pairs = zip(sample["if_inst_loose"], sample["if_inst_strict"], strict=True)
            assert all(loose >= strict for loose, strict in pairs)
            assert sample["if_prompt_strict"] == float(all(sample["if_inst_strict"]))
            if texts == [""]:
                assert not any(sample["if_inst_loose"])
    (samples,) = scored(plan, wrapped).values()
    assert sum(s["if_prompt_loose"] for s in samples) > sum(s["if_prompt_strict"] for s in samples)


def test_constraint_level_is_a_share_over_constraints() -> None:
    assert tiny_evals.share_of_constraints([[True], [True, False, False]]) == 0.5


# World


def test_candidates_hold_the_gold_and_nothing_that_is_right(scorer: Evaluator) -> None:
    plan = scorer.plan("tiny_facts")
    assert sorted(plan.candidates) == sorted(plan.rank_ids)
    for name, candidates in plan.candidates.items():
        accepted = {drift.normalize(alias) for alias in plan.aliases[name]}
        assert len({drift.normalize(text) for text in candidates}) == 32
        assert candidates[0] == plan.aliases[name][0]
        assert accepted.isdisjoint(drift.normalize(text) for text in candidates[1:])


def test_no_gold_holds_a_stop() -> None:
    for doc in documents(EDITION.world[0]):
        assert not any(stop in gold for gold in doc["golds"] for stop in facts.STOPS)


def test_calibration_shares_no_sentence_with_the_questions() -> None:
    texts = set(EDITION.calibration())
    asked = {
        doc[key] for e in EDITION.world for doc in documents(e) for key in ("prompt", "question")
    }
    assert not texts & asked
    assert not any(question in text for text in texts for question in list(asked)[:50])


def test_greedy_facts_write_nothing(scorer: Evaluator) -> None:
    small = evaluator(*EDITION.world, samples=4)
    result = small.evaluate(toy_model(), ["tiny_facts_greedy"])["tiny_facts_greedy"]
    assert result.tokens_generated == 0
    assert all(item["output"] is None and item["lls"] for item in result.items)
    assert scorer.plan("tiny_facts_greedy").stops is None


def test_validation_evals_are_scored_like_the_evals() -> None:
    for task in EDITION.tasks:
        (held_out,) = task.validation_evals
        assert held_out.metric == task.evals[0].metric
        assert held_out.id == f"{task.evals[0].id}_validation"
        plan = evaluator(held_out).plan(held_out.id)
        assert len(plan.ids) == 100
    assert char_tokenizer().pad_token_id == 0
