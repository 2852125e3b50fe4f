"""Each verifier of tiny on a passing, a failing and an edge response."""

import pytest
from clbench_tasks.tiny import instruct
from clbench_tasks.tiny.verifiers import CHECKS, follow_loose, follow_strict, variants

CASES = [
    ("existence", {"words": ["cold"]}, "A COLD day", "A colder day", "cold"),
    ("existence", {"words": ["a", "b"]}, "b, a", "a", "(a)b"[:3] + " b"),
    ("frequency", {"word": "red", "relation": "exactly", "number": 2}, "red Red", "red", "red-red"),
    ("forbidden_words", {"words": ["the"]}, "a day", "The day", "then they"),
    ("number_words", {"relation": "at least", "number": 3}, "one two three", "one two", "it's a b"),
    ("number_words", {"relation": "at most", "number": 2}, "one two", "one two three", "..."),
    ("number_sentences", {"relation": "exactly", "number": 2}, "A b. C!", "A b.", "Why?! So..."),
    ("bullet_lists", {"number": 2}, "* a\n* b", "* a", "- a\n  * b"),
    ("title", {}, "<<A day>> x", "<A day>", "x <<a>>"),
    ("json_format", {}, '{"a": 1}', "{a: 1}", ' ["a"]\n'),
    ("end_checker", {"phrase": "the end"}, "So. The end", "The end.", '"it is the END" '),
    ("quotation", {}, '"a"', '"a', ' "a "" b" '),
    ("english_lowercase", {}, "a day", "A day", "é1"),
    ("no_comma", {}, "a b", "a, b", "a; b"),
]
ANYTHING = ["", " ", "\n", "\x00", ",", '"', "{" * 2000, "[" * 20_000, "<<>>", "1e999", "\ud800"]


@pytest.mark.parametrize(("kind", "args", "passing", "failing", "edge"), CASES)
def test_verifier_judges(kind, args, passing, failing, edge):
    rule = [{"kind": kind, "args": args}]
    assert follow_strict(rule, passing) == [True]
    assert follow_strict(rule, failing) == [False]
    assert follow_strict(rule, edge) == [True]


def test_every_verifier_is_tried():
    assert {kind for kind, *_ in CASES} == set(CHECKS) == set(instruct.KINDS)


@pytest.mark.parametrize("text", ANYTHING)
@pytest.mark.parametrize(("kind", "args"), [(kind, args) for kind, args, *_ in CASES])
def test_any_string_gives_a_bool(kind, args, text):
    rule = [{"kind": kind, "args": args}]
    assert type(CHECKS[kind](text, **args)) is bool
    assert follow_strict(rule, text) == follow_strict(rule, text)


@pytest.mark.parametrize("empty", ["", " ", "\n\n"])
def test_an_empty_response_follows_nothing(empty):
    for row in instruct.eval_items():
        assert not any(follow_strict(row["constraints"], empty))
        assert not any(follow_loose(row["constraints"], empty))


def test_loose_reads_eight_variants():
    assert variants("*a*\nb\nc") == [
        "*a*\nb\nc",
        "a\nb\nc",
        "b\nc",
        "b\nc",
        "*a*\nb",
        "a\nb",
        "b",
        "b",
    ]


def test_loose_forgives_what_strict_does_not():
    rule = [{"kind": "english_lowercase", "args": {}}]
    assert follow_strict(rule, "Sure:\na day") == [False]
    assert follow_loose(rule, "Sure:\na day") == [True]


def test_loose_is_never_below_strict():
    rows = instruct.eval_items()
    answers = [row["answer"] for row in instruct.train_examples(200)]
    for row, answer in zip(rows, answers, strict=True):
        strict = follow_strict(row["constraints"], answer)
        loose = follow_loose(row["constraints"], answer)
        assert all(b or not a for a, b in zip(strict, loose, strict=True))
