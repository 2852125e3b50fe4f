"""Open questions for a judge to rate, written for this suite: nobody else's set is repeated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clbench.judge import judged_eval
from clbench.task import Eval

QUESTIONS = {
    "explain-tides": "Why are there two high tides a day in most places, and not one?",
    "explain-inflation": "Explain inflation to a child of ten, with one example from daily life.",
    "explain-recursion": "What is recursion in programming? Explain it without any code.",
    "explain-vaccines": "How does a vaccine prepare the body for an infection it has not met yet?",
    "compare-bikes": (
        "A friend rides 12 km to work every day, in all weather. Should they buy an electric bike "
        "or an ordinary one? Weigh at least three points and end with a recommendation."
    ),
    "compare-data": "When is a spreadsheet good enough, and when does one need a database?",
    "compare-energy": "Compare wind and solar power for a village far from the coast.",
    "plan-trip": "Plan one rainy Saturday in a city with two small children and little money.",
    "plan-garden": "I have a balcony that faces north. What can I grow there, and how do I begin?",
    "plan-exam": "My exam covers ten chapters and is in three weeks. Make a plan that leaves rest.",
    "write-refusal": (
        "Write a short and friendly message that turns down an invitation to a wedding without "
        "giving a false reason."
    ),
    "write-review": "Write a fair review of a restaurant with great food and very slow service.",
    "write-story": "Write a story of about eight sentences in which a lighthouse is wrong once.",
    "reason-keys": (
        "Three switches in the cellar belong to three lamps in the attic. You may go up once. How "
        "do you find out which switch belongs to which lamp?"
    ),
    "reason-sale": (
        "A coat costs 20 % more than last year and is now sold at 20 % off. Is it cheaper than "
        "last year? Explain."
    ),
    "reason-sample": (
        "An app asks its users whether they like it, and 95 % of those who answer do. What may be "
        "wrong with concluding that almost everybody likes it?"
    ),
    "code-review": (
        "A function removes every negative number from a list while it loops over that list. What "
        "goes wrong, and how would you write it instead?"
    ),
    "code-names": "Why are good names in a program worth the time that it takes to find them?",
    "advise-quarrel": (
        "Two flatmates quarrel about cleaning: one sees dirt early, the other late. Suggest a rule "
        "that both could keep, and say what could still go wrong."
    ),
    "advise-feedback": "How do I tell a proud colleague that their talk was hard to follow?",
}


def _docs() -> list[dict[str, Any]]:
    return [{"id": name, "question": question} for name, question in QUESTIONS.items()]


def open_questions() -> Eval:
    """Return the eval `open_questions`: 20 questions without a gold answer."""
    made = judged_eval(
        "open_questions",
        docs=_docs,
        about="20 open questions; a judge that the user names rates the answers",
    )
    return replace(made, num_items=len(QUESTIONS), license="Apache-2.0; written for this suite")
