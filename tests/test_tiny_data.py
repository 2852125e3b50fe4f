"""Tiny's generated tasks: splits are disjoint, references pass, nothing leaks."""

import json
from itertools import pairwise

import pytest
from clbench_tasks.tiny import code, corpus, facts, instruct, math
from clbench_tasks.tiny.splits import SharedText, draw, words
from clbench_tasks.tiny.verifiers import follow_strict

TASKS = [math, code, instruct]
tasks = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.NAME)


@tasks
def test_sizes_and_ids(task):
    assert len(task.eval_items()) == 200
    rows = task.eval_items() + task.train_examples() + task.validation_examples()
    assert len(rows) == 2300
    assert len({row["id"] for row in rows}) == len(rows)
    assert task.eval_items()[17]["id"] == f"{task.NAME}/eval/00017"
    assert json.loads(json.dumps(rows)) == rows


@tasks
def test_generation_repeats(task):
    assert task.train_examples(50) == task.train_examples(50)
    assert task.train_examples(50) == task.train_examples(80)[:50]


@tasks
def test_no_prompt_is_in_two_splits(task):
    parts = [task.eval_items(), task.train_examples(), task.validation_examples()]
    prompts = [{row["prompt"] for row in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


@tasks
def test_no_problem_is_in_two_splits(task):
    def make(rng):
        problem, row = task.make(rng)
        return problem, {**row, "problem": repr(problem)}

    parts = {name: draw(make, name, 200, 0, "x") for name in ("train", "validation", "eval")}
    found = {name: {row["problem"] for row in rows} for name, rows in parts.items()}
    assert len(set.union(*found.values())) == 600


@tasks
def test_training_rows_share_no_text_with_eval_prompts(task):
    probe = SharedText(row["prompt"] for row in task.eval_items())
    assert not any(probe.found_in(r["prompt"] + r["answer"]) for r in task.train_examples())


def test_a_planted_eval_prompt_is_found():
    prompts = [row["prompt"] for row in math.eval_items()]
    assert SharedText(prompts).found_in(f"Before. {prompts[3]} After.")


@pytest.fixture(scope="module")
def pretraining():
    parts = [corpus.documents(2, 40_000, 0), corpus.documents(5, 10_000, 1)]
    parts.append(corpus.documents(7, 20_000, 2))
    return [text for part in parts for _, text in part]


@tasks
def test_pretraining_text_holds_no_eval_prompt(task, pretraining):
    probe = SharedText(row["prompt"] for row in task.eval_items())
    assert not any(probe.found_in(text) for text in pretraining)


def test_pretraining_text_states_and_asks_every_fact(pretraining):
    known = set(pretraining)
    for fact in facts.load_facts():
        for text in facts.statements(fact):
            assert text in known
        assert f"{facts.question(fact)} {fact.answer}" in known
        assert f"{facts.quiz(fact)} {fact.answer}" in known


@tasks
def test_pretraining_text_is_not_in_the_format_of_a_task(task, pretraining):
    openings = {row["prompt"][:12] for row in task.eval_items()}
    assert not any(text.startswith(tuple(openings)) for text in pretraining)
    assert not any("####" in text or "    return" in text for text in pretraining)


def test_pretraining_text_repeats_by_seed():
    assert list(corpus.documents(3, 500)) == list(corpus.documents(3, 500))
    assert list(corpus.documents(3, 500)) != list(corpus.documents(4, 500))


# Math


def test_math_chain_is_right_and_leads_to_the_gold():
    for row in math.eval_items() + math.train_examples():
        chain, gold = row["answer"].strip().split("\n#### ")
        results = []
        for step in chain.split(", "):
            left, result = step.split(" = ")
            assert eval(left.replace("/", "//")) == int(result)
            results.append((left, result))
        assert all(left.startswith(f"{result} ") for (_, result), (left, _) in pairwise(results))
        assert results[-1][1] == gold == row["gold"]


def test_math_numbers_of_the_chain_stand_in_the_question():
    for row in math.eval_items():
        first = row["answer"].split("=")[0]
        assert set(words(first)) <= set(words(row["prompt"]))


def test_math_ceiling_is_one():
    for row in math.eval_items():
        assert math.score(row["answer"], row["gold"]) == {"flexible": 1.0, "strict": 1.0}


@pytest.mark.parametrize(
    ("text", "flexible", "strict"),
    [
        (" 3 + 4 = 7\n#### 7", 1, 1),
        (" the answer is 7.", 1, 0),
        ("#### 7 and 8", 0, 1),
        ("#### 17", 0, 0),
        ("", 0, 0),
        ("-7", 0, 0),
    ],
)
def test_math_score(text, flexible, strict):
    assert math.score(text, "7") == {"flexible": flexible, "strict": strict}


# Code


def outcomes(row, completion):
    scope = {}
    exec(code.program(row, completion), scope)
    for arguments, expected in row["cases"]:
        got = scope[row["entry_point"]](*arguments)
        yield got == expected and type(got) is type(expected)


def test_reference_solutions_pass_and_emptied_ones_fail():
    for row in code.eval_items() + code.validation_examples():
        assert len(row["cases"]) >= 3
        assert all(outcomes(row, row["answer"]))
        assert not any(outcomes(row, code.emptied(row)))


def test_no_constant_solves_a_code_item():
    for row in code.eval_items():
        assert len({repr(expected) for _, expected in row["cases"]}) > 1


def test_code_ceiling_is_one_through_the_stops():
    for row in code.eval_items():
        assert not any(stop in row["answer"] for stop in code.STOPS)


def test_both_code_styles_are_asked():
    styles = [row["style"] for row in code.eval_items()]
    assert 60 <= styles.count("docstring") <= 140
    assert set(styles) == {"docstring", "sentence"}


# Instructions


def test_training_responses_follow_their_instruction():
    for row in instruct.eval_items() + instruct.train_examples():
        assert 2 <= len(row["constraints"]) <= 3
        assert all(follow_strict(row["constraints"], row["answer"]))


def test_every_kind_of_constraint_is_asked():
    asked = {item["kind"] for row in instruct.eval_items() for item in row["constraints"]}
    assert asked == set(instruct.KINDS)


def test_a_constraint_is_worded_in_the_prompt():
    for row in instruct.eval_items():
        for item in row["constraints"]:
            assert instruct.say(item["kind"], item["args"]) in row["prompt"]
