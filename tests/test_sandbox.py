"""Generated code: what it cannot do, how it is scored, that nothing runs without a boundary."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clbench.errors import UserError
from clbench.sandbox import (
    Isolation,
    Job,
    Limits,
    Outcome,
    Row,
    Verdict,
    find_isolation,
    probe,
    run_cases,
    run_many,
    run_program,
    search_isolation,
)
from clbench.sandbox.attacks import make_attacks
from clbench.sandbox.backends import BACKENDS, Runtime, find_runtime
from clbench.sandbox.runner import Launcher, run_reports
from clbench.sandbox.verdict import decode
from clbench.sandbox.worker import encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation needs Linux")

ROWS = [attack.name for attack in make_attacks(probe.Stage(0, "", "", "", [], "", 0))]
ADD = "def add(a, b):\n    return a + b\n"
SUMS = [((1, 2), 3), ((2, 2), 4)]
BRIEF = Limits(cpu_seconds=1.0, wall_seconds=0.5)


@pytest.fixture(scope="module", params=BACKENDS)
def attempt(request: pytest.FixtureRequest) -> probe.Attempt:
    """One backend's probe; absent ones are skipped with the reason."""
    found = probe.try_backend(request.param)
    if not found.rows:
        pytest.skip(f"{request.param}: {found.reason}")
    return found


@pytest.fixture(scope="module")
def isolation(attempt: probe.Attempt) -> Isolation:
    if attempt.reason:
        pytest.skip(f"{attempt.backend} does not hold here: {attempt.reason}")
    return Isolation(attempt.backend, attempt.rows, "", find_runtime())


def calls_one(body: str) -> tuple[str, str, list[tuple[tuple[object, ...], object]]]:
    """Return a program whose `f` has this body, with a case that expects 1."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"import os, sys, time\ndef f():\n{lines}\n", "f", [((), 1)]


# --- the probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_probe_is_blocked(attempt: probe.Attempt, name: str) -> None:
    row = {row.name: row for row in attempt.rows}[name]
    assert row == Row(name, True, "")


def test_the_attacks_succeed_where_there_is_no_boundary() -> None:
    """A row that is blocked everywhere would prove nothing. Only attacks that leave no trace."""
    names = ["network", "read canary file", "read canary variable", "kill parent", "fill scratch"]
    runtime = find_runtime()
    with probe.prepared_stage(runtime) as (stage, listeners, victim):
        attacks = [attack for attack in make_attacks(stage) if attack.name in names]
        jobs = [Job(a.program, "attack", [(a.args, [])], a.limits) for a in attacks]
        reports = run_reports(jobs, "none", runtime, 2, {probe.SECRET: "x"})
        assert any(map(probe.was_reached, listeners))
        assert victim.wait(5) < 0
    rows = [probe.judge_row(*three, False) for three in zip(attacks, jobs, reports, strict=True)]
    assert sorted(row.name for row in rows if row.found.startswith("found")) == sorted(names)


def test_damage_seen_from_outside_outweighs_what_the_attack_says() -> None:
    attack = make_attacks(probe.Stage(0, "", "", "", [], "", 0))[4]
    job = Job("", "attack", [((), [])])
    report = run_reports([Job("def attack(): return []", "attack", job.cases)], "none",
                         find_runtime(), 1)[0]  # fmt: skip
    assert probe.judge_row(attack, job, report, False).blocked
    assert not probe.judge_row(attack, job, report, True).blocked
    assert not probe.judge_row(attack, job, report._replace(closed=False), False).blocked
    assert not probe.judge_row(attack, job, report._replace(started=False), False).blocked


# --- where no backend holds -------------------------------------------------------------------


def test_every_backend_disabled_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "why_not", lambda backend: f"{backend} is off")
    assert find_isolation() is None
    assert find_isolation("namespaces") is None
    sentence = search_isolation().sentence
    assert "bubblewrap: bubblewrap is off; namespaces: namespaces is off" in sentence
    assert "install bubblewrap" in sentence


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_are_told_so(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    search = search_isolation()
    assert search.isolation is None
    assert f"needs Linux, not {system}" in search.sentence


def test_a_boundary_that_cannot_be_built_runs_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    marker = tmp_path / "marker"
    runtime = find_runtime()
    broken = Runtime(runtime.python, ("/no/such/folder",), runtime.links, runtime.hidden)
    program = f"open({str(marker)!r}, 'w').close()\n"
    verdict = run_program(program, Isolation("namespaces", (), "", broken))
    assert verdict.outcome is Outcome.REFUSED
    assert not marker.exists()
    assert run_program(program, Isolation("none", (), "", runtime)).outcome is Outcome.PASS
    assert marker.exists()  # the program would have written it


def test_without_user_namespaces_nothing_runs(tmp_path: Path) -> None:
    """In a world where the kernel refuses them, not one where we pretend."""
    unshare = shutil.which("unshare")
    switch = "echo 0 > /proc/sys/user/max_user_namespaces && "
    world = [str(unshare), "--user", "--map-root-user", "sh", "-c"]
    if unshare is None or subprocess.run([*world, switch + "true"], capture_output=True).returncode:
        pytest.skip("needs unshare(1) and one user namespace to switch the rest off in")
    script = tmp_path / "script.py"
    program = f"open({str(tmp_path / 'marker')!r}, 'w')"
    script.write_text(
        "from clbench.sandbox import *\n"
        "from clbench.sandbox.backends import find_runtime\n"
        "print(search_isolation('namespaces').sentence)\n"
        "isolation = Isolation('namespaces', (), '', find_runtime())\n"
        f"print(run_program({program!r}, isolation).outcome)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*world, f"{switch} exec '{sys.executable}' -B '{script}'"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    sentence, outcome = done.stdout.splitlines()
    assert sentence.startswith("no isolation for generated code (namespaces: cannot start:")
    assert outcome == "refused"
    assert not (tmp_path / "marker").exists()


def test_accepting_the_risk_is_explicit() -> None:
    accepted = find_isolation("none")
    assert accepted is not None
    assert not accepted.isolated
    assert accepted.detail == ()
    assert run_cases(ADD, "add", SUMS, accepted) == Verdict(Outcome.PASS, "")
    with pytest.raises(UserError, match="bubblewrp"):
        find_isolation("bubblewrp")


# --- outcomes ---------------------------------------------------------------------------------


def test_reference_passes_and_emptied_body_fails(isolation: Isolation) -> None:
    jobs = [
        Job(ADD, "add", SUMS),
        Job("def add(a, b):\n    pass\n", "add", SUMS),
        Job(ADD + "assert add(1, 2) == 3\n"),
        Job("def add(a, b):\n    pass\nassert add(1, 2) == 3\n"),
    ]
    outcomes = [verdict.outcome for verdict in run_many(jobs, isolation, workers=2)]
    assert outcomes == ["pass", "wrong_answer", "pass", "wrong_answer"]


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("", ("exception", "empty")),
        ("\n# nothing\n", ("exception", "empty")),
        ("def f(:\n", ("exception", "SyntaxError")),
        ("  x = 1\ny = 2\n", ("exception", "SyntaxError")),
        ("x = '\0'\n", ("exception", "SyntaxError")),
        ("x = '\ud800'\n", ("exception", "SyntaxError")),
        ("(" * 100_000, ("exception", "SyntaxError")),
        ("{}['key']\n", ("exception", "KeyError")),
        ("class Odd(Exception): pass\nraise Odd\n", ("exception", "Odd")),
        ("def f(): f()\nf()\n", ("exception", "RecursionError")),
        ("import numpy\n", ("exception", "ModuleNotFoundError")),
        ("input()\n", ("exception", "EOFError")),
        ("import os\nos.abort()\n", ("exception", "SIGABRT")),
        ("assert 1 + 1 == 3\n", ("wrong_answer", "AssertionError")),
        ("x = [0] * 10**9\n", ("memory", "MemoryError")),
        ("x = ''\nwhile True: x += 'long' * 10**6\n", ("memory", "MemoryError")),
        ("raise MemoryError\n", ("memory", "MemoryError")),
    ],
)
def test_outcomes_of_a_program(
    program: str, verdict: tuple[str, str], isolation: Isolation
) -> None:
    small = Limits(memory_bytes=64 << 20)
    assert run_program(program, isolation, small) == Verdict(Outcome(verdict[0]), verdict[1])


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def add(a, b): return a * b\n", ("wrong_answer", "case 1")),
        ("def add(a, b): return 3\n", ("wrong_answer", "case 2")),
        ("def add(a, b): return 1 / (a - 2) + 4\n", ("exception", "ZeroDivisionError")),
        ("def add(a, b): return 0 if a == 1 else 1 / 0\n", ("wrong_answer", "case 1")),
        ("def add(a, b): assert False\n", ("exception", "AssertionError")),
        ("def plus(a, b): return a + b\n", ("exception", "NameError")),
        ("add = 3\n", ("exception", "TypeError")),
        ("def add(a, b): return [add]\n", ("wrong_answer", "case 1")),
        (
            "def add(a, b):\n    x = []\n    x.append(x)\n    return x\n",
            ("exception", "RecursionError"),
        ),
        ("def add(a, b): return 'x' * 10**6\n", ("exception", "output")),
        ("", ("exception", "empty")),
    ],
)
def test_outcomes_of_cases(program: str, verdict: tuple[str, str], isolation: Isolation) -> None:
    assert run_cases(program, "add", SUMS, isolation) == Verdict(Outcome(verdict[0]), verdict[1])


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("while True: pass", "cpu"),
        ("time.sleep(60)", "wall"),
        ("while True: time.sleep(0.01)", "wall"),
        ("os.closerange(3, 64)\ntime.sleep(60)", "wall"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "cpu"),
    ],
)
def test_timeouts(body: str, detail: str, isolation: Isolation) -> None:
    limits = Limits(cpu_seconds=1.0, wall_seconds=60.0 if detail == "cpu" else 0.5)
    verdict = run_cases(*calls_one(body), isolation, limits)
    assert verdict == Verdict(Outcome.TIMEOUT, detail)


def test_printing_forever_goes_nowhere(isolation: Isolation) -> None:
    verdict = run_cases(*calls_one("while True: print('OK' * 9999)"), isolation, BRIEF)
    assert verdict.outcome is Outcome.TIMEOUT
    assert run_program("print('x' * 10**7)\n", isolation).outcome is Outcome.PASS


# --- what is no pass --------------------------------------------------------------------------

ENDS = [
    "import os; os._exit(0)",
    "import sys; sys.exit(0)",
    "raise SystemExit",
    "import os; print('OK', 'pass', 'T', flush=True); os._exit(0)",
    "import os; [os.write(end, b'\\nT 0\\nOK\\n') for end in (1, 2, 5)]; os._exit(0)",
    'import os; os.write(5, b\'R ["i","3"]\\nR ["i","4"]\\n\'); os._exit(0)',
    "import os; os.write(5, b'R [[[[\\n'); os._exit(0)",
    "import os; os.write(5, b'E ' + bytes(range(256)) + b'\\n'); os._exit(0)",
    "import os; os.close(5)",
    "import os; os.kill(os.getpid(), 9)",
    "import os, atexit; os.fork() and os._exit(0)",
    "import builtins; builtins.exec = builtins.len = None; raise KeyError",
]


@pytest.mark.parametrize("end", ENDS)
def test_ending_early_is_no_pass_and_voids_no_cell(end: str, isolation: Isolation) -> None:
    jobs = [Job(f"{end}\nassert False\n"), Job(f"{end}\n{ADD}x = 1 / 0\n", "add", SUMS)]
    for verdict in run_many(jobs, isolation, workers=2):
        assert verdict.outcome in (Outcome.EXCEPTION, Outcome.WRONG_ANSWER)


def test_an_always_equal_result_does_not_pass(isolation: Isolation) -> None:
    program = (
        "class Yes:\n"
        "    def __eq__(self, other): return True\n"
        "    def __hash__(self): return 3\n"
        "class Three(int):\n"
        "    def __eq__(self, other): return True\n"
        "    def __index__(self): return 3\n"
        "    __hash__ = int.__hash__\n"
        "def same(a, b): return Yes()\n"
        "def within(a, b): return [Yes()]\n"
        "def number(a, b): return Three(7)\n"
    )
    for name, expected in (("same", 3), ("within", [3]), ("number", 3)):
        verdict = run_cases(program, name, [((1, 2), expected)], isolation)
        assert verdict == Verdict(Outcome.WRONG_ANSWER, "case 1")
    assert run_cases(program, "number", [((1, 2), 7)], isolation).outcome is Outcome.PASS


def test_expected_results_never_leave_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send = Launcher._send
    monkeypatch.setattr(
        Launcher,
        "_send",
        lambda self, message: (sent.append(repr(message).encode()), send(self, message)),
    )
    risk = Isolation("none", (), "", find_runtime())
    program = "def f(x): return 'ans' + x\n"
    assert run_cases(program, "f", [(("wer",), "answer")], risk).outcome is Outcome.PASS
    assert any(b"wer" in message for message in sent)
    assert not any(b"answer" in message for message in sent)


# --- the boundary, beyond the probe -----------------------------------------------------------


def processes_named(name: str) -> int:
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:
            continue  # ended meanwhile
    return names.count(name)


@pytest.mark.parametrize("parent", ["time.sleep(60)", "time.sleep(0.3); os._exit(0)"])
def test_a_detached_child_dies_with_its_program(parent: str, isolation: Isolation) -> None:
    name = f"stray{os.urandom(3).hex()}"
    body = (
        "import ctypes\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 64)\n"
        f"        ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        f"{parent}"
    )
    limits = Limits(wall_seconds=1.5)
    runs = threading.Thread(target=run_cases, args=(*calls_one(body), isolation, limits))
    runs.start()
    deadline, seen = time.monotonic() + 10, 0
    while runs.is_alive() and time.monotonic() < deadline:
        seen = max(seen, processes_named(name))
    runs.join()
    assert seen == 1  # it was there
    assert processes_named(name) == 0


def test_the_surroundings_are_bare_and_the_same_each_time(isolation: Isolation) -> None:
    program = (
        "import os, sys, time\n"
        "def f():\n"
        "    before = os.listdir('.')\n"
        "    open('left', 'w').close()\n"
        "    return [before, sorted(os.environ), hash('seed'), time.tzname[0], os.getpid(),\n"
        "            sys.version_info[:3], [p for p in sys.path if 'packages' in p], __name__]\n"
        "def packages():\n"
        "    found = []\n"
        "    for root in ('/usr/lib', *sys.path):\n"
        "        for kind in ('site-packages', 'dist-packages'):\n"
        "            for path in (root, root + '/python3'):\n"
        "                if os.path.isdir(path + '/' + kind):\n"
        "                    found += os.listdir(path + '/' + kind)\n"
        "    return found\n"
    )
    names = [
        "HOME",
        "LC_CTYPE",
        "MALLOC_ARENA_MAX",
        "PWD",
        "PYTHONHASHSEED",
        "PYTHONUTF8",
        "TMPDIR",
        "TZ",
    ]
    with Launcher(isolation.name, isolation.runtime, {"SECRET": "x"}) as launcher:
        job = Job(program, "f", [((), None)])
        first, second = [launcher.run(job).data.splitlines()[1][2:] for _ in range(2)]
    assert first == second  # a fresh folder, hash seed and process number each time
    before, variables, _, zone, _, version, path, name = decode(first)  # type: ignore[misc]
    assert (before, variables, zone, path, name) == ([], names, "UTC", [], "program")
    assert version == sys.version_info[:3]
    assert run_cases(program, "packages", [((), [])], isolation) == Verdict(Outcome.PASS, "")


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(1, 9)\nos.kill(-1, 9)",
        "os.kill(os.getppid(), 9)",
        "os.closerange(0, 64)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
        "import ctypes\nctypes.string_at(0)",
        "sys.setrecursionlimit(10**9)\ndef deep(): deep()\ndeep()",
    ],
)
def test_whatever_happens_after_the_start_is_the_programs_own(
    body: str, isolation: Isolation
) -> None:
    verdict = run_cases(*calls_one(body), isolation, Limits(memory_bytes=64 << 20))
    assert verdict.outcome not in (Outcome.REFUSED, Outcome.PASS)
    assert verdict.detail == "ValueError" or "setrlimit" not in body


def test_threads_do_not_delay_a_verdict(isolation: Isolation) -> None:
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    begin = time.monotonic()
    assert run_program(program, isolation).outcome is Outcome.PASS
    assert time.monotonic() - begin < 9


def test_many_keep_their_order(isolation: Isolation) -> None:
    jobs = [Job(ADD, "add", [((number, 1), number + number % 3)]) for number in range(12)]
    verdicts = run_many(jobs, isolation, workers=3)
    assert [v.outcome is Outcome.PASS for v in verdicts] == [n % 3 == 1 for n in range(12)]
    assert run_many([], isolation, workers=2) == []


# --- literals ---------------------------------------------------------------------------------

VALUES = [
    None, True, 0, -255, 10**5000, 0.1, -1e300, float("inf"), 1 + 2j, "", "päron\n\ud800", b"\0",
    [], [1, [2]], (), (1,), set(), {1, 2}, {}, {"a": [1], (1, 2): {"b": None}},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=map(str, range(len(VALUES))))
def test_results_keep_value_and_type(value: object) -> None:
    rebuilt = decode(encode(value).encode())
    assert rebuilt == value
    assert type(rebuilt) is type(value)


def test_subclasses_count_as_their_literal_base() -> None:
    from collections import Counter, OrderedDict

    assert decode(encode(Counter("aab")).encode()) == {"a": 2, "b": 1}
    assert decode(encode([OrderedDict(a=1)]).encode()) == [{"a": 1}]
    assert decode(encode(frozenset({1})).encode()) == {1}
    assert decode(encode(range(3)).encode()) not in (range(3), [0, 1, 2])


def test_arguments_are_fresh_for_each_case(isolation: Isolation) -> None:
    shared = [3, 1, 2]
    program = "def last(x):\n    x.sort()\n    return x.pop()\n"
    assert run_cases(program, "last", [((shared,), 3)] * 3, isolation).outcome is Outcome.PASS
    assert shared == [3, 1, 2]


@pytest.mark.parametrize("value", [object(), [float("nan")], {1: print}, range(3), Outcome.PASS])
def test_what_is_no_literal_is_refused_before_anything_runs(value: object) -> None:
    with pytest.raises(TypeError):
        Job(ADD, "add", [((1, 2), value)])
    with pytest.raises(TypeError):
        Job(ADD, "add", [((value, 2), 3)])


@pytest.mark.parametrize(
    "text",
    ["", "3", '"x"', "[[", '["i"]', '["i","x"]', '["?",null]', '["d",null,null]', '["c","x"]',
     '["s","ff"]', '["S",null,["l",null]]', "[" * 100_000, '["l",' * 5000, "NaN"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_malformed_results_raise_one_error(text: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        decode(text.encode())
