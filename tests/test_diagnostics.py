"""Diagnostics: a perplexity counted right, kept beside the scores and out of every mean."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy_runs
from clbench_tasks import world
from evaltoys import char_tokenizer, evaluator, facts_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_chat import big_toy, chat_tokenizer
from toys import toy_model
from transformers import PreTrainedModel

from clbench import experiment, harness, recording, registry
from clbench.errors import UserError
from clbench.harness import Harness, quiet
from clbench.report import data, streams, text
from clbench.results import Record
from clbench.stream import Edition, Stream, data_sets
from clbench.task import Eval, Row, Task

LONG = "the old bridge is near the market, and the market is near the old harbor. " * 2  # 148
PAGES = [LONG, "a short one", "one two three four five, once i caught a fish alive"]
BOS = 1


def perplexity(**changes: Any) -> Eval:
    """Return the perplexity of PAGES, counted as lm-eval counts WikiText's."""
    values: dict[str, Any] = {
        "id": "pages",
        "version": 1,
        "config": {
            "docs": lambda: [{"page": page} for page in PAGES],
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "page",
            "metric_list": [
                {
                    "metric": "word_perplexity",
                    "aggregation": "weighted_perplexity",
                    "higher_is_better": False,
                }
            ],
        },
        "metric": "word_perplexity,none",
        "diagnostic": True,
    }
    return Eval(**{**values, **changes})


def asked(page: str) -> list[Instance]:
    return [Instance("loglikelihood_rolling", {}, (page,), 0, ("toy", 0, 1))]


def by_hand(model: PreTrainedModel, page: str, window: int) -> float:
    return likelihood(model, [BOS, *char_tokenizer().encode(page)], window)


def likelihood(model: PreTrainedModel, ids: Sequence[int], window: int) -> float:
    """Return that of each token but the first, after as many as its window has before it."""
    total, done = 0.0, 1
    while done < len(ids):
        end = min(done + window, len(ids))
        read = ids[max(0, end - 1 - window) : end - 1]
        with torch.no_grad():
            log_probs = model(torch.tensor([read])).logits[0].log_softmax(-1)
        places = range(len(read) - (end - done), len(read))
        total += sum(float(log_probs[p, t]) for p, t in zip(places, ids[done:end], strict=True))
        done = end
    return total


@pytest.mark.parametrize("window", [16, 40, 64])
@pytest.mark.parametrize("page", PAGES)
def test_the_likelihood_of_a_text_is_as_counted_by_hand(
    page: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "WINDOW", window)
    model = toy_model(seed=5)
    (found,) = Harness(model, char_tokenizer(), 4).loglikelihood_rolling(asked(page))
    assert found == pytest.approx(by_hand(model, page, window), abs=1e-3)


def test_the_likelihood_of_a_text_is_that_of_lm_eval_itself() -> None:
    model, tokenizer = toy_model(seed=5), char_tokenizer()
    requests = [request for page in PAGES for request in asked(page)]
    with quiet():
        reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        expected = reference.loglikelihood_rolling(requests, disable_tqdm=True)
    found = Harness(model, tokenizer, 4)
    assert found.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)
    assert found.num_truncated == 0  # the model reads 64 tokens; the text has 148
    assert found.seconds["likelihood"] > 0


def test_no_bos_is_scored_whoever_writes_it() -> None:
    model, tokenizer = big_toy(), chat_tokenizer(None)
    ids = tokenizer.encode(LONG)
    assert ids.count(tokenizer.bos_token_id) == 1  # the tokenizer's own
    (found,) = Harness(model, tokenizer, 4).loglikelihood_rolling(asked(LONG))
    assert found == pytest.approx(likelihood(model, ids, 2048), abs=1e-3)


def test_a_perplexity_is_of_the_words_of_all_texts() -> None:
    model = toy_model(seed=5)
    found = evaluator(perplexity(), batch_size=1).evaluate(model)["pages"]
    total = sum(by_hand(model, page, 64) for page in PAGES)
    words = sum(len(page.split(" ")) for page in PAGES)
    assert found.score == pytest.approx(math.exp(-total / words), rel=1e-5)
    assert found.score > 1e3  # of random letters
    assert found.ceiling is None
    assert [item["lls"] for item in found.items] == [
        [pytest.approx(by_hand(model, page, 64), abs=1e-3)] for page in PAGES
    ]
    assert [item["score"] for item in found.items] == [None] * 3
    assert [item["gold"] for item in found.items] == [None] * 3
    again = evaluator(perplexity(), batch_size=8).evaluate(model)["pages"]
    assert again.items == found.items  # to the last bit


def test_a_window_is_part_of_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = evaluator(perplexity()).plan("pages")
    described = plan.describe()
    assert (described["window"], described["diagnostic"]) == (2048, True)
    monkeypatch.setattr("clbench.evalplan.WINDOW", 1024)
    assert evaluator(perplexity()).plan("pages").task_digest != plan.task_digest
    assert "window" not in evaluator(facts_eval()).plan("toy_facts").describe()


def test_equal_weights_are_read_once(tmp_path: Path) -> None:
    model = toy_model(seed=5)
    run = evaluator(perplexity(), cache_dir=tmp_path)
    first = run.evaluate(model, weights_digest="w")["pages"]
    again = run.evaluate(toy_model(seed=6), weights_digest="w")["pages"]
    assert again.cached
    assert again.score == first.score
    assert not run.evaluate(model, weights_digest="v")["pages"].cached


def test_nothing_is_looked_for_in_the_training_rows() -> None:
    assert list(evaluator(perplexity(), facts_eval()).probes()) == ["toy_facts"]


def test_wikitext_is_lm_evals_own() -> None:
    spec = world.wikitext()
    (articles,) = data_sets(spec)
    assert (articles.id, articles.split) == ("EleutherAI/wikitext_document_level", "test")
    assert (spec.config, spec.version) == ("wikitext", 2)


# Beside the scores


def toy_edition(**changes: Any) -> Edition:
    rows = tuple(Row(str(n), f"{n}:", f" {n}") for n in range(8))
    tasks = tuple(
        Task(
            name,
            lambda: rows,
            (facts_eval(id=f"{name}_eval", open_answer=False),),
            info={"id": "toys"},
        )
        for name in ("one", "two")
    )
    return Edition(tasks, (facts_eval(),), diagnostics=(perplexity(),), **changes)


def test_a_diagnostic_is_no_column() -> None:
    edition = toy_edition()
    assert [spec.id for spec in edition.evals] == ["one_eval", "two_eval", "toy_facts"]
    assert [spec.id for spec in edition.measured][3:] == ["pages"]
    assert edition.joined().diagnostics == edition.diagnostics
    with pytest.raises(UserError, match="eval 'pages' is no score; it belongs under diagnostics"):
        dataclasses.replace(edition, world=(perplexity(),))
    with pytest.raises(UserError, match="eval 'toy_facts' is a score and no diagnostic"):
        dataclasses.replace(edition, diagnostics=(facts_eval(),))


def test_its_data_is_fetched_and_settings_are_not_chosen_by_it() -> None:
    edition = registry.stream("curlora-3").edition("full")
    assert [spec.id for spec in edition.diagnostics] == ["wikitext"]
    assert data_sets(world.wikitext())[0] in edition.data_sets
    task = dataclasses.replace(toy_edition().tasks[0], validation_evals=(facts_eval(),))
    assert dataclasses.replace(toy_edition(), tasks=(task,)).validating().diagnostics == ()


@pytest.mark.parametrize(
    ("schedule", "rows"), [("full", [0, 1, 2]), ("lower", [0, 1, 2]), ("ends", [0, 2])]
)
def test_it_is_measured_where_the_world_is_scored(schedule: str, rows: list[int]) -> None:
    settings = SimpleNamespace(schedule=schedule, judge=None)
    plan: Any = SimpleNamespace(edition=toy_edition(), config=SimpleNamespace(eval=settings))
    for name in ("pages", "toy_facts"):
        assert [at for at in range(3) if name in recording.scheduled(plan, at)] == rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """Return a run of a toy stream with a diagnostic, and where it lies."""
    root = tmp_path_factory.mktemp("diagnostics")
    stream = Stream("toys", "", {"own": toy_edition})
    model = toy_runs.save_toy_model(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLBENCH_CACHE", str(root / "cache"))
        patch.setattr(registry, "stream", lambda name: stream)
        config = toy_runs.toy_config(model, stream="toys", strategy="lora", data="own")
        return experiment.run(config, out=root / "run"), root / "run"


def test_a_run_keeps_it_row_by_row(finished: tuple[Record, Path]) -> None:
    record, place = finished
    phases: Any = [p for p in record.provenance["phases"] if p["phase"] == "evaluate"]
    found = [phase["diagnostics"]["word_perplexity.v1[pages]"] for phase in phases]
    assert len({measured["value"] for measured in found}) == 3  # it learned twice
    assert [measured["num_items"] for measured in found] == [3] * 3
    assert "pages" not in record.matrix.evals
    assert not any("pages" in name for name in record.metrics)
    assert record.evals["pages"].metric == "word_perplexity,none"
    assert [(place / "items" / f"{row}.pages.jsonl").exists() for row in range(3)] == [True] * 3
    extra = record.evals["pages"].model_extra or {}
    assert "batch_agreement" not in extra


def test_it_is_shown_beside_the_scores(finished: tuple[Record, Path]) -> None:
    record, _ = finished
    shown = text.diagnostics(record).splitlines()
    assert shown[0].split("  ")[0] == "diagnostic (lower is better)"
    assert shown[-1].startswith("word_perplexity.v1[pages]")
    assert len(shown[-1].split()) == 1 + 2 * 3  # value and flag of each row
    assert text.diagnostics(record) in text.result(record)
    assert "pages" not in text.matrix(record.matrix)
    assert "\ndiagnostic pages  word_perplexity,none " in data.data(record)
    assert text.diagnostics(record.replace(provenance={})) == ""


def test_a_stream_says_what_it_measures() -> None:
    described = streams.described("curlora-3")
    content = described["editions"]["full"]
    assert [spec["id"] for spec in content["diagnostics"]] == ["wikitext"]
    assert re.search(r"wikitext +diagnostics +EleutherAI/wikitext", streams.as_text(described))
    assert "diagnostics" not in streams.as_text(streams.described("long-cl"))
