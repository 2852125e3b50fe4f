"""Whether the batch size moves an outcome of tiny: 64 items per eval, alone and in batches.

python benchmarks/batch_invariance.py
"""

from __future__ import annotations

from tabulate import tabulate

from clbench import api, preparation
from clbench.evalchecks import check_batch_invariance


def main() -> None:
    config = api.resolve("math-code-if", "lora")
    plan = preparation.prepare(config)
    found = check_batch_invariance(plan.loaded.model, plan.evaluator)
    rows = [[name, *agreement] for name, agreement in found.items()]
    headers = ["eval", "items", "same output", "outcome", "choice", "ll difference", "passed"]
    print(tabulate(rows, headers, tablefmt="github"))


if __name__ == "__main__":
    main()
