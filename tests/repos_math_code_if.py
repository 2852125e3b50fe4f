"""The data sets of math-code-if for the local hub: real ids, files and columns, rows of ours."""

from __future__ import annotations

from typing import Any

from local_hub import Repo, json_lines, json_list, parquet

Rows = list[dict[str, Any]]

CAPITALS = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Bulgaria": "Sofia",
    "Chile": "Santiago",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Norway": "Oslo",
    "Peru": "Lima",
}
TRAIN_OPENINGS = (
    "the capital city of",
    "the name of the capital in",
    "the city that governs",
    "the seat of the parliament of",
)
THINGS = ("apples", "pencils", "tickets", "marbles", "stamps", "chairs", "coins", "books")
SUBJECTS = {  # folder: (problem, solution)
    "algebra": (r"Solve $2x = 6$ for $x$.", r"Halving both sides gives $x = \boxed{3}$."),
    "counting_and_probability": (
        "A fair coin is tossed once. What is the probability of heads?",
        r"One of two equal cases is heads, so it is $\boxed{\frac{1}{2}}$.",
    ),
    "geometry": (
        "A square has sides of length 7. What is its area?",
        r"The area is $7 \cdot 7 = \boxed{49}$.",
    ),
    "intermediate_algebra": (
        "What is the constant term of $(x + 2)(x + 5)$?",
        r"It is $2 \cdot 5 = \boxed 10$.",
    ),
    "number_theory": (
        "What is the remainder when 17 is divided by 5?",
        r"Since $17 = 3 \cdot 5 + 2$, it is $\boxed{2}$.",
    ),
    "prealgebra": (
        "How many meters are 2.5 kilometers?",
        r"There are $2.5 \cdot 1000 = \boxed{2{,}500}$ meters.",
    ),
    "precalculus": (
        r"What is $\cos 0^\circ$?",
        r"On the unit circle it is $\boxed{1}$.",
    ),
}


def repos() -> dict[str, Repo]:
    """Return every repository that the tasks and evals of math-code-if read."""
    return {f"datasets/{name}": Repo([files]) for name, files in _files().items()}


def _files() -> dict[str, dict[str, bytes]]:
    return {
        "meta-math/MetaMathQA": {"MetaMathQA-395K.json": json_list(metamath())},
        "m-a-p/CodeFeedback-Filtered-Instruction": {
            "CodeFeedback-Filtered-Instruction.jsonl": json_lines(codefeedback())
        },
        "ise-uiuc/Magicoder-Evol-Instruct-110K": {
            "data-evol_instruct-decontaminated.jsonl": json_lines(
                [{"instruction": r["query"], "response": r["answer"]} for r in codefeedback()]
            )
        },
        "WizardLMTeam/WizardLM_evol_instruct_V2_196k": {
            "WizardLM_evol_instruct_V2_143k.json": json_list(wizardlm())
        },
        "openai/gsm8k": {
            "main/train-00000-of-00001.parquet": parquet(gsm8k(100, 6)),
            "main/test-00000-of-00001.parquet": parquet(gsm8k(1000, 8)),
        },
        "EleutherAI/hendrycks_math": {
            f"{folder}/test-00000-of-00001.parquet": parquet(
                [_math(folder, *SUBJECTS[folder]), _math(folder, *reworded(*SUBJECTS[folder]))]
            )
            for folder in SUBJECTS
        },
        "HuggingFaceH4/MATH-500": {
            "test.jsonl": json_lines(
                [
                    {
                        "problem": problem,
                        "solution": solution,
                        "answer": solution.rpartition("boxed")[2],
                        "subject": folder,
                        "level": 1,
                        "unique_id": f"test/{folder}/0.json",
                    }
                    for folder, (problem, solution) in SUBJECTS.items()
                ]
            )
        },
        "openai/openai_humaneval": {
            "openai_humaneval/test-00000-of-00001.parquet": parquet(humaneval())
        },
        "google-research-datasets/mbpp": {
            "full/prompt-00000-of-00001.parquet": parquet(mbpp(range(1, 11))),
            "full/test-00000-of-00001.parquet": parquet(mbpp(range(11, 14))),
        },
        "google/IFEval": {"ifeval_input_data.jsonl": json_lines(ifeval())},
        "mandarjoshi/trivia_qa": {
            "rc.nocontext/validation-00000-of-00001.parquet": parquet(triviaqa())
        },
        "google-research-datasets/nq_open": {
            "nq_open/train-00000-of-00001.parquet": parquet(nq_open(TRAIN_OPENINGS)),
            "nq_open/validation-00000-of-00001.parquet": parquet(
                nq_open(("seat of government in",))
            ),
        },
        "stanfordnlp/web_questions": {"data/test-00000-of-00001.parquet": parquet(webqs())},
    }


def metamath() -> Rows:
    """Return 24 word problems with worked answers."""
    rows = []
    for at in range(24):
        thing, first, second = THINGS[at % len(THINGS)], 3 + at, 2 + at % 5
        question = f"Mia had {first} {thing} and found {second} more. How many are there now?"
        response = (
            f"She had {first} and found {second}, so there are {first} + {second} = "
            f"{first + second} {thing}.\n#### {first + second}\nThe answer is: {first + second}"
        )
        rows.append(
            {
                "type": "GSM_Rephrased",
                "query": question,
                "original_question": question,
                "response": response,
            }
        )
    return rows


def codefeedback() -> Rows:
    """Return 24 requests for a function."""
    return [
        {
            "query": f"Write a Python function that adds {at} to its argument.",
            "answer": f"```python\ndef add_{at}(x):\n    return x + {at}\n```",
            "resource": "evol_instruct",
            "lang": "python",
        }
        for at in range(24)
    ]


def wizardlm() -> Rows:
    """Return 24 conversations, one of which begins with the wrong speaker."""
    rows = [
        {
            "idx": f"w{at}",
            "conversations": [
                {"from": "human", "value": f"Name a city and the number {at}."},
                {"from": "gpt", "value": f"{city} and {at}."},
            ],
        }
        for at, city in enumerate([*CAPITALS.values(), "Paris", "London", "Madrid", "Delhi"])
    ]
    rows[5]["conversations"] = rows[5]["conversations"][::-1]
    return rows


def gsm8k(start: int, size: int) -> Rows:
    """Return word problems whose answers end in `#### number`, from 1,000 on with a comma."""
    return [
        {
            "question": f"A box holds {start + at} {THINGS[at]}. Two boxes hold how many?",
            "answer": f"Two boxes hold 2*{start + at} = <<2*{start + at}={2 * (start + at)}>>"
            f"{2 * (start + at)} {THINGS[at]}.\n#### {2 * (start + at):,}",
        }
        for at in range(size)
    ]


def reworded(problem: str, solution: str) -> tuple[str, str]:
    """Return the same problem in other words."""
    return f"Find the value asked for. {problem}", solution


def _math(folder: str, problem: str, solution: str) -> dict[str, Any]:
    return {"problem": problem, "level": "Level 1", "type": folder.title(), "solution": solution}


def humaneval() -> Rows:
    """Return two functions to complete, with tests of the data set's shape."""
    return [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def double(x: int) -> int:\n    """Return twice x.\n    """\n',
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n"
            "    assert candidate(-1) == -2\n    assert candidate(0) == 0\n",
            "entry_point": "double",
        },
        {
            "task_id": "HumanEval/1",
            "prompt": "from typing import List\n\n\ndef longest(words: List[str]) -> str:\n"
            '    """Return the longest word, the first of equals.\n    """\n',
            "canonical_solution": "    best = words[0]\n    for word in words:\n"
            "        if len(word) > len(best):\n            best = word\n    return best\n",
            "test": "METADATA = {}\n\n\ndef check(candidate):\n"
            "    assert candidate(['a', 'bcd', 'ef']) == 'bcd'\n"
            "    assert candidate(['xy', 'zw']) == 'xy'\n",
            "entry_point": "longest",
        },
    ]


def mbpp(numbers: range) -> Rows:
    """Return functions to write, each with three asserts."""
    return [
        {
            "task_id": n,
            "text": f"Write a function to multiply a number by {n}.",
            "code": f"def times_{n}(x):\r\n  return x * {n}",
            "test_list": [f"assert times_{n}({x}) == {x * n}" for x in (1, 2, -3)]
            if n != 12
            else ["assert made == 60"] * 3,
            "test_setup_code": "made = times_12(5)" if n == 12 else "",
            "challenge_test_list": [],
        }
        for n in numbers
    ]


def ifeval() -> Rows:
    """Return prompts whose constraints need each of the libraries behind IFEval."""
    constraints: list[tuple[str, list[str], Rows]] = [
        ("Write about the sea without commas.", ["punctuation:no_comma"], [{}]),
        (
            "Write about rain in English and in lower case.",
            ["change_case:english_lowercase"],
            [{}],
        ),
        (
            "Tell a story in at least three sentences that ends with The end.",
            ["length_constraints:number_sentences", "startend:end_checker"],
            [{"relation": "at least", "num_sentences": 3}, {"end_phrase": "The end."}],
        ),
        (
            "Name two cities in words of capital letters.",
            ["change_case:capital_word_frequency"],
            [{"capital_relation": "at least", "capital_frequency": 2}],
        ),
        (
            "Cheer with 3 exclamation marks.",
            ["keywords:letter_frequency"],
            [{"let_relation": "at least", "letter": "!", "let_frequency": 3}],
        ),
    ]
    return [
        {"key": 1000 + at, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}
        for at, (prompt, ids, kwargs) in enumerate(constraints)
    ]


def triviaqa() -> Rows:
    """Return questions with their aliases; one stands in two parts of the data set."""
    rows: Rows = [
        {
            "question": f"Which city is the capital of {country}",
            "question_id": f"tc_{at}",
            "question_source": "http://www.example.org/",
            "entity_pages": {"doc_source": [], "filename": [], "title": [], "wiki_context": []},
            "search_results": {"description": [], "filename": [], "rank": [], "title": []},
            "answer": {
                "aliases": [f"{city} City", city],
                "normalized_aliases": [f"{city} city".lower(), city.lower()],
                "matched_wiki_entity_name": "",
                "normalized_matched_wiki_entity_name": "",
                "normalized_value": city.lower(),
                "type": "WikipediaEntity",
                "value": city,
            },
        }
        for at, (country, city) in enumerate(CAPITALS.items())
    ]
    return [*rows, rows[0]]


def nq_open(openings: tuple[str, ...]) -> Rows:
    """Return questions as people type them, with lists of answers."""
    rows = [
        {"question": f"what is {opening} {country.lower()}", "answer": [city, f"{city} city"]}
        for opening in openings
        for country, city in CAPITALS.items()
    ]
    return [{"question": "who were john o'hara's parents", "answer": ["the O'Haras"]}, *rows]


def webqs() -> Rows:
    """Return questions with accepted answers, one of which begins another."""
    return [
        {
            "url": f"http://www.example.org/{country.lower()}",
            "question": f"what city does {country.lower()} have as its capital?",
            "answers": [city, f"{city} City"],
        }
        for country, city in CAPITALS.items()
    ]
