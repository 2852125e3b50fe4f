"""Metrics of items between two rows: what was lost and won, and format told from knowledge.

Columns hold one value per item (items,); formulas read their sums as arrays (resamples,), of
length 1 for a value and longer for a bootstrap, and give NaN where they have no value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clbench import corpus
from clbench.matrix import Metric
from clbench.view import Array

Items = Sequence[Mapping[str, Any]]
Sums = Mapping[str, Array]

RIGHT = 0.5  # a graded score counts as right from here on, in item tables only
COLLAPSED = 0.95  # share of one predicted label that flags a collapsed predictor
READINGS = ("em", "em_lenient", "em_lenient_floor")
RANKED_READINGS = ("gold_ll", "gold_top1", "gold_mrr")


def column(items: Items, name: str) -> Array:
    """Return one field of all items, 0 where it is null."""
    return np.array([0.0 if item[name] is None else float(item[name]) for item in items])


def sum_columns(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the correctly rounded sum of each column, as arrays of length 1."""
    return {name: np.array([math.fsum(values)]) for name, values in columns.items()}


def share(part: Array, whole: Array) -> Array:
    """Return part / whole, NaN where the whole is 0."""
    return np.asarray(part / np.where(whole == 0.0, np.nan, whole))


def paired(before: Items, after: Items) -> bool:
    """Return whether two rows answered the same items: equal ids and prompts, in order."""
    keys = [[(item["id"], item["prompt_digest"]) for item in row] for row in (before, after)]
    return keys[0] == keys[1]


def flip_columns(before: Items, after: Items) -> dict[str, Array]:
    """Return indicators of the four outcomes of an item: right or wrong, before and after."""
    was, now = column(before, "score") >= RIGHT, column(after, "score") >= RIGHT
    outcomes = {"n11": was & now, "n10": was & ~now, "n01": ~was & now, "n00": ~was & ~now}
    return {name: np.asarray(hit, dtype=np.float64) for name, hit in outcomes.items()}


def flip_metrics(sums: Sums, chance: float) -> dict[str, Array]:
    """Return the right-to-wrong and wrong-to-right metrics from the counts n11, n10, n01, n00.

    The chance-corrected pair solves the two-wave latent-class model (Cor and Sood 2018): an
    item is known, or guessed right with probability `chance`, independently before and after.
    It bounds the share known before and not after from below, `item_rw_upper` from above.
    """
    n11, n10, n01, n00 = (sums[name] for name in ("n11", "n10", "n01", "n00"))
    n = n11 + n10 + n01 + n00
    guessed = n00 * chance / (1 - chance)
    known = (1 - chance) * n
    # Harmon et al., arXiv 2510.17776: chance from the two accuracies, as if independent.
    wrong = (1 - (n11 + n10) / n) * (1 - (n11 + n01) / n)
    marginal = wrong * chance / (1 - chance)  # 1 / (K - 1) with K = 1 / chance
    return {
        "item_rw.v1": n10 / n,
        "item_wr.v1": n01 / n,
        "item_churn.v1": (n10 + n01) / n,
        "item_forgot.v1": share(n10, n10 + n11),
        "item_rw_cc.v1": (n10 - guessed) / known,
        "item_wr_cc.v1": (n01 - guessed) / known,
        "item_rw_upper.v1": n10 / known,
        "compat.item_rw_marginal.v1": np.maximum(0.0, n10 / n - marginal),
    }


def reading_columns(items: Items) -> dict[str, Array]:
    """Return the open-answer readings of one row; those by rank are 0 outside the subset."""
    ranks = column(items, "gold_rank")
    ranked = ranks > 0
    return {name: column(items, name) for name in READINGS} | {
        "n": np.ones(len(items)),
        "ranked": ranked.astype(np.float64),
        "gold_ll": np.where(ranked, column(items, "gold_ll"), 0.0),
        "gold_top1": (ranks == 1).astype(np.float64),
        "gold_mrr": np.where(ranked, 1.0 / np.where(ranked, ranks, 1.0), 0.0),
    }


def reading_metrics(sums: Sums) -> dict[str, Array]:
    """Return the means of the readings: over all items, or over the ranked subset."""
    over_all = {f"{name}.v1": sums[name] / sums["n"] for name in READINGS}
    return over_all | {f"{name}.v1": share(sums[name], sums["ranked"]) for name in RANKED_READINGS}


def drift_columns(before: Items, after: Items) -> dict[str, Array]:
    """Return indicators of the items whose exact match was lost, and why.

    Format: the lenient match still holds, or the gold ranks first before and after. Knowledge:
    it ranked first and no longer does. Unclear: neither, items without a rank among them.
    """
    lost = (column(before, "em") >= RIGHT) & (column(after, "em") < RIGHT)
    was, now = column(before, "gold_rank"), column(after, "gold_rank")
    lenient = column(after, "em_lenient") >= RIGHT
    as_format = lost & (lenient | ((was == 1) & (now == 1)))
    as_knowledge = lost & ~as_format & (was == 1) & (now > 1)
    classes = {
        "lost": lost,
        "format": as_format,
        "knowledge": as_knowledge,
        "unclear": lost & ~as_format & ~as_knowledge,
    }
    return {name: np.asarray(hit, dtype=np.float64) for name, hit in classes.items()}


def class_metrics(sums: Sums) -> dict[str, Array]:
    """Return the share of each class among the items whose exact match was lost."""
    names = ("format", "knowledge", "unclear")
    return {f"drift_{name}.v1": share(sums[name], sums["lost"]) for name in names}


def delta_metrics(before: Sums, after: Sums) -> dict[str, Array]:
    """Return how the change of the exact match splits into knowledge and format."""
    was, now = reading_metrics(before), reading_metrics(after)
    knowledge = now["gold_top1.v1"] - was["gold_top1.v1"]
    return {
        "knowledge_delta.v1": knowledge,
        "format_delta.v1": (now["em.v1"] - was["em.v1"]) - knowledge,
    }


def label_columns(items: Items) -> dict[str, Array]:
    """Return an indicator per option of a choice eval: the one with the highest likelihood."""
    chosen = np.array([int(np.argmax(item["lls"])) for item in items])
    return {str(label): (chosen == label).astype(np.float64) for label in np.unique(chosen)}


def label_share(sums: Sums) -> Array:
    """Return the share of the most frequent predicted label, `label_share.v1`."""
    counts = np.stack(list(sums.values()))  # (labels, resamples)
    return np.asarray(counts.max(axis=0) / counts.sum(axis=0))


def as_metric(value: Array, terms: int | None = None) -> Metric:
    """Return the metric of a value (1,), null for NaN: there was nothing to divide by."""
    number = float(value[0])
    if math.isnan(number):
        return Metric(None, terms, reason="denominator")
    return Metric(number, terms)


def item_metrics(before: Items, after: Items, chance: float = 0.0) -> dict[str, Metric]:
    """Return what happened to the items of one eval between two rows, by metric id.

    Items pair by id and prompt; where they do not, every value is null, reason "unpaired".
    """
    sums = sum_columns(flip_columns(before, after)) if paired(before, after) else None
    if sums is None:
        ids = flip_metrics(dict.fromkeys(("n11", "n10", "n01", "n00"), np.ones(1)), chance)
        return dict.fromkeys(ids, Metric(None, reason="unpaired"))
    return {name: as_metric(v, len(before)) for name, v in flip_metrics(sums, chance).items()}


def drift_metrics(before: Items, after: Items) -> dict[str, Metric]:
    """Return the drift of one open-answer eval between two rows, by metric id.

    Null where the items do not pair, nothing was ranked, or no exact match was lost.
    """
    rows = [sum_columns(reading_columns(items)) for items in (before, after)]
    values = delta_metrics(*rows)
    if not paired(before, after):
        ids = (*values, "drift_format.v1", "drift_knowledge.v1", "drift_unclear.v1")
        return dict.fromkeys(ids, Metric(None, reason="unpaired"))
    classes = sum_columns(drift_columns(before, after))
    lost = int(classes["lost"][0])
    deltas = {name: as_metric(value, len(before)) for name, value in values.items()}
    return deltas | {name: as_metric(v, lost) for name, v in class_metrics(classes).items()}


def mean_score(items: Items) -> float:
    """Return the score of a cell: the correctly rounded mean of its items' scores."""
    return math.fsum(item["score"] for item in items) / len(items)


def score_items(items: Items, metric: str) -> float:
    """Return the score of items by a pinned metric: recomputed for F1, BLEU and chrF."""
    name = corpus.whole_set(metric, items)
    if name is None:
        return mean_score(items)
    sums = corpus.statistics_of(name, items).sum(axis=0)
    return float(corpus.score_of(name, sums[:, None])[0])


def pass_at(k: int, num_samples: int, num_passing: int) -> float:
    """Return the unbiased pass@k of one problem, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021)."""
    return 1 - math.comb(num_samples - num_passing, k) / math.comb(num_samples, k)
