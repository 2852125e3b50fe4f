"""The world facts of tiny: true, unambiguous, answerable through the stops, and asked apart."""

import pytest
from clbench_tasks.tiny import facts
from clbench_tasks.tiny.splits import words


@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("capital", "France", "Paris"),
        ("capital", "Australia", "Canberra"),
        ("capital_of", "Nairobi", "Kenya"),
        ("currency", "Japan", "Japanese Yen"),
        ("currency", "Croatia", "Euro"),
        ("language", "Brazil", "Portuguese"),
        ("code", "Germany", "DE"),
        ("symbol", "iron", "Fe"),
        ("symbol_of", "Au", "gold"),
        ("number", "carbon", "6"),
        ("number_of", "92", "uranium"),
        ("state_capital", "Texas", "Austin"),
        ("state_capital_of", "Juneau", "Alaska"),
        ("state_code", "Ohio", "OH"),
    ],
)
def test_known_facts_are_in_the_table(relation, subject, answer):
    found = {(f.relation, f.subject): f.answer for f in facts.load_facts()}
    assert found[relation, subject] == answer


@pytest.mark.parametrize(
    ("relation", "subject"),
    [
        ("capital", "Israel"),
        ("capital", "Taiwan"),
        ("capital", "Kosovo"),
        ("capital", "Bolivia"),
        ("capital", "South Africa"),
        ("capital", "Kazakhstan"),
        ("currency", "Bulgaria"),
    ],
)
def test_disputed_and_stale_facts_are_left_out(relation, subject):
    assert (relation, subject) not in {(f.relation, f.subject) for f in facts.load_facts()}


def test_there_are_enough_facts_and_each_is_asked_once():
    table = facts.load_facts()
    assert len(table) >= 1250
    assert len({f.id for f in table}) == len(table)
    assert len({facts.question(f) for f in table}) == len(table)
    assert len({facts.quiz(f) for f in table}) == len(table)


def test_gold_passes_the_stops_whole():
    for fact in facts.load_facts():
        for name in (fact.answer, *fact.aliases):
            assert name == name.strip() != ""
            assert not any(stop in name for stop in facts.STOPS)


def test_default_items_are_the_first_of_the_full_ones():
    for items in (facts.eval_items, facts.greedy_items):
        assert items(full=True)[:200] == items()
        assert len(items()) == 200
        assert len({row["id"] for row in items(full=True)}) == 500


def test_both_evals_ask_the_same_facts_in_other_words():
    for asked, quizzed in zip(facts.eval_items(), facts.greedy_items(), strict=True):
        assert asked["golds"] == quizzed["golds"]
        assert asked["prompt"].startswith("Q: ")
        assert asked["prompt"].endswith("?\nA:")
        assert words(asked["prompt"]) != words(quizzed["prompt"])


def test_candidates_are_distinct_and_only_the_first_is_right():
    for row in facts.eval_items(full=True):
        names = facts.candidates(row)
        assert names[0] == row["golds"][0]
        assert len({name.casefold() for name in names}) == 32
        assert not {name.casefold() for name in names[1:]} & {g.casefold() for g in row["golds"]}


def test_calibration_text_shares_no_sentence_with_the_questions():
    texts = facts.calibration_texts()
    joined = "\n".join(texts)
    assert len(texts) == 3 * len(facts.load_facts())
    assert "?" not in joined
    for row in facts.eval_items(full=True) + facts.greedy_items(full=True):
        assert row["prompt"].split("\n")[0] not in joined
