"""How sure a number is: intervals over items and seeds, tests, ties, summaries of runs."""

from clbench.bootstrap import p_value, percentile_interval, resample_sums
from clbench.comparison import Comparison, Difference, compare
from clbench.inference import (
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
from clbench.rescoring import Rescored, rescore, summarize_run
from clbench.summary import summarize
from clbench.ties import rank_rows

__all__ = [
    "Comparison",
    "Difference",
    "Rescored",
    "compare",
    "crossed",
    "detectable",
    "holm",
    "hull",
    "mcnemar",
    "p_value",
    "paired_detectable",
    "percentile_interval",
    "pooled",
    "rank_intervals",
    "rank_rows",
    "resample_sums",
    "rescore",
    "seed_values",
    "sign_flip",
    "summarize",
    "summarize_run",
    "t_estimate",
]
