"""Evaluation: what lm-eval is told, what is recorded per item, and what may never be a score."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from evaltoys import (
    FACTS,
    char_tokenizer,
    choice_eval,
    code_eval,
    evaluator,
    facts_eval,
    prompt_of,
    teach,
)
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from toys import toy_model
from transformers import GenerationConfig, PreTrainedModel

from clbench import decoding, drift, evalplan, sandbox
from clbench.errors import UserError
from clbench.evalchecks import check_batch_invariance, check_code_eval
from clbench.evalresult import EvalResult
from clbench.evaluation import Harness, quiet


@pytest.fixture(scope="module")
def knowing() -> PreTrainedModel:
    """Return a model that answers every question."""
    return teach([(prompt_of(w), f" {a}") for w, a in FACTS.items()])


@pytest.fixture(scope="module")
def drifted() -> PreTrainedModel:
    """Return a model that knows as much but mostly says so in a sentence."""
    plainly = [(prompt_of(w), f" {a}") for w, a in FACTS.items()]
    wordily = [(prompt_of(w), f" it is, {a}") for w, a in FACTS.items()]
    return teach([*plainly, *wordily, *wordily], steps=200)


@pytest.fixture(scope="module")
def coder() -> PreTrainedModel:
    """Return a model that completes one function rightly and two wrongly."""
    return teach(
        [
            ("one:", "    return x - -1\ndef"),
            ("two:", "    return 7"),
            ("three:", "    return ((("),
        ]
    )


def facts_of(model: PreTrainedModel) -> EvalResult:
    return evaluator(facts_eval()).evaluate(model)["toy_facts"]


def column(result: EvalResult, name: str) -> list[Any]:
    return [item[name] for item in result.items]


# What is generated


def test_known_answers_score_one_and_end_where_the_model_ends_them(
    knowing: PreTrainedModel,
) -> None:
    result = facts_of(knowing)
    assert result.score == 1.0
    assert result.others == {}
    assert column(result, "output") == [f" {answer}" for answer in FACTS.values()]
    assert column(result, "filtered") == list(FACTS.values())
    assert column(result, "stop_reason") == ["eos"] * 5
    assert column(result, "tokens") == [len(answer) + 2 for answer in FACTS.values()]
    assert result.counts == {"eos": 5}
    assert result.tokens_generated == sum(column(result, "tokens"))


def test_texts_are_those_of_lm_eval_itself() -> None:
    model, tokenizer = toy_model(seed=3), char_tokenizer()
    prompts = ["a?", "what is 7 = 3 - 2, then?", "the red rose:", "x"]
    settings = {"until": ["e", " 1"], "max_gen_toks": 16, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompt, settings), 0, ("toy", i, 1))
        for i, prompt in enumerate(prompts)
    ]
    with quiet():
        reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        expected = reference.generate_until(copy.deepcopy(requests), disable_tqdm=True)
    for batch_size in (1, 3, 8):
        assert Harness(model, tokenizer, batch_size).generate_until(requests) == expected


def test_generation_settings_of_the_model_are_not_inherited(knowing: PreTrainedModel) -> None:
    expected = facts_of(knowing).items
    model = copy.deepcopy(knowing)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=9.0, num_beams=3, repetition_penalty=5.0, max_new_tokens=1
    )
    assert facts_of(model).items == expected


def test_two_evaluations_are_identical(drifted: PreTrainedModel) -> None:
    first, second = facts_of(drifted), facts_of(drifted)
    assert first.items == second.items
    assert first.items_digest == second.items_digest


def test_the_model_comes_back_as_it_was(knowing: PreTrainedModel) -> None:
    model = copy.deepcopy(knowing).train()
    model.lm_head.eval()
    before = copy.deepcopy(model.state_dict())
    evaluator(facts_eval(), choice_eval()).evaluate(model)
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_no_socket_is_opened(knowing: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("evaluation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert facts_of(knowing).score == 1.0


def test_evaluation_is_silent(
    knowing: PreTrainedModel, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    facts_of(knowing)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# Stops, caps and room


def test_a_gold_that_holds_a_stop_lowers_the_ceiling(knowing: PreTrainedModel) -> None:
    docs = [
        {"id": "a", "prompt": "a:", "golds": ["no stop"]},
        {"id": "b", "prompt": "b:", "golds": ["a, b"]},
    ]
    spec = facts_eval()
    spec = dataclasses.replace(spec, config={**spec.config, "docs": lambda: docs}, rank_items=0)
    assert evaluator(spec).evaluate(knowing)["toy_facts"].ceiling == 0.5
    assert facts_of(knowing).ceiling == 1.0


def test_rambling_to_the_cap_is_flagged() -> None:
    spec = facts_eval()
    settings = {"until": ["never written"], "max_gen_toks": 12}
    spec = dataclasses.replace(spec, config={**spec.config, "generation_kwargs": settings})
    result = evaluator(spec).evaluate(toy_model(seed=1))["toy_facts"]
    assert set(column(result, "stop_reason")) == {"length"}
    assert "length" in result.flags
    assert column(result, "tokens") == [12] * 5


def test_few_items_and_subsets_are_flagged(knowing: PreTrainedModel) -> None:
    assert facts_of(knowing).flags == ("few_items",)
    limited = evaluator(facts_eval(), samples=3).evaluate(knowing)["toy_facts"]
    assert limited.flags == ("limited", "few_items")
    assert limited.num_items == 3


def test_a_prompt_that_does_not_fit_is_flagged(knowing: PreTrainedModel) -> None:
    docs = [{"id": "long", "prompt": "red " * 15 + "red:", "golds": ["rose"]}]
    spec = facts_eval()
    spec = dataclasses.replace(spec, config={**spec.config, "docs": lambda: docs}, rank_items=0)
    assert "truncated" in evaluator(spec).evaluate(knowing)["toy_facts"].flags


def test_a_cap_beyond_the_model_is_refused(knowing: PreTrainedModel) -> None:
    spec = facts_eval()
    settings = {"until": ["\n"], "max_gen_toks": 64}
    spec = dataclasses.replace(spec, config={**spec.config, "generation_kwargs": settings})
    with pytest.raises(UserError, match="64 new tokens do not fit"):
        evaluator(spec).evaluate(knowing)


# Which items, under which digest


def test_a_subset_is_drawn_by_seed_and_logged_under_its_own_ids(knowing: PreTrainedModel) -> None:
    words = list(FACTS)
    chosen = [
        evaluator(facts_eval(), samples=n).evaluate(knowing)["toy_facts"].items
        for n in (1, 2, 3, 4)
    ]
    names = [[item["id"] for item in items] for items in chosen]
    assert all(some == sorted(some, key=words.index) for some in names)
    assert all(set(a) < set(b) for a, b in itertools.pairwise(names))
    assert names[0] != ["red"] or names[1] != ["red", "blue"]  # not the first n
    for items in chosen:
        assert [item["output"] for item in items] == [f" {FACTS[item['id']]}" for item in items]


def test_an_id_logged_for_another_document_is_an_error(knowing: PreTrainedModel) -> None:
    plan = evaluator(facts_eval(), samples=2).plan("toy_facts")
    doc = dict(plan.docs[1])
    sample = {"doc_id": plan.indices[0], "doc": doc, "metrics": [], "filter": "none"}
    with pytest.raises(ValueError, match="as another document"):
        evalplan.read_items(plan, [sample], [])


def test_digests_follow_what_they_name() -> None:
    base = evaluator(facts_eval()).plan("toy_facts")
    again = evaluator(facts_eval()).plan("toy_facts")
    assert (base.items_digest, base.task_digest) == (again.items_digest, again.task_digest)
    newer = evaluator(facts_eval(version=2)).plan("toy_facts")
    assert newer.items_digest == base.items_digest
    assert newer.task_digest != base.task_digest
    fewer = evaluator(facts_eval(), samples=3).plan("toy_facts")
    assert fewer.items_digest != base.items_digest
    spec = facts_eval()
    stops = {"until": ["\n"], "max_gen_toks": 12}
    other = dataclasses.replace(spec, config={**spec.config, "generation_kwargs": stops})
    assert evaluator(other).plan("toy_facts").task_digest != base.task_digest


def test_an_unknown_eval_is_refused_with_the_choices(knowing: PreTrainedModel) -> None:
    with pytest.raises(UserError, match=r"toy_fact.*did you mean toy_facts"):
        evaluator(facts_eval()).evaluate(knowing, ["toy_fact"])


# The pinned score


def test_a_key_that_lm_eval_does_not_print_raises(knowing: PreTrainedModel) -> None:
    with pytest.raises(KeyError, match=r"exact_match,none.*exact_match,remove_whitespace"):
        evaluator(facts_eval(metric="exact_match,none")).evaluate(knowing)


def test_the_999_of_bypass_is_never_a_score(knowing: PreTrainedModel) -> None:
    spec = dataclasses.replace(code_eval(), execution=None, metric="bypass,none")
    with pytest.raises(ValueError, match="999"):
        evaluator(spec).evaluate(knowing)


def test_options_are_scored_without_generating(knowing: PreTrainedModel) -> None:
    result = evaluator(choice_eval()).evaluate(knowing)["toy_choice"]
    assert result.score == 1.0
    assert result.ceiling == 1.0
    assert result.tokens_generated == 0
    assert result.seconds["generate"] == 0.0
    assert column(result, "output") == [None] * 5
    assert all(-5 < lls[0] < 0 for lls in column(result, "lls"))
    negated = copy.deepcopy(knowing)
    negated.lm_head.weight.data.neg_()
    assert evaluator(choice_eval()).evaluate(negated)["toy_choice"].score == 0.0


# Format drift beside knowledge


def test_known_facts_have_every_reading(knowing: PreTrainedModel) -> None:
    result = facts_of(knowing)
    assert column(result, "em") == [1.0] * 5
    assert column(result, "em_lenient") == [1.0] * 5
    assert column(result, "em_lenient_floor") == [0.0] * 5
    assert column(result, "gold_rank") == [1] * 5
    assert all(-1 < value < 0 for value in column(result, "gold_ll"))


def test_a_changed_format_costs_the_exact_match_alone(drifted: PreTrainedModel) -> None:
    result = facts_of(drifted)
    assert result.score == 0.0
    assert column(result, "output") == [" it is"] * 5
    assert [item["long_output"] for item in result.items] == [
        f" it is, {answer}" for answer in FACTS.values()
    ]
    assert column(result, "em_lenient") == [1.0] * 5
    assert column(result, "em_lenient_floor") == [0.0] * 5
    assert column(result, "gold_rank") == [1] * 5


def test_permuted_facts_are_lost_in_every_reading() -> None:
    answers = list(FACTS.values())
    permuted = dict(zip(FACTS, answers[1:] + answers[:1], strict=True))
    result = facts_of(teach([(prompt_of(w), f" {a}") for w, a in permuted.items()]))
    assert result.score == 0.0
    assert column(result, "em_lenient") == [0.0] * 5
    assert all(rank > 1 for rank in column(result, "gold_rank"))


def test_likelihood_of_the_gold_is_that_of_lm_eval(drifted: PreTrainedModel) -> None:
    run = evaluator(facts_eval())
    result = run.evaluate(drifted)["toy_facts"]
    harness = Harness(drifted, char_tokenizer(), batch_size=4)
    for item, (word, answer) in zip(result.items, FACTS.items(), strict=True):
        requests = [
            Instance("loglikelihood", {}, (prompt_of(word), f" {text}"), 0, ("toy", 0, 1))
            for text in (answer, answer.upper(), *run.plan("toy_facts").candidates[word][1:])
        ]
        found = harness.loglikelihood(requests)
        means = [
            ll / (1 + len(r.args[1].strip())) for (ll, _), r in zip(found, requests, strict=True)
        ]
        assert item["gold_ll"] == pytest.approx(max(means[:2]), abs=1e-4)
        assert item["gold_rank"] == 1 + sum(m >= means[0] for m in means[2:])


def test_only_the_asked_number_of_items_is_ranked(knowing: PreTrainedModel) -> None:
    result = evaluator(facts_eval(), rank_items=2).evaluate(knowing)["toy_facts"]
    ranks = column(result, "gold_rank")
    assert sorted(rank is None for rank in ranks) == [False, False, True, True, True]
    assert None not in column(result, "gold_ll")


def test_candidates_are_drawn_for_ranked_items_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def draw(golds: Any, kinds: Any, seed: str, asked: Any) -> dict[str, list[str]]:
        drawn.extend(asked)
        return {name: [golds[name][0], "else"] for name in asked}

    monkeypatch.setattr(drift, "draw_candidates", draw)
    plan = evaluator(facts_eval(), rank_items=2).plan("toy_facts")
    assert drawn == plan.rank_ids == list(plan.candidates)
    assert len(drawn) == 2
    spec = facts_eval()
    docs = [{**doc, "candidates": [doc["golds"][0], "own"]} for doc in spec.config["docs"]()]
    spec = dataclasses.replace(spec, config={**spec.config, "docs": lambda: docs})
    given = evaluator(spec, rank_items=2).plan("toy_facts").candidates
    assert [texts[1] for texts in given.values()] == ["own"] * 2
    assert len(drawn) == 2


# Code


def test_without_isolation_nothing_runs(
    coder: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("generated code was executed")

    monkeypatch.setattr(sandbox, "run_many", run)
    result = evaluator(code_eval(), isolation=None).evaluate(coder)["toy_code"]
    assert result.score is None
    assert result.reason == "refused"
    assert result.note is not None
    assert "isolation" in result.note
    assert column(result, "outcome") == ["refused"] * 3
    assert column(result, "output")[1] == "    return 7"  # kept, to be scored later


def test_completions_are_judged_by_running_them(coder: PreTrainedModel) -> None:
    isolation = sandbox.find_isolation("none")
    run = evaluator(code_eval(), isolation=isolation)
    result = run.evaluate(coder)["toy_code"]
    assert column(result, "outcome") == ["pass", "wrong_answer", "exception"]
    assert result.items[2]["detail"] == "SyntaxError"
    assert result.score == pytest.approx(1 / 3)
    assert "unisolated" in result.flags
    assert result.counts["pass"] == 1
    assert result.items[0]["scores"] == {"pass_at_1,none": 1.0}
    assert column(result, "stop_reason")[0] == "stop"


def test_a_code_eval_that_cannot_discriminate_is_found(tmp_path: Path) -> None:
    isolation = sandbox.find_isolation("none")
    assert isolation is not None
    assert check_code_eval(evaluator(code_eval()).plan("toy_code"), isolation, tmp_path).passed
    spec = code_eval()
    docs = [dict(doc) for doc in spec.config["docs"]()]
    docs[0]["reference"] = "    return 0\n"
    docs[1]["cases"] = [[[0], None]]
    broken = dataclasses.replace(spec, config={**spec.config, "docs": lambda: docs})
    check = check_code_eval(evaluator(broken).plan("toy_code"), isolation, tmp_path)
    assert check.failing_references == ("add1", "add2")
    assert check.passing_empties == ("add2",)
    assert len(list(tmp_path.iterdir())) == 2


# The cache


def test_equal_weights_are_not_scored_twice(
    knowing: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluator(facts_eval(), choice_eval(), cache_dir=tmp_path)
    first = run.evaluate(knowing, weights_digest="w1")

    def write(*_: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(Harness, "write", write)
    again = evaluator(facts_eval(), choice_eval(), cache_dir=tmp_path)
    second = again.evaluate(knowing, weights_digest="w1")
    for name, result in second.items():
        assert result.cached
        assert result.items == first[name].items
        assert (result.score, result.flags) == (first[name].score, first[name].flags)
        assert sum(result.seconds.values()) == result.tokens_generated == 0
    with pytest.raises(AssertionError, match="generated again"):
        again.evaluate(knowing, ["toy_facts"], weights_digest="w2")


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"version": 2}},
        {"spec": {"long_tokens": 10}},
        {"settings": {"samples": 4}},
        {"settings": {"rank_items": 1}},
        {"settings": {"batch_size": 7}},
    ],
)
def test_whatever_decides_the_outcome_is_in_the_key(
    knowing: PreTrainedModel, tmp_path: Path, change: dict[str, Any]
) -> None:
    evaluator(facts_eval(), cache_dir=tmp_path).evaluate(knowing, weights_digest="w")
    changed = evaluator(
        facts_eval(**change.get("spec", {})), cache_dir=tmp_path, **change.get("settings", {})
    )
    assert not changed.evaluate(knowing, weights_digest="w")["toy_facts"].cached


def test_without_a_digest_or_a_folder_nothing_is_recalled(
    knowing: PreTrainedModel, tmp_path: Path
) -> None:
    run = evaluator(choice_eval(), cache_dir=tmp_path)
    run.evaluate(knowing)
    assert not list(tmp_path.iterdir())
    assert not evaluator(choice_eval()).evaluate(knowing, weights_digest="w")["toy_choice"].cached


# Batches


def test_batch_size_does_not_matter(knowing: PreTrainedModel) -> None:
    agreement = check_batch_invariance(knowing, evaluator(facts_eval(), choice_eval()))
    assert all(found.passed for found in agreement.values())
    assert agreement["toy_facts"].same_output == 1.0
    assert agreement["toy_choice"].ll_difference <= 1e-4


def test_prompts_of_similar_length_share_a_batch(
    knowing: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    generate = decoding.generate

    def watch(model: Any, prompts: Any, *args: Any, **settings: Any) -> Any:
        batches.append([len(prompt) for prompt in prompts])
        return generate(model, prompts, *args, **settings)

    monkeypatch.setattr(decoding, "generate", watch)
    prompts = [prompt_of(word) for word in FACTS] + ["a" * n + ":" for n in (1, 20, 3, 18, 2)]
    written = Harness(knowing, char_tokenizer(), 5).write(prompts, ("\n",), 12)
    assert batches == [[21, 19, 6, 6, 5], [5, 4, 4, 3, 2]]
    assert [found.text for found in written[:5]] == [f" {answer}" for answer in FACTS.values()]
    assert all(found.stop_reason == "eos" and len(found.ids) < 12 for found in written[:5])


def test_a_model_that_sees_its_batch_is_caught(knowing: PreTrainedModel) -> None:
    model = copy.deepcopy(knowing)

    def leak(_: object, __: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 3 * hidden.roll(1, dims=0) if len(hidden) > 1 else hidden

    model.model.embed_tokens.register_forward_hook(leak)
    agreement = check_batch_invariance(model, evaluator(facts_eval(), choice_eval()))
    assert not agreement["toy_facts"].passed
    assert not agreement["toy_choice"].passed
