"""Intervals, tests and ranks: fixed streams, worked numbers, and what must hold by design."""

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

from clbench import corpus
from clbench.bootstrap import (
    index_chunks,
    num_resamples,
    p_value,
    percentile_interval,
    resample_sums,
    units_of,
)
from clbench.digests import items_digest
from clbench.items import (
    class_metrics,
    delta_metrics,
    drift_columns,
    drift_metrics,
    flip_metrics,
    item_metrics,
    mean_score,
    pass_at,
    reading_columns,
    reading_metrics,
    sum_columns,
)
from clbench.matrix import Cell, References, ScoreMatrix
from clbench.metrics import compute
from clbench.statistics import (
    crossed,
    detectable,
    holm,
    hull,
    mcnemar,
    paired_detectable,
    pooled,
    rank_intervals,
    seed_values,
    sign_flip,
    t_estimate,
)
from clbench.summary import summarize
from clbench.ties import Row, rank_rows
from clbench.trace import Trace, min_acc, trace_metrics, wc_acc, window_drop, window_rise
from clbench.tradeoff import Point, frontier, hypervolume, keep_at

ZEROS = "0" * 64


def item(number, score, *, cluster=None, prompt="p", **fields):
    empty = dict.fromkeys(("filtered", "gold", "lls", "em", "em_lenient", "em_lenient_floor"))
    empty |= dict.fromkeys(("gold_ll", "gold_rank"))
    name = f"{number:05d}"
    return {
        "id": name,
        "cluster": cluster or name,
        "prompt_digest": f"{prompt}{number}",
        "score": float(score),
        "scores": {},
        **empty,
        **fields,
    }


def items_of(scores, **fields):
    return [item(n, score, **fields) for n, score in enumerate(scores)]


def bootstrap(columns, units, name="e", resamples=10_000):
    sums = resample_sums(name, ZEROS, units, columns | {"n": np.ones(len(units))}, resamples)
    return {key: values / sums["n"] for key, values in sums.items()}


# The bootstrap over items


def test_the_stream_of_resamples_is_fixed_and_chunks_do_not_change_it():
    assert next(index_chunks("tiny_math", ZEROS, 10))[0].tolist() == [6, 7, 6, 4, 6, 4, 9, 1, 2, 3]
    for units in (10, 201):  # an odd size leaves half a word in the generator between chunks
        generator = np.random.Generator(np.random.PCG64(181755915453400589))
        whole = generator.integers(0, units, size=(10_000, units))
        chunks = list(index_chunks("tiny_math", ZEROS, units))
        assert (np.concatenate(chunks) == whole).all()
    assert len(chunks) > 1


def test_worked_difference():
    a = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 1.0])
    b = np.array([1, 0, 1, 0, 1, 0, 0, 1, 0, 1.0])
    samples = bootstrap({"d": a - b}, np.arange(10), "tiny_math")["d"]
    assert percentile_interval(samples) == (0.0, 0.5)
    assert p_value(samples) == pytest.approx(0.216778, abs=5.1e-7)


def test_sums_are_those_of_the_drawn_items():
    values = np.random.default_rng(0).random(301)
    drawn = np.concatenate(list(index_chunks("e", ZEROS, 301, 2_000)))
    sums = resample_sums("e", ZEROS, np.arange(301), {"x": values}, 2_000)["x"]
    assert sums == pytest.approx(values[drawn].sum(axis=1), abs=1e-9)


def test_a_record_with_itself_differs_by_exactly_nothing():
    scores = np.random.default_rng(0).random(200)
    means = bootstrap({"a": scores, "b": scores.copy()}, np.arange(200))
    assert (means["a"] - means["b"] == 0).all()
    assert percentile_interval(means["a"] - means["b"]) == (0.0, 0.0)
    assert p_value(means["a"] - means["b"]) == 1.0


def test_swapping_two_strategies_negates_every_resample():
    rng = np.random.default_rng(1)
    a, b = rng.random(120), rng.random(120)
    means = bootstrap({"ab": a - b, "ba": b - a}, np.arange(120))
    assert (means["ab"] == -means["ba"]).all()
    low, high = percentile_interval(means["ab"])
    assert percentile_interval(means["ba"]) == pytest.approx((-high, -low))


def test_listing_every_question_twice_does_not_narrow_the_interval():
    scores = (np.random.default_rng(2).random(300) < 0.6).astype(float)
    once = percentile_interval(bootstrap({"x": scores}, np.arange(300))["x"])
    twice = np.concatenate([scores, scores])
    clustered = units_of([str(n % 300) for n in range(600)])
    assert percentile_interval(bootstrap({"x": twice}, clustered)["x"]) == once
    ignored = percentile_interval(bootstrap({"x": twice}, np.arange(600))["x"])
    assert ignored[1] - ignored[0] < 0.8 * (once[1] - once[0])


def test_intervals_are_null_when_a_guard_fires_too_often():
    samples = np.linspace(0, 1, 10_000)
    samples[:100] = np.nan
    assert percentile_interval(samples) is not None
    samples[:101] = np.nan
    assert percentile_interval(samples) is None


def test_more_rows_need_more_resamples():
    assert num_resamples(10) == 10_000
    assert num_resamples(20) == 80 * 190


@pytest.mark.parametrize("metric", ["bleu", "chrf", "f1"])
def test_corpus_metrics_are_those_of_the_whole_set(metric):
    rng = np.random.default_rng(3)
    words = [
        "the",
        "a",
        "cat",
        "sat,",
        "on",
        "mat.",
        "1,000",
        "3-4",
        "it's",
        "(big)",
        "&amp;",
        "go!",
    ]
    sentence = lambda size: " ".join(rng.choice(words, size))  # noqa: E731
    for size in (1, 4, 20):
        if metric == "f1":
            lls, gold = rng.random((size, 2)), rng.integers(0, 2, size)
            chosen = lls.argmax(axis=1)
            rows = [
                {"lls": row.tolist(), "scores": {"acc,none": float(c == g)}}
                for row, c, g in zip(lls, chosen, gold, strict=True)
            ]
            expected = f1_score(gold, chosen, zero_division=0.0)
        else:
            outputs = [sentence(rng.integers(0, 12)) for _ in range(size)]
            golds = [[sentence(rng.integers(1, 12)) for _ in range(size)] for _ in range(2)]
            rows = [
                {"filtered": o, "gold": list(g)}
                for o, g in zip(outputs, zip(*golds, strict=True), strict=True)
            ]
            score = sacrebleu.corpus_bleu if metric == "bleu" else sacrebleu.corpus_chrf
            expected = score(outputs, golds).score / 100
        sums = corpus.statistics_of(metric, rows).sum(axis=0)
        assert corpus.score_of(metric, sums[:, None])[0] == pytest.approx(expected, abs=1e-12)


def test_corpus_metrics_of_a_resample_are_recomputed():
    rng = np.random.default_rng(4)
    lls, gold = rng.random((60, 2)), rng.integers(0, 2, 60)
    right = lls.argmax(axis=1) == gold
    rows = [
        item(n, r, lls=list(pair), scores={"acc,none": float(r)})
        for n, (pair, r) in enumerate(zip(lls, right, strict=True))
    ]
    chosen = lls.argmax(axis=1)
    score = f1_score(gold, chosen)
    matrix = ScoreMatrix(("t",), {"t": ("pairs",)}, (), ({}, {"pairs": Cell(score)}))
    metric = summarize(matrix, {(1, "pairs"): rows}, metric_keys={"pairs": "f1,none"})
    drawn = np.concatenate(list(index_chunks("pairs", items_digest(rows), 60)))
    direct = [f1_score(gold[d], chosen[d]) for d in drawn[:100]]
    table = corpus.statistics_of("f1", rows)
    recomputed = corpus.score_of("f1", table[drawn].sum(axis=1).T)
    assert recomputed[:100] == pytest.approx(direct, abs=1e-12)
    assert metric["final_avg.v1"].interval == percentile_interval(recomputed)


# Tests and intervals over seeds


@pytest.mark.parametrize(
    ("n10", "n01", "p"),
    [(12, 4, 0.076813), (30, 12, 0.007916), (9, 1, 0.021484), (5, 5, 1.0), (0, 0, 1.0)],
)
def test_mcnemar(n10, n01, p):
    assert mcnemar(n10, n01) == pytest.approx(p, abs=5.1e-7)
    assert mcnemar(n01, n10) == mcnemar(n10, n01)


def test_sign_flips_agree_with_the_exact_distribution():
    changes = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.2, -0.15, 0.35])
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs(signs @ changes) >= abs(changes.sum()) - 1e-12).mean()
    assert sign_flip(changes, "e", ZEROS) == pytest.approx(exact, abs=0.01)
    assert sign_flip(changes, "e", ZEROS) == sign_flip(-changes, "e", ZEROS)
    assert sign_flip(np.zeros(8), "e", ZEROS) == 1.0
    assert sign_flip(np.ones(400), "e", ZEROS) == 1 / 10_001


def test_t_over_seeds():
    three = t_estimate([-0.021, -0.034, -0.015])
    assert three.mean == pytest.approx(-0.023333, abs=5.1e-7)
    assert three.interval == pytest.approx((-0.047461, 0.000794), abs=5.1e-7)
    assert three.p == pytest.approx(0.053189, abs=5.1e-7)
    five = t_estimate([-0.021, -0.034, -0.015, -0.027, -0.019])
    assert five.interval == pytest.approx((-0.032425, -0.013975), abs=5.1e-7)
    assert five.p == pytest.approx(0.002213, abs=5.1e-7)
    assert t_estimate([0.5]).interval is None


@pytest.mark.parametrize(
    ("seeds", "factor"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (8, 2.365), (10, 2.262)]
)
def test_the_factor_of_t(seeds, factor):
    values = [0.0] * (seeds - 1) + [1.0]
    low, high = t_estimate(values).interval
    width = (high - low) / 2
    assert width * math.sqrt(seeds) / np.std(values, ddof=1) == pytest.approx(factor, abs=5.1e-4)


def test_holm():
    assert holm([0.001, 0.012, 0.03, 0.04]) == pytest.approx([0.004, 0.036, 0.06, 0.06])
    assert holm([0.04, 0.001, 0.03, 0.012]) == pytest.approx([0.06, 0.004, 0.06, 0.036])


POOLED = np.array([[0.60, 0.62, 0.61], [0.58, 0.61, 0.59], [0.50, 0.55, 0.51]])


def test_pooled():
    mse, df, p, outlying = pooled(POOLED)
    assert mse == pytest.approx(7.777778e-05, abs=5e-12)
    assert (df, outlying) == (4, ())
    found = [p[0, 1], p[0, 2], p[1, 2]]
    assert found == pytest.approx([0.081623, 0.000236, 0.000524], abs=5.1e-7)
    pairwise = [t_estimate(POOLED[i] - POOLED[j]).p for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairwise == pytest.approx([0.037750, 0.012122, 0.008163], abs=5.1e-7)


def test_pooled_of_two_rows_is_the_paired_t():
    assert pooled(POOLED[:2]).p[0, 1] == pytest.approx(t_estimate(POOLED[0] - POOLED[1]).p)


def test_a_noisy_row_leaves_the_pool():
    rng = np.random.default_rng(5)
    calm = 0.5 + 0.002 * rng.standard_normal((7, 4))
    wild = np.vstack([calm, 0.5 + 0.2 * rng.standard_normal((1, 4))])
    found = pooled(wild)
    assert found.outlying == (7,)
    assert found.mse == pytest.approx(pooled(calm).mse)
    assert found.p[0, 7] == pytest.approx(t_estimate(wild[0] - wild[7]).p)


def test_rank_intervals_of_a_relation_that_is_not_transitive():
    assert rank_intervals(4, [(0, 2), (0, 3), (1, 3)]) == [(1, 2), (1, 3), (2, 4), (3, 4)]


def test_crossed_uses_one_draw_of_items_for_all_seeds():
    rng = np.random.default_rng(6)
    shared = 0.05 * rng.standard_normal(10_000)  # the items: equal for every seed
    samples = np.array([0.5, 0.5, 0.5])[:, None] + shared
    assert crossed(samples, [0, 1, 2]).std() == pytest.approx(shared.std(), rel=0.01)
    independent = 0.5 + 0.05 * rng.standard_normal((3, 10_000))
    assert crossed(independent, [0, 1, 2]).std() < 0.9 * shared.std()
    assert hull((0.1, 0.4), (0.2, 0.5)) == (0.1, 0.5)
    assert hull(None, (0.2, 0.5)) is None


def test_seeds_average_over_a_complete_grid_of_orders_only():
    runs = {(0, (0, 1)): 0.4, (0, (1, 0)): 0.6, (1, (0, 1)): 0.5, (1, (1, 0)): 0.9}
    assert seed_values(runs) == pytest.approx({0: 0.5, 1: 0.7})
    del runs[1, (1, 0)]
    assert seed_values(runs) is None


def board_row(name, values, noise=0.001):
    rng = np.random.default_rng(7)
    samples = {s: (v or 0.0) + noise * rng.standard_normal(10_000) for s, v in values.items()}
    return Row(name, values, samples)


def test_too_few_or_diverged_seeds_leave_a_row_unranked():
    three = {0: 0.60, 1: 0.62, 2: 0.61}
    rows = [
        board_row("good", three),
        board_row("bad", {s: v - 0.2 for s, v in three.items()}),
        board_row("two", {0: 0.9, 1: 0.9}),
        board_row("diverged", {0: 0.9, 1: 0.9, 2: None}),
    ]
    standings, pairs = rank_rows(rows)
    ranks = {s.name: (s.best, s.worst) for s in standings}
    assert ranks == {"good": (1, 1), "bad": (2, 2), "two": (None, None), "diverged": (None, None)}
    assert {s.name: s.mean for s in standings}["diverged"] is None
    assert len(pairs) == 1


def test_rows_tie_unless_seeds_items_and_size_agree_that_they_differ():
    values = {0: 0.60, 1: 0.62, 2: 0.61}
    apart = {s: v - 0.03 - 0.001 * s for s, v in values.items()}
    (_, _), (pair,) = rank_rows([board_row("a", values), board_row("b", apart)])
    assert pair.differs
    close = {s: v - 0.0049 - 1e-5 * s for s, v in values.items()}
    (_, _), (pair,) = rank_rows([board_row("a", values), board_row("b", close)])
    assert not pair.differs  # significant, but under half a point
    assert pair.p_holm < 0.05
    mixed = {0: 0.50, 1: 0.64, 2: 0.55}
    standings, (pair,) = rank_rows([board_row("a", values), board_row("b", mixed)])
    assert not pair.differs
    assert {(s.best, s.worst) for s in standings} == {(1, 2)}
    few = {s: values[s] for s in (0, 1)}
    standings, pairs = rank_rows([board_row("a", few), board_row("b", few)])
    assert pairs == []


DETECTABLE = """
164 .30 3.6 9.9 4.9 6.9 9.7
200 .50 3.5 9.8 4.4 6.2 8.8
408 .70 2.3 6.3 3.1 4.4 6.2
500 .35 2.1 5.9 2.8 4.0 5.6
541 .50 2.1 6.0 2.7 3.8 5.4
1319 .50 1.4 3.8 1.7 2.4 3.4
1954 .50 1.1 3.1 1.4 2.0 2.8
2032 .30 1.0 2.8 1.4 2.0 2.8
3270 .75 0.8 2.1 1.1 1.5 2.2
3610 .20 0.7 1.8 1.0 1.5 2.1
5000 .20 0.6 1.6 0.9 1.3 1.8
9815 .80 0.4 1.1 0.6 0.9 1.3
11313 .50 0.5 1.3 0.6 0.8 1.2
40430 .80 0.2 0.6 0.3 0.4 0.6
"""


@pytest.mark.parametrize("line", DETECTABLE.strip().splitlines())
def test_what_a_test_set_can_show(line):
    size, score, *expected = (float(word) for word in line.split())
    paired = [paired_detectable(int(size), d) for d in (0.05, 0.10, 0.20)]
    found = [100 * value for value in (*detectable(int(size), score), *paired)]
    assert found == pytest.approx(expected, abs=0.0501)


# Items


def flips(n11, n10, n01, n00, chance):
    counts = {"n11": n11, "n10": n10, "n01": n01, "n00": n00}
    arrays = {name: np.array([float(n)]) for name, n in counts.items()}
    return {name: value[0] for name, value in flip_metrics(arrays, chance).items()}


def test_guessing_alone_shows_no_loss():
    found = flips(850, 150, 150, 450, 0.25)
    assert found["item_rw.v1"] == pytest.approx(0.093750)
    assert found["item_rw_cc.v1"] == pytest.approx(0.0, abs=1e-12)
    assert found["item_wr_cc.v1"] == pytest.approx(0.0, abs=1e-12)
    assert found["compat.item_rw_marginal.v1"] == pytest.approx(0.046875, abs=5.1e-7)


def test_worked_item_table():
    expected = {
        "item_rw.v1": 0.200000,
        "item_wr.v1": 0.075000,
        "item_churn.v1": 0.275000,
        "item_forgot.v1": 0.307692,
        "item_rw_cc.v1": 0.144444,
        "item_wr_cc.v1": -0.022222,
        "compat.item_rw_marginal.v1": 0.144583,
        "item_rw_upper.v1": 0.2 / 0.75,
    }
    assert flips(180, 80, 30, 110, 0.25) == pytest.approx(expected, abs=5.1e-7)
    free = flips(180, 80, 30, 110, 0.0)
    assert free["item_rw_cc.v1"] == free["item_rw_upper.v1"] == pytest.approx(0.2)
    assert free["item_wr_cc.v1"] == pytest.approx(0.075)
    assert free["compat.item_rw_marginal.v1"] == pytest.approx(0.2)


def test_won_minus_lost_is_the_difference_of_scores():
    rng = np.random.default_rng(8)
    for _ in range(50):
        before, after = (items_of(rng.integers(0, 2, 40)) for _ in range(2))
        metrics = item_metrics(before, after)
        change = metrics["item_wr.v1"].value - metrics["item_rw.v1"].value
        assert change == pytest.approx(mean_score(after) - mean_score(before), abs=1e-15)


def test_other_prompts_do_not_pair():
    metrics = item_metrics(items_of([1, 0]), items_of([1, 0], prompt="q"))
    assert {m.reason for m in metrics.values()} == {"unpaired"}
    assert item_metrics(items_of([0, 0]), items_of([1, 0]))["item_forgot.v1"].value is None


def facts(em, lenient, ranks):
    return [
        item(n, e, em=float(e), em_lenient=float(max(e, long)), em_lenient_floor=0.0)
        | {"gold_rank": r, "gold_ll": None if r is None else -float(r)}
        for n, (e, long, r) in enumerate(zip(em, lenient, ranks, strict=True))
    ]


def test_drift_classes_of_the_worked_case():
    before = facts([1] * 300 + [0] * 300, [1] * 300 + [0] * 300, [1] * 290 + [2] * 310)
    lost = [1] * 60 + [0] * 60  # of the 120 lost items, these are right when read leniently
    ranks = [1] * 90 + [5] * 20 + [1] * 10  # by rank: format, knowledge
    after = facts([0] * 120 + [1] * 180 + [0] * 300, lost + [0] * 480, ranks + [1] * 480)
    before = [
        row | {"gold_rank": 2} if 110 <= n < 120 else row for n, row in enumerate(before)
    ]  # ten of the lost never ranked first: unclear
    metrics = drift_metrics(before, after)
    names = ("drift_format.v1", "drift_knowledge.v1", "drift_unclear.v1")
    found = [metrics[name].value for name in names]
    assert found == pytest.approx([0.75, 20 / 120, 10 / 120])
    assert math.fsum(found) == pytest.approx(1.0)
    assert metrics["drift_format.v1"].terms == 120


def test_a_prefix_is_format_and_permuted_facts_are_knowledge():
    before = facts([1] * 10, [1] * 10, [1] * 10)
    prefixed = facts([0] * 10, [1] * 10, [1] * 10)
    permuted = facts([0] * 10, [0] * 10, [7] * 10)
    as_format, as_knowledge = drift_metrics(before, prefixed), drift_metrics(before, permuted)
    assert as_format["drift_format.v1"].value == 1.0
    assert as_format["knowledge_delta.v1"].value == 0.0
    assert as_format["format_delta.v1"].value == -1.0
    assert as_knowledge["drift_knowledge.v1"].value == 1.0
    assert as_knowledge["knowledge_delta.v1"].value == -1.0
    assert as_knowledge["format_delta.v1"].value == 0.0


def test_items_outside_the_ranked_subset_count_for_em_only():
    items = facts([1, 1, 0, 0], [1, 1, 0, 1], [1, None, 2, None])
    found = {n: v[0] for n, v in reading_metrics(sum_columns(reading_columns(items))).items()}
    assert found["em.v1"] == 0.5
    assert found["em_lenient.v1"] == 0.75
    assert found["gold_top1.v1"] == 0.5
    assert found["gold_mrr.v1"] == 0.75
    assert found["gold_ll.v1"] == -1.5
    none = sum_columns(reading_columns(facts([1], [1], [None])))
    assert np.isnan(delta_metrics(none, none)["knowledge_delta.v1"][0])
    unranked = drift_columns(facts([1], [1], [None]), facts([0], [0], [None]))
    assert class_metrics(sum_columns(unranked))["drift_unclear.v1"][0] == 1.0


def test_pass_at_k():
    assert pass_at(5, 10, 3) == pytest.approx(0.916667, abs=5.1e-7)
    assert pass_at(1, 1, 1) == 1.0
    assert pass_at(1, 1, 0) == 0.0


# The stability gap and the frontier

TRACE = Trace(
    (100, 200),
    {
        1: [(100, 0.80), (120, 0.30), (140, 0.50), (160, 0.60), (180, 0.65), (200, 0.70)],
        2: [(200, 0.75)],
    },
    "20",
)


def test_worked_trace():
    assert min_acc(TRACE, 2).value == pytest.approx(0.3)
    assert wc_acc(TRACE, 2).value == pytest.approx(0.525)
    assert wc_acc(TRACE, 1).value == 0.80
    assert window_drop(TRACE, 3).value == pytest.approx(0.5)
    assert window_rise(TRACE, 3).value == pytest.approx(0.3)
    points = {1: [p for p in TRACE.points[1] if p[0] in (140, 180, 200)], 2: TRACE.points[2]}
    coarse = dataclasses.replace(TRACE, points=points, grid="40")
    assert min_acc(coarse, 2).value == pytest.approx(0.5)
    assert wc_acc(coarse, 2).value == pytest.approx(0.625)


def test_a_coarser_grid_never_lowers_the_minimum():
    rng = np.random.default_rng(9)
    for _ in range(100):
        scores = rng.random(21)
        fine = [(10 * n, scores[n]) for n in range(21)]
        sparse = [p for n, p in enumerate(fine) if n % 2 == 0]
        traces = [Trace((100, 200), {1: points, 2: [(200, 0.5)]}, "") for points in (fine, sparse)]
        assert min_acc(traces[1], 2).value >= min_acc(traces[0], 2).value


def test_the_evaluation_at_the_end_of_the_task_itself_does_not_count():
    points = {1: [(100, 0.1), (150, 0.5), (200, 0.4)], 2: [(200, 0.5)]}
    assert min_acc(Trace((100, 200), points, ""), 2).value == 0.4
    gone = Trace((100, 200), {1: [(100, 0.1)], 2: []}, "")
    assert min_acc(gone, 2).reason == "missing"


def test_the_rows_as_a_trace_give_the_metric_of_the_matrix():
    rng = np.random.default_rng(10)
    rows = tuple({f"e{j}": Cell(s) for j, s in enumerate(row)} for row in rng.random((4, 3)))
    matrix = ScoreMatrix(("a", "b", "c"), {"a": ("e0",), "b": ("e1",), "c": ("e2",)}, (), rows)
    points = [{"step": k, "scores": {e: c.score for e, c in rows[k].items()}} for k in (1, 2, 3)]
    stored = {"eval_every": 1, "ends": [1, 2, 3], "points": points}
    traced, computed = trace_metrics(Trace.from_json(stored, matrix)), compute(matrix)
    for name in ("min_acc.v1[2]", "min_acc.v1[3]", "wc_acc.v1[1]", "wc_acc.v1[3]"):
        assert traced[name].value == pytest.approx(computed[name].value, abs=1e-15)


FRONTIER = [Point(*p) for p in ((0.60, 0.95), (0.72, 0.90), (0.80, 0.70))]
FRONTIER += [Point(*p) for p in ((0.78, 0.68), (0.85, 0.40), (0.85, 0.35))]
BASE = Point(0.20, 0.0)


def test_worked_frontier():
    a, b, c, _, e, _ = FRONTIER
    assert frontier(FRONTIER) == [a, b, c, e]
    assert frontier([a, a]) == [a, a]
    assert hypervolume(FRONTIER, BASE) == pytest.approx(0.564)
    assert hypervolume([a], BASE) == pytest.approx(0.38)
    assert hypervolume([Point(0.2, 0.9), Point(0.1, 1.0)], BASE) == 0.0
    assert keep_at(FRONTIER, 0.78) == pytest.approx(0.7)
    assert keep_at(FRONTIER, 0.90) is None


def test_points_never_lower_the_hypervolume_and_dominated_ones_never_change_it():
    rng = np.random.default_rng(11)
    for _ in range(100):
        points = [Point(*p) for p in rng.random((6, 2))]
        area = hypervolume(points, BASE)
        assert hypervolume([*points, Point(*rng.random(2))], BASE) >= area - 1e-15
        worse = Point(points[0].x * 0.9, points[0].y * 0.9)
        assert hypervolume([*points, worse], BASE) == pytest.approx(area, abs=1e-15)


# The whole summary


def run_of(rng, num_items=200, num_tasks=3, num_world=3):
    tasks = tuple(f"t{j}" for j in range(num_tasks))
    world = tuple(f"w{j}" for j in range(num_world))
    columns = [*(f"e{j}" for j in range(num_tasks)), *world]
    items, rows = {}, []
    for k in range(num_tasks + 1):
        row = {}
        for e in columns:
            right = rng.random(num_items) < (0.8 if e in world else 0.3 + 0.1 * k)
            items[k, e] = items_of(right)
            row[e] = Cell(mean_score(items[k, e]))
        rows.append(row)
    evals = {task: (f"e{j}",) for j, task in enumerate(tasks)}
    return ScoreMatrix(tasks, evals, world, tuple(rows)), items


def test_a_summary_has_every_metric_with_its_interval_and_is_fast():
    matrix, items = run_of(np.random.default_rng(12))
    references = References(single={"t0": 0.9, "t1": 0.9, "t2": 0.9})
    start = time.perf_counter()
    metrics = summarize(matrix, items, references)
    assert time.perf_counter() - start < 5
    plain = compute(matrix, references)
    assert {n: metrics[n].value for n in plain} == {n: m.value for n, m in plain.items()}
    for name in ("bwt.v1", "final_avg.v1", "world_ratio_clip.v1", "gm.v1", "item_rw.v1[w0]"):
        low, high = metrics[name].interval
        assert low < metrics[name].value < high
        assert metrics[name].source == "items"
        assert metrics[name].flags == ()
    assert metrics["rel_pooled.v1"].interval is None  # the references have no items here
    assert metrics["final_avg.v1"].interval == direct_interval(matrix, items)


def direct_interval(matrix, items):
    """Average the last row's task evals on literally resampled items."""
    means = []
    for e in ("e0", "e1", "e2"):
        scores = np.array([row["score"] for row in items[3, e]])
        drawn = np.concatenate(list(index_chunks(e, items_digest(items[3, e]), len(scores))))
        means.append(scores[drawn].mean(axis=1))
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return pytest.approx((low, high), abs=1e-12)


def test_items_of_references_widen_the_relative_metrics():
    matrix, items = run_of(np.random.default_rng(13))
    rng = np.random.default_rng(14)
    for e in ("e0", "e1", "e2"):
        items["single", e] = items_of(rng.random(200) < 0.9)
    single = {f"t{j}": mean_score(items["single", f"e{j}"]) for j in range(3)}
    metric = summarize(matrix, items, References(single=single))["rel_pooled.v1"]
    assert metric.interval[0] < metric.value < metric.interval[1]


def test_few_items_and_missing_items_are_said():
    matrix, items = run_of(np.random.default_rng(15), num_items=49)
    assert summarize(matrix, items)["bwt.v1"].flags == ("few_items",)
    del items[3, "w1"]
    metrics = summarize(matrix, items)
    assert metrics["world_delta.v1"].value is not None
    assert metrics["world_delta.v1"].interval is None
    assert metrics["item_rw.v1[w1]"].reason == "no_items"
    items[2, "e1"] = items_of(np.ones(49), prompt="other")
    assert summarize(matrix, items)["bwt.v1"].interval is None


def test_open_answers_are_split_into_knowledge_and_format():
    before = facts([1] * 80, [1] * 80, [1] * 80)
    after = facts([0] * 40 + [1] * 40, [1] * 80, [1] * 60 + [9] * 20)
    rows = ({"e": Cell(0.1), "w": Cell(1.0)}, {"e": Cell(0.5), "w": Cell(0.5)})
    matrix = ScoreMatrix(("t",), {"t": ("e",)}, ("w",), rows)
    metrics = summarize(matrix, {(0, "w"): before, (1, "w"): after})
    assert metrics["knowledge_delta.v1"].value == pytest.approx(-0.25)
    assert metrics["format_delta.v1"].value == pytest.approx(-0.25)
    assert metrics["knowledge_delta.v1[w]"].interval[1] < 0
    assert metrics["em.v1[w,1]"].value == 0.5
    assert metrics["gold_top1.v1[w,0]"].value == 1.0
    assert metrics["drift_format.v1[w]"].value == 1.0
    rows = tuple({"e": Cell(0.1), "w": Cell(1.0), "x": Cell(1.0)} for _ in range(2))
    matrix = ScoreMatrix(("t",), {"t": ("e",)}, ("w", "x"), rows)
    metrics = summarize(matrix, {(0, "w"): before, (1, "w"): before, (0, "x"): before})
    assert metrics["knowledge_delta.v1[w]"].value == 0.0
    assert metrics["knowledge_delta.v1"].value is None  # half of the world is no mean of it
    assert metrics["knowledge_delta.v1"].missing == ("R[1,x]",)


def test_a_collapsed_predictor_shows():
    chosen = [[-1.0, -2.0, -3.0]] * 96 + [[-2.0, -1.0, -3.0]] * 4
    rows = [item(n, n % 3 == 0, lls=lls) for n, lls in enumerate(chosen)]
    matrix = ScoreMatrix(("t",), {"t": ("e",)}, ("w",), ({"w": Cell(mean_score(rows))},))
    metrics = summarize(matrix, {(0, "w"): rows}, chance={"w": 1 / 3})
    assert metrics["label_share.v1[w,0]"].value == pytest.approx(0.96)
    assert metrics["label_share.v1[w,0]"].flags == ("collapsed",)
    even = [item(n, 0, lls=chosen[0 if n % 2 else 96]) for n in range(100)]
    matrix = ScoreMatrix(("t",), {"t": ("e",)}, ("w",), ({"w": Cell(0.0)},))
    metrics = summarize(matrix, {(0, "w"): even}, chance={"w": 1 / 3})
    assert metrics["label_share.v1[w,0]"].flags == ()
    assert metrics["item_rw.v1[w]"].reason == "missing"
