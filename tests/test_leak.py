"""The leak check: planted questions are found, in their eval and source and nowhere else."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clbench.leak import Index, Origin, Probe, combine, report, same_source, tokenize

WORDS = [f"word{i}" for i in range(400)]


def question(at: int, length: int = 16) -> str:
    """Return a question that shares no word with another one."""
    return " ".join(WORDS[at * 20 : at * 20 + length])


PROBES = {
    "math": {f"m{i}": Probe(question(i) + "?", (str(i),)) for i in range(10)},
    "facts": {f"f{i}": Probe(question(10 + i, 7), (f"gold {i}",)) for i in range(5)},
}
CLEAN = [["nothing of it", "here"], ["word1 word3 word5", "word2"]]


def numbers(documents: list[list[str]], source: str = "train math") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = report({source: documents}, PROBES)["evals"][source]
    return found


def test_clean_sources_have_nothing() -> None:
    found = report({"train math": CLEAN, "calibration": CLEAN}, PROBES)
    assert found["flags"] == []
    for by_eval in found["evals"].values():
        for values in by_eval.values():
            assert values["leak_exact.v1"] == values["leak_ngram.v1"] == 0.0
            assert values["leak_answer.v1"] is None
            assert values["hits"] == []


def test_one_planted_question_is_one_nth_of_its_eval_alone() -> None:
    planted = [*CLEAN, [f"Now: {question(3).upper()}!", "no answer"]]
    found = numbers(planted)
    assert found["math"]["leak_exact.v1"] == 1 / 10
    assert found["math"]["hits"] == ["m3"]
    assert found["math"]["leak_answer.v1"] == 0.0
    assert found["facts"]["leak_exact.v1"] == 0.0
    assert report({"train math": planted}, PROBES)["flags"] == ["leak"]


def test_the_answer_counts_where_it_stands_in_the_same_document() -> None:
    together = numbers([[question(3), "it is 3"], [question(4), "it is 44"]])
    assert together["math"]["leak_answer.v1"] == 0.5
    apart = numbers([[question(3)], ["it is 3"]])
    assert apart["math"]["leak_answer.v1"] == 0.0


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not() -> None:
    thirteen = " ".join(question(2).split()[2:15])
    assert numbers([[f"so {thirteen} then"]])["math"]["leak_ngram.v1"] == 1 / 10
    assert numbers([[f"so {thirteen} then"]])["math"]["leak_exact.v1"] == 0.0
    twelve = " ".join(question(2).split()[2:14])
    assert numbers([[f"so {twelve} then"]])["math"]["leak_ngram.v1"] == 0.0


def test_short_probes_count_at_full_length() -> None:
    whole = numbers([[f"see {question(12, 7)} here"]])
    assert whole["facts"]["leak_ngram.v1"] == whole["facts"]["leak_exact.v1"] == 1 / 5
    part = numbers([[f"see {question(12, 6)} here"]])
    assert part["facts"]["leak_ngram.v1"] == part["facts"]["leak_exact.v1"] == 0.0


def test_very_short_probes_count_only_as_a_whole_field() -> None:
    probes = {"e": {"a": Probe("alpha beta gamma"), "b": Probe("delta")}}
    inside = report({"train": [["so alpha beta gamma delta"]]}, probes)["evals"]["train"]["e"]
    assert inside["leak_exact.v1"] == 0.0
    field = report({"train": [["x", "Alpha, beta: gamma?"]]}, probes)["evals"]["train"]["e"]
    assert field["leak_exact.v1"] == 0.5
    assert field["hits"] == ["a"]


def test_the_template_of_an_eval_is_no_leak() -> None:
    template = " ".join(f"template{i}" for i in range(13))
    probes = {"e": {str(i): Probe(f"{template} {WORDS[i]}") for i in range(200)}}
    found = report({"train": [[f"{template} something else"]]}, probes)["evals"]["train"]["e"]
    assert found["leak_ngram.v1"] == 0.0


def test_calibration_and_pretraining_text_do_not_flag() -> None:
    planted = [[question(3)]]
    found = report({"calibration": planted, "pretraining": planted}, PROBES)
    assert found["evals"]["calibration"]["math"]["leak_exact.v1"] == 1 / 10
    assert found["flags"] == []
    assert report({"replay": planted}, PROBES)["flags"] == ["leak"]


def test_one_data_set_on_both_sides_is_named() -> None:
    origins = {
        "calibration": [Origin("nq_open")],
        "facts": [Origin("nq_open")],
        "train math": [Origin("gsm8k")],
        "math": [Origin("math")],
    }
    sources = {"calibration": CLEAN, "train math": CLEAN}
    assert same_source(sources, PROBES, origins) == [["calibration", "facts"]]
    found = report(sources, PROBES, origins)
    assert found["same_source"] == [["calibration", "facts"]]
    assert found["flags"] == ["same_source"]


@pytest.mark.parametrize(
    ("trained", "asked", "same"),
    [
        ([Origin("glue", "sst2")], [Origin("glue", "mrpc")], False),
        ([Origin("glue", "sst2")], [Origin("glue", "sst2")], True),
        ([Origin("trivia_qa", "unfiltered")], [Origin("trivia_qa")], True),
        ([Origin("nq_open")], [Origin("nq_open", "nq_open")], True),
        (
            [Origin("math", "algebra")],
            [Origin("math", "geometry"), Origin("math", "algebra")],
            True,
        ),
        ([Origin("a", "x")], [Origin("b", "x")], False),
        ([], [Origin("b")], False),
    ],
)
def test_a_configuration_is_a_data_set_of_its_own(
    trained: list[Origin], asked: list[Origin], same: bool
) -> None:
    origins = {"train math": trained, "math": asked}
    assert same_source(["train math"], ["math"], origins) == [["train math", "math"]] * same


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("A-b_c, Ⅷ 3.5", ("a", "b", "c", "viii", "3", "5")), ("", ()), ("Straße", ("strasse",))],
)
def test_tokens_split_at_whatever_is_not_alphanumeric(text: str, tokens: tuple[str, ...]) -> None:
    assert tokenize(text) == tokens


def occurs(part: tuple[str, ...], tokens: tuple[str, ...]) -> bool:
    return any(tokens[at : at + len(part)] == part for at in range(len(tokens) - len(part) + 1))


def hits_by_definition(documents: list[list[str]], questions: dict[str, str]) -> tuple[int, int]:
    """Return how many questions are in the documents in full, and by an n-gram: one by one."""
    exact, ngram = set(), set()
    probes = {name: tokenize(text) for name, text in questions.items()}
    grams = {
        name: {q[at : at + 13] for at in range(len(q) - 12)} or ({q} if len(q) >= 6 else set())
        for name, q in probes.items()
    }
    for document in documents:
        fields = [tokenize(text) for text in document]
        whole = tuple(token for part in fields for token in part)
        for name, q in probes.items():
            if (len(q) >= 5 and occurs(q, whole)) or (0 < len(q) < 5 and q in fields):
                exact.add(name)
            for gram in grams[name]:
                sharing = sum(gram in other for other in grams.values())
                if sharing <= max(1, 0.01 * len(probes)) and occurs(gram, whole):
                    ngram.add(name)
    return len(exact), len(ngram)


@pytest.mark.parametrize("vocabulary", [3, 40])
def test_the_index_finds_what_the_definition_finds(vocabulary: int) -> None:
    draw = random.Random(vocabulary)

    def text(length: int) -> str:
        return " ".join(f"W{draw.randrange(vocabulary)}" for _ in range(length))

    lengths = (0, 1, 3, 4, 5, 6, 7, 12, 13, 14, 18)
    questions = {str(i): text(draw.choice(lengths)) for i in range(60)}
    asked = list(questions.values())
    documents = [[f"{draw.choice(asked)} {text(2)}", text(20)] for _ in range(15)]
    documents += [[text(4), draw.choice(asked)] for _ in range(5)]
    probes = {"e": {name: Probe(question) for name, question in questions.items()}}
    found = report({"train": documents}, probes)["evals"]["train"]["e"]
    exact, ngram = hits_by_definition(documents, questions)
    assert 0 < exact < 60
    assert 0 < ngram < 60
    assert found["leak_exact.v1"] == exact / 60
    assert found["leak_ngram.v1"] == ngram / 60


def test_documents_that_ask_a_question_are_named_and_leave_the_numbers() -> None:
    documents = [
        ["something else", "an answer"],
        [f"Please: {question(3)}?", "it is 3"],
        ["something else", question(4)],  # only answered with, not asked
        [" ".join(question(5).split()[:13]), "a part of it"],
    ]
    found = Index(PROBES).scan(documents, remove=True)
    assert found["removed"] == [1]
    assert found["all"]["math"]["hits"] == ["m3", "m4", "m5"]
    assert found["evals"]["math"]["hits"] == ["m4", "m5"]
    assert found["evals"]["math"]["leak_exact.v1"] == 1 / 10
    whole = combine({"train math": found}, [])
    before = whole["before_removal"]["train math"]
    assert before["removed"] == 1
    assert before["evals"]["math"]["leak_exact.v1"] == 2 / 10
    assert Index(PROBES).scan(documents)["removed"] == []
    short = Index({"e": {"a": Probe("alpha beta")}})
    assert short.scan([["Alpha, beta!", "x"], ["x", "alpha beta"]], remove=True)["removed"] == [0]
