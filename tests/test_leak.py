"""The leak check: planted questions are found, in their eval and source and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from clbench.leak import Probe, report, same_source, tokenize

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
    ids = {"calibration": "nq_open", "facts": "nq_open", "train math": "gsm8k", "math": "math"}
    sources = {"calibration": CLEAN, "train math": CLEAN}
    assert same_source(sources, PROBES, ids) == [["calibration", "facts"]]
    found = report(sources, PROBES, ids)
    assert found["same_source"] == [["calibration", "facts"]]
    assert found["flags"] == ["same_source"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("A-b_c, Ⅷ 3.5", ("a", "b", "c", "viii", "3", "5")), ("", ()), ("Straße", ("strasse",))],
)
def test_tokens_split_at_whatever_is_not_alphanumeric(text: str, tokens: tuple[str, ...]) -> None:
    assert tokenize(text) == tokens
