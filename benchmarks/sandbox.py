"""Times the probe and 200 sandboxed programs, the size of one code evaluation.

$ python benchmarks/sandbox.py [--programs 200] [--workers 2] [--isolation auto]
"""

import argparse
import os
import resource
import time

from clbench.sandbox import Job, Outcome, run_many, search_isolation


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all children it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    spent = [resource.getrusage(kind) for kind in kinds]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def main() -> None:
    """Print one line for the probe and one for the batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--isolation", default="auto")
    options = parser.parse_args()

    wall, cpu = time.perf_counter(), cpu_seconds()
    search = search_isolation(options.isolation)
    print(f"probe: {time.perf_counter() - wall:.2f} s, {cpu_seconds() - cpu:.2f} s CPU")
    if search.isolation is None:
        raise SystemExit(search.sentence)

    cases = [((number,), number * number) for number in range(5)]
    job = Job("def square(x):\n    return x * x\n", "square", cases)
    wall, cpu = time.perf_counter(), cpu_seconds()
    verdicts = run_many([job] * options.programs, search.isolation, options.workers)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    passed = sum(verdict.outcome is Outcome.PASS for verdict in verdicts)
    print(
        f"{search.isolation.name}: {passed} of {options.programs} passed in {wall:.2f} s "
        f"({cpu / options.programs * 1000:.1f} ms CPU each, {options.workers} workers)"
    )


if __name__ == "__main__":
    main()
