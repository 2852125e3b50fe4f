"""Groups of lm-eval's tasks as one eval: whose prompts they ask and what each item counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import repos_classics
from clbench_tasks import general
from evaltoys import MEAN, evaluator
from hub_fixtures import hub_environment
from lm_eval.tasks._yaml_loader import load_yaml
from test_chat import CHATML, chat_tokenizer
from test_scoring import Says

from clbench.chat import Chat
from clbench.config import EvalConfig
from clbench.decoding import Generation
from clbench.errors import UserError
from clbench.evalplan import read_items, read_metric
from clbench.evaluation import Evaluator, build_task
from clbench.harness import run_harness
from clbench.hub import Hub
from clbench.matrix import ScoreMatrix
from clbench.report.data import data
from clbench.rescoring import score_items
from clbench.results import Record
from clbench.stream import data_sets
from clbench.task import Eval

THEIRS = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("joint")
    with hub_environment(repos_classics.repos(), root / "hf"):
        yield Hub()


def few(spec: Eval, *names: str) -> Eval:
    """Return an eval with some of its parts."""
    return dataclasses.replace(spec, parts=tuple(p for p in spec.parts if p.id in names))


def toy(name: str, *golds: str, **settings: Any) -> Eval:
    docs = [{"prompt": f"{name} {number}:", "gold": gold} for number, gold in enumerate(golds)]
    return Eval(
        id=name,
        version=1,
        config={
            "docs": lambda: docs,
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, **settings},
            "metric_list": [{"metric": "exact_match", **MEAN}],
        },
        metric="exact_match,none",
    )


def joint(*parts: Eval) -> Eval:
    return Eval(id="mine", version=1, config="ours", metric="exact_match,none", parts=parts)


def answered(spec: Eval, text: str, hub: Hub | None = None) -> tuple[float, list[dict[str, Any]]]:
    """Return the score and the items of a model that writes this text on every document."""
    plan = evaluator(spec, hub=hub or Hub()).plan(spec.id)
    writer = Says(plan.task)
    writer.text = text
    found = run_harness(writer, plan)
    written = [Generation(text, "stop", ())] * len(plan.ids)
    items = read_items(plan, found["samples"][spec.id], written)
    return read_metric(plan, found["results"], spec.metric), items


def test_every_document_counts_the_same_whatever_its_part() -> None:
    spec = joint(toy("few", "a"), toy("many", "b", "b", "b"))
    assert answered(spec, "b")[0] == 3 / 4
    score, items = answered(spec, "a")
    assert score == 1 / 4
    assert [item["id"] for item in items] == ["few/0", "many/0", "many/1", "many/2"]
    assert [item["score"] for item in items] == [1, 0, 0, 0]
    assert evaluator(spec).ceiling("mine") == 1.0


def test_parts_that_end_in_different_places_are_no_eval() -> None:
    with pytest.raises(ValueError, match="parts of eval mine differ in generation_kwargs"):
        evaluator(joint(toy("a", "x"), toy("b", "x", max_gen_toks=9))).plan("mine")


def test_a_draw_is_of_all_parts() -> None:
    spec = joint(toy("a", *"xyz" * 20), toy("b", *"xyz" * 20))
    plan = evaluator(dataclasses.replace(spec, default_items=20)).plan("mine")
    assert len(plan.ids) == 20
    assert {name.partition("/")[0] for name in plan.ids} == {"a", "b"}


def test_bbh_is_the_group_that_lm_eval_has() -> None:
    theirs = load_yaml(THEIRS / "bbh/cot_fewshot/_bbh_cot_fewshot.yaml", resolve_func=False)
    assert theirs["task"] == [f"bbh_cot_fewshot_{part.id}" for part in general.bbh().parts]
    (score,) = theirs["aggregate_metric_list"]
    assert general.bbh().metric == f"{score['metric']},{score['filter_list']}"
    assert (score["aggregation"], score["weight_by_size"]) == ("mean", True)
    for part in general.bbh().parts:
        definition = load_yaml(THEIRS / str(part.config), resolve_func=False)
        assert definition["task"] == f"bbh_cot_fewshot_{part.id}"
        (data_set,) = data_sets(part)
        place = (definition["dataset_path"], definition["dataset_name"])
        assert place == (data_set.id, data_set.config)


def test_tydiqa_has_every_language_of_lm_eval() -> None:
    files = {path.relative_to(THEIRS).as_posix() for path in (THEIRS / "tydiqa").glob("*.yaml")}
    assert {part.config for part in general.tydiqa().parts} == files
    (data_set,) = data_sets(general.tydiqa())
    common = load_yaml(THEIRS / "tydiqa/_tydiqa_goldp_common_yaml", resolve_func=False)
    assert (common["dataset_path"], common["dataset_name"]) == (data_set.id, data_set.config)
    assert common["validation_split"] == data_set.split


def test_bbh_asks_each_question_as_its_own_task_does(hub: Hub) -> None:
    spec = few(general.bbh(), "snarks", "word_sorting")
    plan = evaluator(spec, hub=hub).plan("bbh")
    assert plan.ids == ["snarks/0", "snarks/1", "word_sorting/0", "word_sorting/1"]
    alone = [build_task(part, hub) for part in spec.parts]
    assert plan.prompts == [t.fewshot_context(doc, 3) for t in alone for doc in t.eval_docs]
    for name, prompt in zip(plan.ids, plan.prompts, strict=True):
        assert prompt.count("\nA: Let's think step by step.\n") == 4
        assert prompt.startswith("Sort a list of words.") == name.startswith("word_sorting")
    asked = plan.probes()["snarks/1"]
    assert asked.question == "Which of these is snarks in Lima?\n(A) market\n(B) Lima"
    assert asked.golds == ("True",)
    described = plan.describe()
    assert (described["shots"], described["new_tokens"]) == (3, 1024)
    assert described["prepare"] == "reasoned"


def test_an_answer_of_bbh_stands_after_its_reasons(hub: Hub) -> None:
    spec = few(general.bbh(), "snarks")
    assert answered(spec, "It is sarcastic. So the answer is (B).", hub)[0] == 1 / 2
    assert answered(spec, "(B)", hub)[0] == 0


def test_the_score_of_tydiqa_is_the_f1_of_each_answer(hub: Hub) -> None:
    spec = few(general.tydiqa(), "en", "fi")
    score, items = answered(spec, " one or two", hub)
    f1 = 2 * (1 / 3) / (1 / 3 + 1)  # "one" of three words in English, nothing in Finnish
    assert [item["id"] for item in items[1:3]] == ["en/english--1-0", "fi/finnish--0-0"]
    assert [item["score"] for item in items] == pytest.approx([f1, f1, 0, 0])
    assert score == pytest.approx(f1 / 2)
    assert score_items(items, spec.metric) == pytest.approx(score)
    assert [item["scores"]["exact_match,none"] for item in items] == [False] * 4
    assert answered(spec, " The one!", hub)[1][0]["scores"]["exact_match,none"] is True


def test_the_languages_of_tydiqa_are_asked_in_their_own_words(hub: Hub) -> None:
    plan = evaluator(general.tydiqa(), hub=hub).plan("tydiqa")
    assert len(plan.ids) == 18
    prompts = dict(zip(plan.ids, plan.prompts, strict=True))
    assert prompts["en/english--0-0"] == (
        "Context: one bridge Oslo.\n\nQuestion: bridge Oslo (english)?\n\nAnswer:"
    )
    assert prompts["fi/finnish--0-0"].endswith("\n\nKysymys: bridge Oslo (finnish)?\n\nVastaus:")
    assert len(plan.describe()["prompt"]) == 9


def test_worked_examples_are_turns_of_a_conversation(hub: Hub) -> None:
    spec, tokenizer = few(general.bbh(), "snarks"), chat_tokenizer(CHATML)
    scorer = Evaluator({}, tokenizer, [spec], EvalConfig(), hub=hub, chat=Chat(tokenizer))
    prompt = scorer.plan("bbh").prompts[0]
    assert prompt.count("<|start|>user\nQ: ") == 4
    assert prompt.count("<|start|>assistant\n") == 4
    assert prompt.index("<|start|>system\n") < prompt.index("<|start|>user\n")


def test_each_part_is_pinned_to_its_version() -> None:
    (part,) = few(general.bbh(), "snarks").parts
    older = dataclasses.replace(part, version=3)
    with pytest.raises(UserError, match="eval snarks is pinned to version 3"):
        build_task(joint(older), Hub())
    with pytest.raises(UserError, match=r"has no task 'bbh/nothing\.yaml'"):
        build_task(joint(dataclasses.replace(part, config="bbh/nothing.yaml")), Hub())


def test_what_many_configurations_were_read_from_is_one_line(hub: Hub) -> None:
    block = evaluator(general.bbh(), hub=hub).describe()["bbh"]
    block["sources"] = hub.sources(*data_sets(general.bbh()))
    assert len(block["data"]["test"]) == len(block["sources"]) == 27
    record = Record.model_validate(
        {
            "identity": {"run_id": "r", "suite_version": "0"},
            "config": {"stream": "s", "strategy": "x"},
            "model": {"id": "m", "dtype": "float32"},
            "matrix": ScoreMatrix(("t",), {"t": ("e",)}, ("bbh",)),
            "evals": {"bbh": block},
        }
    )
    (line,) = [line for line in data(record).splitlines() if "SaylorTwift" in line]
    assert "SaylorTwift/bbh (27 configurations, test)" in line
    assert block["sources"][0]["revision"][:19] in line
