"""Runs programs inside a boundary: one at a time, or many over several launchers, in order."""

import marshal
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from clbench.sandbox.backends import (
    SCRATCH,
    UNISOLATED,
    Runtime,
    make_plan,
    worker_command,
)
from clbench.sandbox.verdict import Case, Job, Limits, Report, Verdict, judge


class Row(NamedTuple):
    """One row of the start-up probe: a hostile program's name, and whether it was stopped."""

    name: str
    blocked: bool
    found: str


@dataclass(frozen=True)
class Isolation:
    """A boundary that may be used. Take it from `find_isolation`, which has probed it.

    `name` is "bubblewrap", "namespaces" or "none"; `detail` the probe's rows (empty for "none");
    `python` the version that runs the programs. All three belong in the record.
    """

    name: str
    detail: tuple[Row, ...]
    python: str
    runtime: Runtime

    @property
    def isolated(self) -> bool:
        """Whether a score counts; False for the accepted risk, which no board ranks."""
        return self.name != UNISOLATED


class Launcher:
    """A running `launcher.py`. Leaving the context ends it and whatever it runs."""

    def __init__(
        self, backend: str, runtime: Runtime, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; `environment` is the launcher's own, which no program may see."""
        self.backend, self.runtime = backend, runtime
        self.folder = tempfile.TemporaryDirectory(prefix="clbench-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment or {},
            start_new_session=True,
        )
        scratch = self.folder.name if backend == UNISOLATED else SCRATCH
        self._send(make_plan(backend, runtime, scratch))

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        marshal.dump(message, self.process.stdin)
        self.process.stdin.flush()

    def run(self, job: Job) -> Report:
        """Run one job. A launcher that is gone is reported as a program that did not start."""
        assert self.process.stdout is not None
        limits = job.limits
        command = worker_command(self.backend, self.runtime, limits)
        usage = (limits.wall_seconds, limits.output_bytes, limits.scratch_bytes)
        calls = [marshal.dumps(args) for args in job.calls]
        try:
            self._send((command, usage, marshal.dumps((job.program, job.entry_point, calls))))
            return Report(*marshal.load(self.process.stdout))
        except (OSError, EOFError) as error:
            return Report(False, b"", False, 0, "", True, 0.0, f"the launcher ended: {error}")

    def __enter__(self) -> "Launcher":
        """Return the launcher itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the launcher; the kernel ends what it was running."""
        os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:
            self.process.wait()
        self.folder.cleanup()


def run_many(jobs: Sequence[Job], isolation: Isolation, workers: int = 1) -> list[Verdict]:
    """Run every job, each in a fresh boundary, `workers` at a time; verdicts in the jobs' order."""
    reports = run_reports(jobs, isolation.name, isolation.runtime, workers)
    return [judge(job, report) for job, report in zip(jobs, reports, strict=True)]


def run_reports(
    jobs: Sequence[Job],
    backend: str,
    runtime: Runtime,
    workers: int,
    environment: Mapping[str, str] | None = None,
) -> list[Report]:
    """Run jobs and return what was seen of each; one that did not start is tried once more."""
    reports: list[Report | None] = [None] * len(jobs)
    queue = iter(range(len(jobs)))  # shared: `next` on it is atomic

    def serve() -> None:
        with Launcher(backend, runtime, environment) as launcher:
            for number in queue:
                reports[number] = launcher.run(jobs[number])

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        running = [pool.submit(serve) for _ in range(min(workers, len(jobs)))]
        try:
            for served in running:
                served.result()
        finally:
            list(queue)  # after an interrupt: leave nothing for the others to take
    for number, report in enumerate(reports):
        if report is None or not report.started:
            with Launcher(backend, runtime, environment) as launcher:
                reports[number] = launcher.run(jobs[number])
    return [report for report in reports if report is not None]


def run_cases(
    program: str,
    entry_point: str,
    cases: Sequence[Case],
    isolation: Isolation,
    limits: Limits | None = None,
) -> Verdict:
    """Call `entry_point` of a program on literal arguments and compare its results out here.

    The expected results never enter the boundary, so no result can be equal to everything.
    Equality is Python's on literals: 1 == 1.0 == True, but a list is no tuple. Raises TypeError
    if arguments or expected results are not literals.
    """
    job = Job(program, entry_point, cases, limits or Limits())
    return run_many([job], isolation)[0]


def run_program(program: str, isolation: Isolation, limits: Limits | None = None) -> Verdict:
    """Run a program that carries its own asserts, as public data sets have them.

    Passing takes the one-time token, which is in a pipe and not in the program's memory until its
    last line is done. What no such scheme can stop, because tests and program share a process: a
    result whose `__eq__` is always true, and a program written against this very runner, which
    reads the caller's frames or the token's pipe. Where that matters, use `run_cases`.
    """
    return run_many([Job(program, limits=limits or Limits())], isolation)[0]
