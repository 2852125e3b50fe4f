"""Scores of written text that lm-eval lacks: ROUGE, edit similarity, SARI, and TRACE's accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

Doc = Mapping[str, Any]
LONGEST = 4  # n-grams of SARI
LITERAL = re.compile(r"<(NUM|STR|CHAR)_LIT(?::(.*?))?>", re.DOTALL)  # of Py150


def rouge(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score a summary by ROUGE-L, ROUGE-1 and ROUGE-2, F-measure of stemmed words."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=True)
    return {key: s.fmeasure for key, s in scorer.score(doc["gold"], results[0].strip()).items()}


def same_answer(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score an answer 1 if it is the gold one, white space around it aside."""
    return {"accuracy": float(results[0].strip() == doc["gold"].strip())}


def same_letter(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score an answer 1 if it chooses the gold option; reasons may follow the letter."""
    return {
        "accuracy": float(bool(_letter(results[0])) and _letter(results[0]) == _letter(doc["gold"]))
    }


def _letter(text: str) -> str:
    return text.strip().removeprefix("Answer:").strip()[:1]


def edit_similarity(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score a line of code by 1 - (insertions and deletions) / (both lengths), literals spelled.

    An empty line scores 0. TRACE (arXiv 2310.06762) rounds each ratio to a percent, this does not.
    """
    from rapidfuzz import fuzz

    written, gold = spelled(results[0].strip()), spelled(doc["gold"].strip())
    ratio = fuzz.ratio(written, gold) / 100 if written and gold else 0.0
    return {"edit_similarity": ratio}


def spelled(code: str) -> str:
    """Return code with Py150's placeholders of literals replaced by what they hold."""
    bare = {"NUM": "0", "STR": "", "CHAR": ""}
    return LITERAL.sub(lambda m: bare[m[1]] if m[2] is None else m[2], code)


def simplification(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score a simpler text by SARI against its source and its gold, in 0..1."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()  # type: ignore[no-untyped-call]
    texts = (doc["prompt"], results[0], doc["gold"])
    return {"sari": sari(*(tokenize(text.lower()).split() for text in texts))}


class _Operation(NamedTuple):
    """How well one operation was done on n-grams of one length."""

    precision: float
    recall: float


def sari(source: Sequence[str], written: Sequence[str], gold: Sequence[str]) -> float:
    """Return SARI for one reference, in 0..1 (Xu et al., TACL 2016).

    The mean of F(add), F(keep) and P(delete) over the sets of n-grams of 1 to 4 tokens; P and R
    are means over the four lengths. A share of nothing is 1, so a text equal to the gold
    scores 1.
    """
    lengths = range(1, LONGEST + 1)
    grams = [tuple(_ngrams(text, n) for text in (source, written, gold)) for n in lengths]
    added = [_compare(w - s, g - s) for s, w, g in grams]
    kept = [_compare(w & s, g & s) for s, w, g in grams]
    deleted = [_compare(s - w, s - g) for s, w, g in grams]
    return (_f_measure(added) + _f_measure(kept) + fmean(d.precision for d in deleted)) / 3


def _ngrams(tokens: Sequence[str], length: int) -> frozenset[tuple[str, ...]]:
    return frozenset(zip(*(tokens[start:] for start in range(length)), strict=False))


def _compare(done: frozenset[Any], due: frozenset[Any]) -> _Operation:
    right = len(done & due)
    return _Operation(right / len(done) if done else 1.0, right / len(due) if due else 1.0)


def _f_measure(operations: Sequence[_Operation]) -> float:
    precision = fmean(o.precision for o in operations)
    recall = fmean(o.recall for o in operations)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
