"""The classics on data sets of the published layout: what is asked, learned and scored."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import repos_classics
from clbench_tasks import classify, scorers, trace
from evaltoys import evaluator
from hub_fixtures import hub_environment

from clbench import registry, training
from clbench.config import TrainConfig
from clbench.dataset import DataSet, Source
from clbench.errors import UserError
from clbench.evalplan import accepted, read_metric
from clbench.harness import Oracle, run_harness
from clbench.hub import Hub
from clbench.strategy import Example
from clbench.task import Eval, Task

MODULES = ("choice", "classify", "glue", "trace", "writing")
NAMES = sorted(
    point.name
    for point in entry_points(group="clbench.tasks")
    if point.module.removeprefix("clbench_tasks.") in MODULES
)
WORLD = ("bbh", "general-boolq", "general-gsm8k", "mmlu", "piqa", "tydiqa")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Return a reader of every repository and folder of the classics."""
    root = tmp_path_factory.mktemp("classics")
    folder = repos_classics.write_trace(root / "trace")
    with hub_environment(repos_classics.repos(), root / "hf"):
        yield Hub(data_dir=folder)


def task(name: str) -> Task:
    (point,) = [p for p in entry_points(group="clbench.tasks") if p.name == name]
    found = point.load()()
    assert isinstance(found, Task)
    return found


def world(name: str) -> Eval:
    (point,) = [p for p in entry_points(group="clbench.evals") if p.name == name]
    found = point.load()()
    assert isinstance(found, Eval)
    return found


class Wrong(Oracle):
    """Prefers the options that are wrong, and writes nothing."""

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        return ["" for _ in requests]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return [(-1.0 - score, not greedy) for score, greedy in super().loglikelihood(requests)]


def test_every_task_is_here() -> None:
    assert len(NAMES) == 33


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_scores_one_and_wrong_ones_nothing(hub: Hub, name: str) -> None:
    (spec,) = task(name).evals
    scorer = evaluator(spec, hub=hub)
    assert scorer.ceiling(spec.id) == 1.0
    plan = scorer.plan(spec.id)
    results = run_harness(Wrong(plan.task), plan)["results"]
    assert read_metric(plan, results, spec.metric) <= (1 / 3 if spec.id == "20minuten" else 0.0)


@pytest.mark.parametrize("name", WORLD)
def test_general_abilities_are_a_group(hub: Hub, name: str) -> None:
    spec = world(name)
    scorer = evaluator(spec, hub=hub)
    assert scorer.ceiling(spec.id) == 1.0
    assert scorer.describe()[spec.id]["group"] == "general"


@pytest.mark.parametrize("name", NAMES)
def test_training_rows_are_what_the_eval_asks(hub: Hub, name: str) -> None:
    learned = task(name)
    assert isinstance(learned.train, Source)
    (spec,) = learned.evals
    scored = next(split for split in spec.data if split != "train")
    on_train = dataclasses.replace(spec, data={**spec.data, scored: learned.train.data})
    plan = evaluator(on_train, hub=hub, size="full").plan(spec.id)
    rows = hub.rows(learned.train)
    delimiter = plan.task.config.target_delimiter
    assert len(rows) == len(plan.prompts) > 0
    for row, prompt, doc in zip(rows, plan.prompts, plan.docs, strict=True):
        if name == "gsm8k":  # five examples stand before the question
            assert prompt.endswith(f"\n\n{row.prompt}")
        else:
            assert row.prompt == prompt
        right = accepted(plan.task, doc)[0]
        assert row.answer.strip() == right.strip()
        assert row.answer in (delimiter + right, right)


def test_pictures_are_left_out_unseen(hub: Hub) -> None:
    learned = task("scienceqa")
    assert isinstance(learned.train, Source)
    assert len(hub.rows(learned.train)) == 8  # of 12, four of which show something
    (spec,) = learned.evals
    plan = evaluator(spec, hub=hub).plan(spec.id)
    assert len(plan.ids) == 6
    assert [len(doc["options"]) for doc in plan.docs] == [2, 3, 3, 2, 2, 3]


def test_lm_eval_asks_logiqa_and_scienceqa_in_the_same_shape(hub: Hub) -> None:
    (spec,) = task("logiqa").evals
    prompt = evaluator(spec, hub=hub).plan(spec.id).prompts[0]
    assert prompt == (
        "Passage: All harbors in Delhi are old. This is a harbor in Delhi.\n"
        "Question: Which of the following must be true?\nChoices:\nA. It is new.\nB. It is old.\n"
        "C. It is far away.\nD. Nothing is known.\nAnswer:"
    )
    (spec,) = task("scienceqa").evals
    first, second = evaluator(spec, hub=hub).plan(spec.id).prompts[:2]
    assert first.startswith("Question: Which of these is alive in Tunis?\nChoices:\nA. a stone\n")
    assert second.startswith("Passage: Trees grow.\nQuestion: ")


def test_neutral_tweets_are_left_out(hub: Hub) -> None:
    (spec,) = task("sentiment140").evals
    plan = evaluator(spec, hub=hub).plan(spec.id)
    assert Counter(doc["gold"] for doc in plan.docs) == {0: 3, 1: 3}
    assert len(plan.docs) == 6


# Draws


def test_a_draw_of_a_sorted_file_has_every_class(hub: Hub) -> None:
    source = task("dbpedia").train
    assert isinstance(source, Source)
    answers = [row.answer for row in hub.rows(source)]
    assert Counter(answers) == dict.fromkeys(set(answers), 3)
    assert len(set(answers)) == 14
    first = [row.answer for row in hub.rows(dataclasses.replace(source, limit=12))]
    assert first == answers[:12]
    assert len(set(first)) > 6  # in the order of the file there would be 4


def test_a_draw_is_fixed_and_its_beginning_is_a_draw() -> None:
    data = DataSet("owner/name", "test", draw=50)
    chosen = data.chosen(1000)
    assert len(set(chosen)) == 50
    assert max(chosen) > 800
    assert min(chosen) < 200
    assert list(chosen) != sorted(chosen)
    assert data.chosen(1000) == chosen
    assert sorted(data.chosen(20)) == list(range(20))
    assert dataclasses.replace(data, split="train").chosen(1000) != chosen
    assert dataclasses.replace(data, draw=None).chosen(3) == range(3)


def test_every_class_is_scored_on_five_hundred_items() -> None:
    sizes = {"ag-news": 2000, "dbpedia": 7000, "yahoo": 5000, "yelp": 2500, "imdb": 1000}
    for name, size in sizes.items():
        (spec,) = task(name).evals
        data = spec.data["test"]
        assert isinstance(data, DataSet)
        assert data.draw == size
        assert spec.chance == pytest.approx(classify.ITEMS_PER_CLASS / size)


def test_long_texts_end_between_words() -> None:
    text = "word " * 400
    short = classify.shortened(text)
    assert short == ("word " * 300).strip()
    assert classify.shortened("word") == "word"


# TRACE


def test_a_folder_has_to_be_given_and_to_hold_the_files(tmp_path: Path) -> None:
    source = trace.fomc().train
    assert isinstance(source, Source)
    with pytest.raises(UserError, match="give --data-dir"):
        Hub().rows(source)
    with pytest.raises(UserError, match=r"FOMC \(train\) has no file FOMC/train.json"):
        Hub(data_dir=tmp_path).rows(source)
    (tmp_path / "FOMC").mkdir()
    (tmp_path / "FOMC" / "train.json").write_text('[{"prompt": "a", "output": "b"}]')
    with pytest.raises(UserError, match="answer"):
        Hub(data_dir=tmp_path).rows(source)


def test_the_published_passes_are_kept() -> None:
    makers = (trace.c_stance, trace.fomc, trace.meetingbank, trace.py150)
    makers += (trace.scienceqa, trace.numglue_cm, trace.numglue_ds, trace.minuten)
    assert [make().epochs for make in makers] == [5, 3, 7, 5, 3, 5, 5, 7]
    preset = registry.preset("paper:trace")
    assert preset["train"]["epochs"] == "task"
    examples = [Example((1, 2, 3), (False, True, True), "meetingbank", at) for at in range(4)]
    asked = TrainConfig.of({"epochs": "task"})
    assert training.budget(examples, asked, trace.meetingbank().epochs) == 7 * 12
    assert training.budget(examples, asked) == 12
    assert training.budget(examples, TrainConfig.of({"epochs": 2}), 7) == 24
    with pytest.raises(UserError, match='greater than 0, or "task"'):
        TrainConfig.of({"epochs": 0})


def score(scorer: Any, gold: str, written: str, **doc: str) -> float:
    (value,) = scorer({"gold": gold, **doc}, [written]).values()
    return float(value)


def test_an_answer_is_right_as_a_whole_or_by_its_letter() -> None:
    assert score(scorers.same_answer, "A", " A\n") == 1
    assert score(scorers.same_answer, "12", "12.") == 0
    for written in ("B", " B\nBecause of it.", "Answer: B\nBecause"):
        assert score(scorers.same_letter, "B\nBecause it is.", written) == 1
        assert score(scorers.same_letter, "Answer: B\nBecause it is.", written) == 1
    assert score(scorers.same_letter, "B", "A because B") == 0
    assert score(scorers.same_letter, "B", "") == 0


def test_lines_of_code_are_compared_with_their_literals_spelled() -> None:
    assert scorers.spelled("f ( <NUM_LIT> , <NUM_LIT:42> , '<STR_LIT>' , '<STR_LIT:a b>' )") == (
        "f ( 0 , 42 , '' , 'a b' )"
    )
    similar = scorers.edit_similarity
    assert score(similar, "abcd", "abcd") == 1
    assert score(similar, "abcd", "abxd") == pytest.approx(0.75)  # one out, one in, of eight
    assert score(similar, "ab", "abcd") == pytest.approx(4 / 6)
    assert score(similar, "x = <NUM_LIT:1>", " x = 1 ") == 1
    assert score(similar, "abcd", "") == 0


def sari(source: str, written: str, gold: str) -> float:
    return scorers.sari(source.split(), written.split(), gold.split())


def test_sari_is_as_counted_by_hand() -> None:
    # Lengths 1 to 4 of "a b" -> "a c", the gold being "a d". Added of length 1: c, due: d, none
    # right; of length 2: (a c), due (a d); longer: nothing of nothing, a share of 1.
    # add: P = R = (0 + 0 + 1 + 1) / 4; keep, length 1: a of a, right; length 2: nothing kept and
    # nothing due; all 1; delete, length 1: b of b, length 2: (a b) of (a b): 1.
    assert sari("a b", "a c", "a d") == pytest.approx((0.5 + 1 + 1) / 3)
    # Written as it was: nothing is added where d and (a d) are due, so P(add) = 1 and
    # R(add) = (0 + 0 + 1 + 1) / 4. Kept: a, b of the due a: P 1/2, R 1; (a b) of nothing due:
    # P 0, R 1. P(keep) = (1/2 + 0 + 1 + 1) / 4 = 5/8, R(keep) = 1. Nothing is deleted: P 1.
    add, keep = 2 * 0.5 / 1.5, 2 * 0.625 / 1.625
    assert sari("a b", "a b", "a d") == pytest.approx((add + keep + 1) / 3)
    # Nothing written: what is due is neither added nor kept; of a, b and (a b) all but a is
    # right to delete: P(delete) = (1/2 + 1 + 1 + 1) / 4.
    # add as above; keep: P = 1, R = (0 + 1 + 1 + 1) / 4.
    keep = 2 * 0.75 / 1.75
    assert sari("a b", "", "a d") == pytest.approx((add + keep + 0.875) / 3)
    assert sari("a b", "a d", "a d") == 1
    assert sari("a b c", "x y z", "a b c") < 0.4


def test_simplification_splits_words_as_sacrebleu_does_and_ignores_case() -> None:
    doc = {"gold": "Die Brücke ist offen.", "prompt": "Die Brücke wurde wieder eröffnet."}
    assert scorers.simplification(doc, [" die brücke ist offen ."]) == {"sari": 1.0}
    copied = scorers.simplification(doc, [doc["prompt"]])["sari"]
    assert 0.2 < copied < 0.8


def test_rouge_counts_shared_words() -> None:
    found: Mapping[str, float] = scorers.rouge({"gold": "the cat sat"}, ["the cats ran away"])
    assert found["rouge1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert found["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert found["rougeL"] == found["rouge1"]


def golds(hub: Hub, name: str) -> Sequence[int]:
    (spec,) = task(name).evals
    return [doc["gold"] for doc in evaluator(spec, hub=hub).plan(spec.id).docs]


def test_labels_are_positions_of_their_names(hub: Hub) -> None:
    assert Counter(golds(hub, "ag-news")) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert Counter(golds(hub, "yelp")) == dict.fromkeys(range(5), 2)
    assert Counter(golds(hub, "imdb")) == {0: 2, 1: 2}
