"""The SECURA-style streams and the classics: what each holds, and a run of each from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import repos_classics
import repos_math_code_if
import repos_models
from hub_fixtures import hub_environment
from local_hub import Repo
from test_math_code_if import splitter, talkative_no_more  # noqa: F401

from clbench import api, registry
from clbench.results import Record

KNOWLEDGE = ["triviaqa", "nq_open", "webqs"]
ABILITIES = ["mmlu", "piqa", "boolq", "gsm8k"]
STREAMS = {
    "secura-mcq": ("logiqa social-iqa scienceqa boolq", KNOWLEDGE),
    "secura-qa": ("gsm8k cnn-dailymail wmt16-de-en wizardlm codefeedback", KNOWLEDGE),
    "secura-16": (
        "gsm8k logiqa sst2 cnn-dailymail mnli codefeedback social-iqa mrpc wmt16-de-en ag-news "
        "scienceqa wizardlm boolq qqp yelp dbpedia",
        KNOWLEDGE,
    ),
    "trace": (
        "c-stance fomc meetingbank py150 trace-scienceqa numglue-cm numglue-ds 20minuten",
        ABILITIES,
    ),
    "i-lora-8": (
        "c-stance fomc meetingbank trace-scienceqa numglue-cm 20minuten medmcqa jecqa",
        ABILITIES,
    ),
    "standard-cl": ("dbpedia amazon yahoo ag-news yelp", []),
    "long-cl": (
        "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia ag-news multirc yahoo",
        [],
    ),
    "curlora-3": ("mrpc sst2 sentiment140", []),
}
LONG = ("secura-16", "long-cl", "secura-qa")  # a step a task and two items an eval
ORDERS = {  # O-LoRA, arXiv 2310.14152, appendix
    ("standard-cl", "0,1,3,2,4"): "dbpedia amazon ag-news yahoo",
    ("standard-cl", "2,1,3,0,4"): "yahoo amazon ag-news dbpedia",
    ("long-cl", "13,5,2,0,1,3,4,6,7,10,11,12,8,9,14"): (
        "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia ag-news yelp amazon yahoo"
    ),
    ("long-cl", "8,9,0,1,3,4,6,7,10,11,12,14,13,5,2"): (
        "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia ag-news yahoo multirc boolq wic"
    ),
}


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """Return the folder of TRACE, beside a hub with everything else and a Llama that soon stops."""
    request.getfixturevalue("splitter")
    root = tmp_path_factory.mktemp("streams")
    repos = repos_math_code_if.repos() | repos_classics.repos()
    repos[f"models/{repos_models.LLAMA}"] = Repo([talkative_no_more(repos_models.llama_files())])
    with hub_environment(repos, root / "hf"):
        yield repos_classics.write_trace(root / "trace")


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_what_its_page_says(name: str) -> None:
    tasks, world = STREAMS[name]
    stream = registry.stream(name)
    assert stream.notes
    assert stream.source
    edition = stream.edition("full")
    assert [task.name for task in edition.tasks] == tasks.split()
    assert [spec.id for spec in edition.world] == world


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_the_published_orders_are_in_the_notes(name: str, order: str) -> None:
    stream = registry.stream(name)
    assert f"--order {order}" in " ".join(stream.notes.split())
    reordered = stream.edition("full").reordered([int(at) for at in order.split(",")])
    published = ORDERS[name, order].split()
    assert [task.name for task in reordered.tasks][: len(published)] == published


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_runs_from_the_hub(name: str, place: Path, tmp_path: Path) -> None:
    record = run(name, place, tmp_path)
    tasks, world = STREAMS[name]
    assert record.status == "complete"
    assert list(record.matrix.tasks) == tasks.split()
    last = len(record.matrix.rows) - 1
    for eval_id in (*record.matrix.evals,):
        cell = record.matrix.rows[last][eval_id]
        assert cell.score is not None, (eval_id, cell)
    assert list(record.matrix.world) == world
    if world == ABILITIES:
        assert record.metrics["trace_delta.v1[general]"].value is not None


def run(name: str, data_dir: Path, out: Path) -> Record:
    return api.run(
        name,
        "lora",
        model=repos_models.LLAMA,
        out=out / "run",
        data_dir=str(data_dir),
        train_limit=8,
        device="cpu",
        dtype="float32",
        isolation="none",
        settings={
            "lora.rank": 2,
            "train.steps": 1 if name in LONG else 2,
            "train.batch_size": 2,
            "train.max_length": 1024,
            "eval.samples": 2 if name in LONG else 4,
            "eval.schedule": "ends",
            "eval.rank_items": 1,
        },
    )
