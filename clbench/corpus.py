"""Metrics of a whole test set, not means of items: F1, BLEU and chrF from summed statistics.

An item becomes a row of statistics; their sums over any resample give its score in 0..1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clbench.view import Array

Items = Sequence[Mapping[str, Any]]

METRICS = frozenset({"f1", "bleu", "chrf"})
BLEU_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2.0
# The tokenization of NIST's mteval-v13a, on which published BLEU rests.
TOKEN_RULES = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def whole_set(metric: str, items: Items) -> str | None:
    """Return the metric of METRICS that a pinned key names, None where it is a mean of items.

    F1 is one of labels; the F1 of an answer's words, as for SQuAD, is a score of each item.
    """
    name = metric.partition(",")[0]
    if name == "f1" and items[0]["lls"] is None:
        return None
    return name if name in METRICS else None


def statistics_of(metric: str, items: Items) -> Array:
    """Return the statistics of each item (items, statistics) for a metric of METRICS."""
    if metric == "f1":
        return np.array([f1_statistics(item) for item in items])
    count = bleu_statistics if metric == "bleu" else chrf_statistics
    return np.array([count(str(item["filtered"]), golds(item)) for item in items])


def score_of(metric: str, sums: Array) -> Array:
    """Return the score in 0..1 of summed statistics (statistics, resamples)."""
    return {"f1": f1_score, "bleu": bleu_score, "chrf": chrf_score}[metric](sums)


def golds(item: Mapping[str, Any]) -> list[str]:
    """Return the references of an item."""
    gold = item["gold"]
    return [gold] if isinstance(gold, str) else list(gold)


def ratio(part: Array, whole: Array) -> Array:
    """Return part / whole, 0 where the whole is 0."""
    return np.asarray(part / np.where(whole == 0, 1.0, whole) * (whole != 0))


def f1_statistics(item: Mapping[str, Any]) -> list[float]:
    """Return true positives, false positives, false negatives; option 1 is positive."""
    positive = int(np.argmax(item["lls"])) == 1
    right = item["scores"]["acc,none"] == 1
    return [
        float(positive and right),
        float(positive and not right),
        float(not positive and not right),
    ]


def f1_score(sums: Array) -> Array:
    """Return 2 TP / (2 TP + FP + FN)."""
    tp, fp, fn = sums
    return ratio(2 * tp, 2 * tp + fp + fn)


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Return how often each n-gram of one order occurs."""
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))


def bleu_tokens(text: str) -> list[str]:
    """Return the mteval-v13a tokens of a text."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in TOKEN_RULES:
        text = pattern.sub(spaced, text)
    return text.split()


def bleu_statistics(output: str, references: Sequence[str]) -> list[float]:
    """Return matches and totals of orders 1..4, output length, closest reference length."""
    tokens, gold = bleu_tokens(output), [bleu_tokens(reference) for reference in references]
    matches, totals = [], []
    for order in range(1, BLEU_ORDER + 1):
        found = ngrams(tokens, order)
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in gold:
            allowed |= ngrams(reference, order)
        matches.append(float((found & allowed).total()))
        totals.append(float(found.total()))
    closest = min((len(reference) for reference in gold), key=lambda n: (abs(n - len(tokens)), n))
    return [*matches, *totals, float(len(tokens)), float(closest)]


def bleu_score(sums: Array) -> Array:
    """Return corpus BLEU (Papineni et al. 2002), zero counts halved in turn as mteval does."""
    matches, totals, (length, reference) = sums[:4], sums[4:8], sums[8:]
    halvings = np.cumsum((matches == 0) & (totals > 0), axis=0)
    smoothed = np.where(matches > 0, matches, 0.5**halvings)
    precisions = ratio(smoothed, totals)
    defined = (totals > 0).all(axis=0) & (matches > 0).any(axis=0)
    logs = np.log(np.where(precisions > 0, precisions, 1.0)).mean(axis=0)
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.where(length > 0, length, 1.0)))
    return np.asarray(np.where(defined, brevity * np.exp(logs), 0.0))


def chrf_statistics(output: str, references: Sequence[str]) -> list[float]:
    """Return output, reference and matching character n-grams of orders 1..6, interleaved.

    White space does not count; of several references the one with the highest chrF is taken.
    """
    text = "".join(output.split())
    rows = []
    for reference in references:
        gold, row = "".join(reference.split()), []
        for order in range(1, CHRF_ORDER + 1):
            found, expected = ngrams(text, order), ngrams(gold, order)
            num_found = found.total() if expected else 0
            row += [float(num_found), float(expected.total()), float((found & expected).total())]
        rows.append(row)
    return max(rows, key=lambda row: float(chrf_score(np.array(row)[:, None])[0]))


def chrf_score(sums: Array) -> Array:
    """Return chrF2 (Popovic 2015): precision and recall averaged over the orders that exist."""
    found, expected, matching = sums[0::3], sums[1::3], sums[2::3]  # (orders, resamples)
    exists = (found > 0) & (expected > 0)
    orders = exists.sum(axis=0).astype(np.float64)
    precision = ratio((ratio(matching, found) * exists).sum(axis=0), orders)
    recall = ratio((ratio(matching, expected) * exists).sum(axis=0), orders)
    weight = CHRF_BETA**2
    return ratio((1 + weight) * precision * recall, weight * precision + recall)
