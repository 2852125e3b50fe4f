"""Finds a boundary that holds, by running hostile programs inside each one at start-up."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from clbench.errors import unknown
from clbench.sandbox.attacks import Attack, Stage, make_attacks
from clbench.sandbox.backends import BACKENDS, UNISOLATED, Runtime, find_runtime, why_not
from clbench.sandbox.runner import Isolation, Row, run_reports
from clbench.sandbox.verdict import Job, Outcome, Report, decode, judge

CHOICES = ("auto", *BACKENDS, UNISOLATED)
SECRET = "CLBENCH_CANARY"
LAUNCHERS = 4


@dataclass(frozen=True)
class Attempt:
    """One backend tried: its rows, or the reason why it could not be."""

    backend: str
    reason: str  # "" if every row is blocked
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Search:
    """What was tried and what was found; `sentence` tells a user who has no boundary what to do."""

    isolation: Isolation | None
    attempts: tuple[Attempt, ...]

    @property
    def sentence(self) -> str:
        """Name what holds, or what was tried and what to install."""
        if self.isolation is not None:
            return f"generated code runs in {self.isolation.name}"
        tried = "; ".join(f"{attempt.backend}: {attempt.reason}" for attempt in self.attempts)
        risk = "or accept the risk with --isolation none"
        return f"no isolation for generated code ({tried}): {advice()}, {risk}"


def advice() -> str:
    """Say what a user without a boundary can do."""
    if platform.system() != "Linux":
        return "use Linux, or WSL on Windows, and install bubblewrap"
    if os.geteuid() == 0:
        return "install bubblewrap and run as an ordinary user"
    return "install bubblewrap"


def find_isolation(choice: str = "auto") -> Isolation | None:
    """Return the first boundary that holds, or None; `search_isolation` also says why."""
    return search_isolation(choice).isolation


def search_isolation(choice: str = "auto") -> Search:
    """Probe "auto" (each backend in order) or the one named, at most some 2 s for each.

    "none" is the accepted risk: a plain process with limits, not probed. Raises UserError for
    any other choice.
    """
    if choice not in CHOICES:
        raise unknown("isolation", choice, CHOICES)
    attempts: list[Attempt] = []
    for backend in BACKENDS if choice == "auto" else (choice,):
        attempt = try_backend(backend)
        attempts.append(attempt)
        if not attempt.reason:
            found = Isolation(backend, attempt.rows, platform.python_version(), find_runtime())
            return Search(found, tuple(attempts))
    return Search(None, tuple(attempts))


def try_backend(backend: str) -> Attempt:
    """Probe one backend, unless something says beforehand that it cannot work."""
    reason = why_not(backend)
    if reason or backend == UNISOLATED:
        return Attempt(backend, reason, ())
    runtime = find_runtime()
    harmless = run_reports([Job("0")], backend, runtime, 1)[0]
    if not harmless.started:
        return Attempt(backend, f"cannot start: {harmless.error or harmless.stop}", ())
    rows = probe(backend, runtime)
    reasons = [f"{row.name}: {row.found}" for row in rows if not row.blocked]
    return Attempt(backend, reasons[0] if reasons else "", rows)


def probe(backend: str, runtime: Runtime) -> tuple[Row, ...]:
    """Run every attack inside a backend, in parallel, and look from outside at what it did."""
    with prepared_stage(runtime) as (stage, listeners, victim):
        attacks = make_attacks(stage)
        jobs = [Job(a.program, "attack", [(a.args, [])], a.limits) for a in attacks]
        environment = {SECRET: "secret"}
        reports = run_reports(jobs, backend, runtime, LAUNCHERS, environment)
        damage = {
            "network": any(map(was_reached, listeners)),
            "write beside canary": os.listdir(stage.folder) != ["canary"],
            "kill parent": victim.poll() is not None,
            "ptrace": victim.poll() is not None,
        }
    return tuple(
        judge_row(attack, job, report, damage.get(attack.name, False))
        for attack, job, report in zip(attacks, jobs, reports, strict=True)
    )


def judge_row(attack: Attack, job: Job, report: Report, damage: bool) -> Row:
    """Say whether an attack was stopped, and what was seen if not."""
    verdict = judge(job, report)
    blocked = verdict.outcome is attack.ends and report.closed and not damage
    if damage:
        found = "reached the outside"
    elif not report.closed:
        found = "a process survived"
    elif verdict.outcome is Outcome.WRONG_ANSWER:
        found = f"found {decode(report.data.splitlines()[1][2:])}"
    else:
        found = f"ended as {verdict.outcome} {verdict.detail}".strip()
    return Row(attack.name, blocked, "" if blocked else found)


@contextmanager
def prepared_stage(
    runtime: Runtime,
) -> Iterator[tuple[Stage, list[socket.socket], subprocess.Popen[bytes]]]:
    """Set up listeners, a canary and a process to be killed; take all down afterwards."""
    command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    with (
        TemporaryDirectory(prefix="clbench-") as folder,
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.socket(socket.AF_UNIX) as local,
        subprocess.Popen(command) as victim,
    ):
        Path(folder, "canary").write_text("secret", encoding="utf-8")
        abstract = f"clbench-{os.getpid()}-{os.urandom(4).hex()}"
        local.bind("\0" + abstract)
        local.listen()
        home = Path.home()
        entries = [name for name in _names(home) if not _holds_runtime(home / name, runtime)]
        port = loopback.getsockname()[1]
        stage = Stage(port, abstract, folder, str(home), entries, SECRET, victim.pid)
        try:
            yield stage, [loopback, local], victim
        finally:
            victim.kill()


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))[:50] if folder.is_dir() else []


def _holds_runtime(path: Path, runtime: Runtime) -> bool:
    return any(Path(seen).is_relative_to(path) for seen in runtime.visible)


def was_reached(listener: socket.socket) -> bool:
    """Tell whether anybody connected to a listening socket."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
