"""What a boundary shows of the machine, and the command line that starts a worker inside it."""

import math
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clbench.sandbox.callfilter import MACHINES, seccomp_filter
from clbench.sandbox.verdict import Limits

BACKENDS = ("bubblewrap", "namespaces")  # in the order in which they are tried
NOBODY, FILTER = 65534, 6  # as in launcher.py, a script that only Linux can import
UNISOLATED = "none"  # accepted risk: a plain process with limits, only on explicit request
SCRATCH = "/scratch"
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")


@dataclass(frozen=True)
class Runtime:
    """The interpreter and what it needs to start: the only things of the host a program sees."""

    python: str
    visible: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]  # installed packages: they may hold the expected answers


def find_runtime() -> Runtime:
    """Locate this interpreter's binary, standard library and shared libraries.

    From inside a virtual environment this is the base interpreter.
    """
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    places = [Path(path) for path in LIBRARIES] + [stdlib.parent.resolve()]
    folders = outermost([path for path in places if path.is_dir() and not path.is_symlink()])
    links = [(str(path), os.readlink(path)) for path in places if path.is_symlink()]
    hidden = [str(path) for folder in folders for path in find_packages(folder)]
    visible = [*map(str, folders)]
    if not any(Path(python).is_relative_to(folder) for folder in folders):
        visible.append(python)
    return Runtime(python, tuple(visible), tuple(links), tuple(hidden))


def outermost(folders: list[Path]) -> list[Path]:
    """Drop folders that lie within another one of the list."""
    unique = sorted(set(folders))
    return [path for path in unique if not any(path.is_relative_to(o) for o in unique if o != path)]


def find_packages(folder: Path) -> Iterator[Path]:
    """Yield the folders of installed packages beside or below a standard library."""
    for kind in ("site-packages", "dist-packages"):
        yield from sorted(folder.glob(f"python*/{kind}"))


def make_plan(backend: str, runtime: Runtime, scratch: str) -> tuple[Any, ...]:
    """Describe to the launcher, as the fields of its `Plan`, what holds for a whole batch."""
    environment = {
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "LC_CTYPE": "C.UTF-8",
        "TZ": "UTC",
        "HOME": scratch,
        "TMPDIR": scratch,
        "PWD": scratch,
        "MALLOC_ARENA_MAX": "1",  # else each thread reserves 64 MiB of the address space
    }
    seen = ([*runtime.visible], [*runtime.links], [*runtime.hidden])
    return (backend, environment, *seen, scratch, seccomp_filter())


def worker_command(backend: str, runtime: Runtime, limits: Limits) -> list[str]:
    """Return the command that starts one worker.

    No `-I` and no `-E`: they would drop PYTHONHASHSEED, and the environment holds nothing else.
    """
    worker = Path(__file__).with_name("worker.py").read_text(encoding="utf-8")
    own = (
        max(1, math.ceil(limits.cpu_seconds)),
        limits.memory_bytes,
        limits.scratch_bytes,
        limits.processes,
        limits.open_files,
    )
    python = [runtime.python, "-S", "-s", "-P", "-B", "-c", worker, ",".join(map(str, own))]
    return [*bubblewrap(runtime, limits), *python] if backend == "bubblewrap" else python


def bubblewrap(runtime: Runtime, limits: Limits) -> list[str]:
    """Return the command line of bubblewrap 0.7 or later up to the program's own."""
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user"]
    command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--seccomp", str(FILTER)]
    for path in runtime.visible:
        command += ["--ro-bind", path, path]
    for path, target in runtime.links:
        command += ["--symlink", target, path]
    for path in runtime.hidden:
        command += ["--tmpfs", path, "--remount-ro", path]
    command += ["--dev-bind", "/dev/null", "/dev/null"]
    command += ["--size", str(limits.scratch_bytes), "--tmpfs", SCRATCH, "--chdir", SCRATCH]
    return [*command, "--remount-ro", "/", "--"]


def why_not(backend: str) -> str:
    """Say why a backend cannot even be tried here, or return "" if it can."""
    if platform.system() != "Linux":
        return f"needs Linux, not {platform.system()}"
    if platform.machine() not in MACHINES:
        return f"knows the system calls of {' and '.join(MACHINES)}, not of {platform.machine()}"
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if backend == "bubblewrap" and os.geteuid() == 0:
        return "for the superuser it cannot bound the number of processes"
    return ""
