"""The SECURA-style streams and the classics: what each holds, in which orders."""

from __future__ import annotations

from pathlib import Path

import pytest
from clbench_tasks import glue, real_math, world

from clbench import registry
from clbench.leak import Origin
from clbench.leakcheck import asked_about, same_source

KNOWLEDGE = ["triviaqa", "nq_open", "webqs"]
ABILITIES = ["mmlu", "piqa", "boolq", "gsm8k", "bbh", "tydiqa"]
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


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_what_its_page_says(name: str) -> None:
    tasks, knowledge = STREAMS[name]
    stream = registry.stream(name)
    assert stream.notes
    assert stream.source
    edition = stream.edition("full")
    assert [task.name for task in edition.tasks] == tasks.split()
    assert [spec.id for spec in edition.world] == knowledge


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_the_published_orders_are_in_the_notes(name: str, order: str) -> None:
    stream = registry.stream(name)
    assert f"--order {order}" in " ".join(stream.notes.split())
    reordered = stream.edition("full").reordered([int(at) for at in order.split(",")])
    published = ORDERS[name, order].split()
    assert [task.name for task in reordered.tasks][: len(published)] == published


CALIBRATED_ON_IT = {"math-code-if", "secura-mcq", "secura-qa", "secura-16"}  # and scored on it


@pytest.mark.parametrize("name", [entry.name for entry in registry.listing(registry.STREAMS)])
def test_a_stream_reads_the_data_set_of_no_eval_but_nq_open(name: str) -> None:
    """GLUE and SuperGLUE are many data sets in one repository."""
    stream = registry.stream(name)
    for data in stream.editions:
        pairs = [["calibration", "nq_open"]] if data == "full" and name in CALIBRATED_ON_IT else []
        edition = stream.edition(data)
        assert same_source(edition) == same_source(edition.joined()) == pairs


def test_configurations_that_ask_the_same_are_one_data_set() -> None:
    assert asked_about(world.triviaqa()) == {Origin("mandarjoshi/trivia_qa")}
    assert asked_about(real_math.gsm8k()) == {Origin("openai/gsm8k")}
    assert asked_about(glue.mrpc().evals[0]) == {Origin("nyu-mll/glue", "mrpc")}


def test_the_sizes_of_evals_are_those_of_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "real-streams.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    sizes = {row[0].strip("| `"): row[2].replace(",", "") for row in rows if row[2][:1].isdigit()}
    edition = registry.stream("math-code-if").edition("full")
    found = {spec.id: str(spec.num_items) for spec in edition.evals}
    assert found.items() <= sizes.items()
