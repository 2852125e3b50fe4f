"""Format drift: lenient matching, fixed draws, ranks."""

from __future__ import annotations

import pytest

from clbench import drift
from clbench.evalresult import add_lenient, new_item


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Bahamas", ("bahamas",)),
        ("  São   Tomé!", ("são", "tomé")),
        ("ﬁne, AN apple", ("fine", "apple")),
        ("Port-au-Prince", ("port", "au", "prince")),
        ("«Ωmega»", ("ωmega",)),
        ("", ()),
    ],
)
def test_normalizing_drops_case_marks_and_articles(text: str, words: tuple[str, ...]) -> None:
    assert drift.normalize(text) == words


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("The answer is: Paris.", True),
        ("parisian", False),
        ("New-York", True),
        ("It is new, the york", True),
        ("new old york", False),
        ("york new", False),
    ],
)
def test_an_alias_must_occur_as_whole_words_in_a_row(output: str, found: bool) -> None:
    assert drift.lenient_match(output, ["Paris", "New York"]) is found


def test_single_characters_count_only_where_nothing_longer_is_accepted() -> None:
    assert not drift.lenient_match("a plan b", ["b", "bravo"])
    assert drift.lenient_match("a plan b", ["b"])
    assert not drift.lenient_match("anything", ["the"])  # nothing is left of it


def test_a_seeded_order_is_stable_under_additions() -> None:
    names = [f"item{i}" for i in range(50)]
    order = drift.seeded_order(names, "s")
    assert order != names
    assert sorted(order) == sorted(names)
    assert drift.seeded_order(reversed(names), "s") == order
    fewer = drift.seeded_order(names[:40], "s")
    assert fewer == [name for name in order if name in set(names[:40])]
    assert drift.seeded_order(names, "t") != order


def test_partners_are_a_permutation_without_a_common_answer() -> None:
    aliases = {str(i): [f"answer {i // 3}", f"Other {i}"] for i in range(30)}
    partners = drift.derangement(aliases, "s")
    assert sorted(partners.values()) == sorted(aliases)
    for name, partner in partners.items():
        assert int(name) // 3 != int(partner) // 3
    assert drift.derangement(aliases, "s") == partners
    assert drift.derangement(aliases, "t") != partners
    assert drift.derangement({"only": ["a"]}, "s") == {"only": "only"}


def test_candidates_are_of_one_kind_while_there_are_enough() -> None:
    golds = {f"c{i}": [f"city {i}"] for i in range(60)} | {f"n{i}": [f"{i}"] for i in range(10)}
    kinds = {name: name[0] for name in golds}
    drawn = drift.draw_candidates(golds, kinds, "s")
    assert {len(candidates) for candidates in drawn.values()} == {32}
    assert all(len(set(candidates)) == 32 for candidates in drawn.values())
    assert all(drawn[name][0] == golds[name][0] for name in golds)
    assert all(text.startswith("city") for text in drawn["c7"])
    assert sum(text.isdigit() for text in drawn["n7"]) == 10
    assert drawn["c7"][1:] != drawn["c8"][1:]
    assert drift.draw_candidates(golds, kinds, "t") != drawn
    some = drift.draw_candidates(golds, kinds, "s", ["n7", "c7"])
    assert some == {"n7": drawn["n7"], "c7": drawn["c7"]}


def test_no_distractor_is_an_accepted_answer() -> None:
    golds = {"us": ["The USA", "America", "usa."], "x": ["usa"], "y": ["AMERICA"], "z": ["Peru"]}
    drawn = drift.draw_candidates(golds, dict.fromkeys(golds, ""), "s")
    assert drawn["us"] == ["The USA", "Peru"]


def test_ties_count_against_the_gold() -> None:
    assert drift.gold_rank([-1.0, -2.0, -3.0]) == 1
    assert drift.gold_rank([-2.0, -2.0, -1.0]) == 3
    assert drift.gold_rank([-5.0]) == 1


def test_rambling_earns_its_floor_and_no_more() -> None:
    aliases = {str(i): [f"word{i}"] for i in range(20)}
    everything = " ".join(f"word{i}" for i in range(20))
    items = [new_item(name, name, "", [f"word{name}"]) | {"em": 0.0} for name in aliases]
    add_lenient(items, aliases, dict.fromkeys(aliases, everything), "s")
    assert [item["em_lenient"] for item in items] == [1.0] * 20
    assert [item["em_lenient_floor"] for item in items] == [1.0] * 20
    add_lenient(items, aliases, {name: f"It is word{name}" for name in aliases}, "s")
    assert [item["em_lenient"] for item in items] == [1.0] * 20
    assert [item["em_lenient_floor"] for item in items] == [0.0] * 20


def test_exact_implies_lenient() -> None:
    item = new_item("a", "a", "", ["x"]) | {"em": 1.0, "output": " the"}
    other = new_item("b", "b", "", ["y"]) | {"em": 0.0, "output": "?"}
    add_lenient([item, other], {"a": ["the"], "b": ["y"]}, {"b": "it is y"}, "s")
    assert (item["em_lenient"], other["em_lenient"]) == (1.0, 1.0)
    assert "long_output" not in item
    assert other["long_output"] == "it is y"
