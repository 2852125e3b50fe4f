"""The matrix metrics on six worked matrices, and the rules that hold on any matrix."""

import copy
import subprocess
import sys

import numpy as np
import pytest

from clbench.matrix import Cell, Metric, References, ScoreMatrix
from clbench.metrics import compute, effective_rank, stable_rank


def rows_of(text: str) -> list[list[float | None]]:
    """Parse rows `tasks | world`, `-` being a cell without a score."""
    return [
        [None if word == "-" else float(word) for word in line.replace("|", " ").split()]
        for line in text.strip().splitlines()
    ]


def matrix_of(rows, num_tasks: int, reason="not_scheduled") -> ScoreMatrix:
    num_world = len(rows[0]) - num_tasks
    tasks = tuple(f"task{j}" for j in range(1, num_tasks + 1))
    world = tuple(f"world{w}" for w in range(1, num_world + 1))
    columns = (*(f"eval{j}" for j in range(1, num_tasks + 1)), *world)
    cells = tuple(
        {
            e: Cell(x) if x is not None else Cell(None, reason=reason)
            for e, x in zip(columns, row, strict=True)
        }
        for row in rows
    )
    return ScoreMatrix(tasks, {t: (f"eval{t[4:]}",) for t in tasks}, world, cells)


def references_of(single="", joint="", joint_k="") -> References:
    parse = lambda text: {f"task{j}": float(x) for j, x in enumerate(text.split(), start=1)}  # noqa: E731
    return References(parse(single), parse(joint), parse(joint_k))


F1 = """
.10 .20 .05 | .60 .40
.50 .25 .10 | .50 .30
.40 .70 .20 | .45 .20
.30 .60 .80 | .48 .10"""
F2 = """
.20 .30 .10 | .50 .20
.60 .65 .30 | .52 .22
.70 .55 .35 | .49 .18
.65 .60 .75 | .55 .10"""
F3 = """
.10 .20 .05 | .60 .40
.50 - - | .55 .35
- .70 - | .50 .30
.30 .60 .80 | .45 -"""
F4 = """
.10 | .60 .40
.50 | .50 .42"""
F5 = """
.30 .25 .60 .05 | .70 .45
.55 .30 .58 .06 | .68 .44
.50 .80 .55 .04 | .66 .40
.45 .70 .61 .10 | .60 .33
.58 .65 .59 .90 | .62 .30"""
F6 = """
0 .40 | .50
.90 .20 | .10
0 .95 | 0"""
FIXTURES = {
    "F1": (F1, 3, (".52 .74 .82", ".48 .70 .76", ".52 .72 .76"), {}),
    "F2": (F2, 3, (".62 .58 .76", ".64 .61 .74", ".62 .60 .74"), {}),
    "F3": (F3, 3, (), {}),
    "F4": (F4, 1, (".50", ".50", ".50"), {}),
    "F5": (
        F5,
        4,
        (".60 .82 .61 .88", ".57 .79 .60 .86", ".60 .80 .61 .86"),
        {"world1": 0.0, "world2": 0.25},
    ),
    "F6": (F6, 2, (".90 .95", ".88 .93", ".90 .93"), {}),
}
TABLE = """
final_avg               0.566667  0.666667  0.566667 0.500000  0.680000  0.475000
mean_avg                0.538889  0.630556  null     0.500000  0.616667  0.687500
learning_acc            0.666667  0.633333  0.666667 0.500000  0.715000  0.925000
learning_gain           0.550000  0.433333  0.550000 0.400000  0.415000  0.725000
bwt                    -0.150000  0.050000 -0.150000 null     -0.046667 -0.900000
fwt                     0.100000  0.300000  null     null      0.016667 -0.200000
forget_max              0.150000  0.000000  null     null      0.046667  0.900000
forget_chaudhry         0.150000  0.050000  null     null      0.046667  0.900000
forget_first_last       0.150000 -0.050000  0.150000 null      0.046667  0.900000
compat.bwt_over_T      -0.100000  0.033333 -0.100000 null     -0.035000 -0.450000
compat.bwt_all_pairs   -0.133333  0.066667  null     null     -0.065000 -0.900000
compat.forget_incl_last 0.150000  0.050000  null     null      0.056667  0.900000
intransigence_single    0.026667  0.020000  null     0.000000  0.012500  0.000000
intransigence_joint    -0.020000  0.030000  null     0.000000 -0.010000 -0.020000
intransigence_chaudhry  0.000000  0.020000  null     0.000000  0.002500 -0.010000
joint_gap               0.080000 -0.003333  null     0.000000  0.025000  0.430000
rel_mean                0.730319  1.042569  null     1.000000  null      0.500000
rel_pooled              0.780347  1.029412  null     1.000000  0.888889  0.379310
rel_learn_pooled        0.953757  0.955882  null     1.000000  0.970760  1.000000
world_before            0.500000  0.350000  0.500000 0.500000  0.575000  0.500000
world_after             0.290000  0.325000  null     0.460000  0.460000  0.000000
world_delta            -0.210000 -0.025000  null    -0.040000 -0.115000 -0.500000
world_ratio             0.525000  0.800000  null     0.941667  0.776190  0.000000
world_ratio_clip        0.525000  0.750000  null     0.916667  0.776190  0.000000
world_ratio_pooled      0.580000  0.928571  null     0.920000  0.800000  0.000000
world_ratio_chance      0.525000  0.800000  null     0.941667  0.567857  0.000000
world_worst            -0.300000 -0.100000  null    -0.100000 -0.150000 -0.500000
am                      0.428333  0.495833  null     0.480000  0.570000  0.237500
gm                      0.405380  0.465475  null     0.479583  0.559285  0.000000
hm                      0.383658  0.436975  null     0.479167  0.548772  0.000000
"""
EXPECTED = [
    (name, fixture, None if word == "null" else float(word))
    for name, *words in (line.split() for line in TABLE.strip().splitlines())
    for fixture, word in zip(FIXTURES, words, strict=True)
]


def metrics_of(fixture: str) -> dict[str, Metric]:
    text, num_tasks, references, chance = FIXTURES[fixture]
    return compute(matrix_of(rows_of(text), num_tasks), references_of(*references), chance)


def random_matrix(rng, num_tasks=4, num_world=3) -> ScoreMatrix:
    return matrix_of(rng.random((num_tasks + 1, num_tasks + num_world)).tolist(), num_tasks)


@pytest.mark.parametrize(("name", "fixture", "expected"), EXPECTED)
def test_worked_matrices(name, fixture, expected):
    metric = metrics_of(fixture)[f"{name}.v1"]
    if expected is None:
        assert metric.value is None
        assert metric.reason
    else:
        assert metric.value == pytest.approx(expected, abs=5.1e-7)
        assert metric.reason is None


def test_every_metric_of_the_table_exists_once():
    assert len({name for name, _, _ in EXPECTED}) == 30


def test_nulls_say_why_and_list_the_cells():
    f3, f4, f5 = metrics_of("F3"), metrics_of("F4"), metrics_of("F5")
    assert f3["world_delta.v1"].reason == "missing"
    assert f3["world_delta.v1"].missing == ("R[3,world2]",)
    assert f3["mean_avg.v1"].missing == ("R[2,eval1]",)
    assert f3["rel_pooled.v1"].reason == "no_reference"
    assert f3["rel_pooled.v1"].missing == ("S[task1]", "S[task2]", "S[task3]")
    assert f5["rel_mean.v1"].reason == "denominator"
    needs_two = {"bwt", "fwt", "forget_max", "forget_chaudhry", "forget_first_last"}
    needs_two |= {"compat.bwt_over_T", "compat.bwt_all_pairs", "compat.forget_incl_last"}
    assert {name for name, m in f4.items() if m.reason} == {
        *(f"{name}.v1" for name in needs_two),
        "min_acc.v1[1]",
    }
    assert {f4[f"{name}.v1"].reason for name in needs_two} == {"needs_two_tasks"}


def test_partial_is_a_mean_over_the_cells_that_exist():
    f3 = metrics_of("F3")
    delta = f3["world_delta.v1"].partial
    assert delta is not None
    assert delta.value == pytest.approx(-0.15)
    assert (delta.terms, delta.of) == (1, 2)
    assert f3["world_worst.v1"].partial is None  # no mean
    assert f3["bwt.v1"].partial is None  # complete
    assert f3["rel_mean.v1"].partial is None


def test_terms_are_counted():
    f5 = metrics_of("F5")
    terms = {name: f5[f"{name}.v1"].terms for name in ("final_avg", "bwt", "rel_pooled")}
    assert terms == {"final_avg": 4, "bwt": 3, "rel_pooled": 1}
    assert f5["avg_at.v1[2]"].terms == 2
    assert f5["avg_at.v1[2]"].value == pytest.approx((0.50 + 0.80) / 2)


def test_without_world_the_world_metrics_are_null():
    metrics = compute(matrix_of([[0.1, 0.2], [0.5, 0.3], [0.4, 0.6]], 2))
    world = [m for name, m in metrics.items() if name.startswith(("world", "am", "gm", "hm"))]
    assert len(world) == 11
    assert {m.reason for m in world} == {"no_world"}
    assert metrics["bwt.v1"].value == pytest.approx(-0.1)


def test_rows_that_were_not_reached_are_missing():
    metrics = compute(matrix_of(rows_of(F1)[:2], 3))
    assert metrics["final_avg.v1"].reason == "missing"
    assert metrics["final_avg.v1"].missing == ("R[3,eval1]", "R[3,eval2]", "R[3,eval3]")
    assert metrics["avg_at.v1[1]"].value == 0.5


def test_a_missing_member_makes_the_task_score_null():
    row = {"a": Cell(0.2), "b": Cell(0.6), "c": Cell(0.4)}
    broken = {**row, "b": Cell(None, reason="refused")}
    matrix = ScoreMatrix(("one", "two"), {"one": ("a", "b"), "two": ("c",)}, (), (row, broken, row))
    assert matrix.task_score(0, "one") == pytest.approx(0.4)
    assert matrix.task_score(1, "one") is None
    metrics = compute(matrix)
    assert metrics["final_avg.v1"].value == pytest.approx(0.4)
    assert metrics["bwt.v1"].missing == ("R[1,b]",)


def test_band_and_lower_schedules_agree_with_full_where_defined():
    full = rows_of(F5)
    band, lower = copy.deepcopy(full), copy.deepcopy(full)
    for k in (1, 2, 3):
        for j in range(4):
            if j > k:
                band[k][j] = None
            if j >= k:
                lower[k][j] = None
    whole, banded, lowered = (compute(matrix_of(rows, 4)) for rows in (full, band, lower))
    for name in ("forget_max.v1", "bwt.v1", "final_avg.v1", "mean_avg.v1"):
        assert whole[name] == banded[name] == lowered[name]
    assert banded["fwt.v1"] == whole["fwt.v1"]
    assert lowered["fwt.v1"].value is None
    assert banded["forget_chaudhry.v1"].value is None


def test_first_minus_last_is_minus_bwt_and_the_maximum_is_not_below_it():
    rng = np.random.default_rng(0)
    for _ in range(200):
        metrics = compute(random_matrix(rng, num_tasks=int(rng.integers(2, 7))))
        bwt = metrics["bwt.v1"].value
        assert bwt is not None
        assert metrics["forget_first_last.v1"].value == -bwt
        assert metrics["forget_max.v1"].value >= -bwt


def test_column_order_does_not_matter_and_the_input_is_left_alone():
    rng = np.random.default_rng(1)
    references = references_of("0.9 0.8 0.95 0.9", "0.8 0.8 0.9 0.9", "0.8 0.7 0.9 0.9")
    chance = {"world2": 0.01}
    for _ in range(30):
        matrix = random_matrix(rng)
        kept = copy.deepcopy(matrix)
        metrics = compute(matrix, references, chance)
        assert matrix == kept
        mixed = ScoreMatrix(
            matrix.tasks,
            dict(reversed(matrix.task_evals.items())),
            tuple(rng.permutation(matrix.world).tolist()),
            tuple(dict(sorted(row.items(), key=lambda _: rng.random())) for row in matrix.rows),
        )
        assert compute(mixed, references, chance) == metrics


def test_the_sum_over_T_and_over_T_minus_1_are_one_number():
    rng = np.random.default_rng(2)
    for num_tasks in (2, 3, 6):
        metrics = compute(random_matrix(rng, num_tasks))
        expected = metrics["bwt.v1"].value * (num_tasks - 1) / num_tasks
        assert metrics["compat.bwt_over_T.v1"].value == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("base", "reason"), [(0.02, None), (0.02 - 1e-9, "denominator")])
def test_guards_tolerate_rounding_only(base, reason):
    metrics = compute(matrix_of([[0.1, base], [0.1 + 0.3, 0.01]], 1), references_of("0.12"))
    assert metrics["world_ratio.v1"].reason == reason
    assert metrics["rel_pooled.v1"].reason is None  # 0.12 - 0.1 is 0.01999999999999999


def test_a_choice_eval_near_chance_keeps_little():
    f5 = metrics_of("F5")
    assert f5["world_ratio_chance.v1"].value == pytest.approx(((0.62 / 0.70) + 0.25) / 2)
    unaware = compute(matrix_of(rows_of(F5), 4))
    assert unaware["world_ratio_chance.v1"].value == unaware["world_ratio.v1"].value


def test_the_deepest_dip_counts_even_if_it_was_made_good():
    metrics = compute(matrix_of([[0.1, 0.1, 0.6], [0.5, 0.1, 0.2], [0.5, 0.5, 0.55]], 2))
    assert metrics["world_worst.v1"].value == pytest.approx(-0.4)
    assert metrics["world_delta.v1"].value == pytest.approx(-0.05)


PUBLISHED = {  # LLaMA-2-7B; TriviaQA, NQ, WebQS | GSM8K, MATH, in points
    "LoRA": ("45.95 1.16 6.64 42.99 6.26", 0.645603, 0.210047, 64.56, 21.00),
    "MiLoRA": ("47.02 3.66 6.10 41.47 6.20", 0.696629, 0.212395, 69.66, 21.24),
    "CorDA": ("48.99 7.15 5.76 41.47 8.22", 0.762425, 0.226414, 76.24, 22.64),
    "LoRA-Null": ("50.02 7.98 6.55 44.43 8.80", 0.792110, 0.239304, 79.21, 23.93),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_rows_of_lora_null(method):
    numbers, clip, gm, printed_clip, printed_gm = PUBLISHED[method]
    world, math = ("trivia", "nq", "webqs"), ("gsm8k", "math")
    after = dict(zip((*world, *math), (Cell(float(x) / 100) for x in numbers.split()), strict=True))
    base = {"trivia": Cell(0.5250), "nq": Cell(0.1884), "webqs": Cell(0.0591)}
    metrics = compute(ScoreMatrix(("math",), {"math": math}, world, (base, after)))
    assert metrics["world_ratio_clip.v1"].value == pytest.approx(clip, abs=5.1e-7)
    assert metrics["gm.v1"].value == pytest.approx(gm, abs=5.1e-7)
    assert 100 * metrics["world_ratio_clip.v1"].value == pytest.approx(printed_clip, abs=0.0051)
    assert 100 * metrics["gm.v1"].value == pytest.approx(printed_gm, abs=0.0051)
    if method == "LoRA-Null":
        assert metrics["world_ratio.v1"].value == pytest.approx(0.828207, abs=5.1e-7)
        assert metrics["world_ratio_pooled.v1"].value == pytest.approx(0.835599, abs=5.1e-7)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("46.43 3.49 30.11 33.23 77.89 76.50", -0.025767),
        ("42.28 14.71 33.61 21.72 53.43 75.19", -0.070283),
        ("47.04 3.03 36.61 31.57 75.75 75.30", -0.023017),
    ],
)
def test_trace_deltas_of_a_group(after, expected):
    rows = [
        [0.1, *(float(x) / 100 for x in numbers.split()), 0.5]
        for numbers in ("46.56 26.08 40.23 23.47 70.55 76.22", after)
    ]
    general = tuple(f"world{w}" for w in range(1, 7))
    metrics = compute(matrix_of(rows, 1), groups={"general": general})
    assert metrics["trace_delta.v1[general]"].value == pytest.approx(expected, abs=5.1e-7)
    assert metrics["trace_delta.v1[general]"].terms == 6


def test_the_stability_gap_on_rows_is_the_lowest_later_row():
    metrics = metrics_of("F5")
    assert metrics["min_acc.v1[3]"].value == pytest.approx((0.45 + 0.70) / 2)
    assert metrics["wc_acc.v1[3]"].value == pytest.approx(0.61 / 3 + (2 / 3) * 0.575)
    assert metrics["wc_acc.v1[1]"].value == 0.55
    assert metrics["min_acc.v1[3]"].grid == "task"


def test_ranks_of_a_change():
    change = np.array([2.0, 1.0, 1.0])
    assert effective_rank(change) == pytest.approx(2.828427, abs=5.1e-7)
    assert stable_rank(change) == 1.5
    assert effective_rank(np.array([3.0, 0.0])) == stable_rank(np.array([3.0, 0.0])) == 1.0
    assert effective_rank(np.zeros(3)) is None
    assert stable_rank(np.zeros(3)) is None


def test_metrics_load_without_torch_or_pydantic():
    script = (
        "import sys, clbench.metrics; "
        "print([m for m in ('torch', 'pydantic', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_matrix_without_tasks_is_an_error():
    with pytest.raises(ValueError, match="at least one task"):
        ScoreMatrix((), {})
