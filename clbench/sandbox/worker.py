"""What runs inside the boundary: set the limits, say so, run one program, report. Standard library.

Passed to the interpreter as source (`python -c`), so it imports nothing of ours, nor `typing`,
which would take as long as the rest of the start.
"""

from __future__ import annotations

import marshal
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

JOB, TOKEN, VERDICT = 3, 4, 5  # file descriptors the launcher leaves open
PARSE_ONLY = 0x400  # ast.PyCF_ONLY_AST, without importing ast
STACK_BYTES = 8 << 20


def set_limits(cpu: int, memory: int, file_size: int, processes: int, open_files: int) -> None:
    """Lower soft and hard limits, for this process and all it starts, for good."""
    for which, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # SIGXCPU first, SIGKILL for who ignores it
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_NOFILE, open_files, open_files),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_STACK, STACK_BYTES, STACK_BYTES),
    ):
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def encode(value: object) -> str:
    """Spell a literal as JSON text that keeps its type; subclasses count as their literal base.

    An object that is no literal becomes `["o", type]`, which equals nothing outside.
    """
    kind = type(value)
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if issubclass(kind, int):
        return f'["i","{int.__index__(value):x}"]'  # type: ignore[arg-type]
    if issubclass(kind, float):
        return f'["f","{float.hex(value)}"]'  # type: ignore[arg-type]
    if issubclass(kind, complex):
        return f'["c","{complex.__repr__(value)}"]'
    if issubclass(kind, str):
        return f'["s","{str.encode(value, "utf-8", "surrogatepass").hex()}"]'  # type: ignore[arg-type]
    if issubclass(kind, bytes):
        return f'["b","{bytes.hex(value)}"]'  # type: ignore[arg-type]
    if issubclass(kind, dict):
        pairs: Iterable[tuple[object, object]] = dict.items(value)  # type: ignore[arg-type]
        return _encode_many("d", (item for pair in pairs for item in pair))
    for base, tag in ((list, "l"), (tuple, "t"), (set, "S"), (frozenset, "S")):
        if issubclass(kind, base):
            return _encode_many(tag, base.__iter__(value))  # type: ignore[arg-type]
    return '["o"]'


def _encode_many(tag: str, values: Iterable[object]) -> str:
    return f'["{tag}",{",".join(["null", *map(encode, values)])}]'


def say(line: bytes) -> None:
    """Write one whole line to the verdict channel."""
    line += b"\n"
    while line:
        line = line[os.write(VERDICT, line) :]


def load(source: str) -> Any:
    """Compile the program; on failure say which kind it was and return None."""
    try:
        if not compile(source, "<program>", "exec", PARSE_ONLY, True).body:
            return say(b"E empty")
        return compile(source, "<program>", "exec", 0, True)
    except (SyntaxError, ValueError):  # ValueError: null bytes, lone surrogates
        return say(b"E SyntaxError")
    except MemoryError:
        return say(b"M")
    except BaseException as error:
        return say(b"E " + type(error).__name__.encode())


def run(source: str, entry_point: str | None, calls: list[bytes]) -> None:
    """Run the program; then call its entry point per case, or take its own asserts as the test."""
    code = load(source)
    if code is None:
        return
    module = type(sys)(
        "program"
    )  # a real module: dataclasses look theirs up; `__main__` blocks rest
    sys.modules["program"] = module
    names = module.__dict__
    process, leave = os.getpid(), os._exit
    try:
        exec(code, names)
        if entry_point is not None and entry_point not in names:
            raise NameError(entry_point)
        for call in calls:
            result = names[str(entry_point)](*marshal.loads(call))
            say(b"R " + encode(result).encode())
    except MemoryError:
        names.clear()
        say(b"M")
    except AssertionError:
        say(b"A" if entry_point is None else b"E AssertionError")
    except BaseException as error:
        say(b"E " + type(error).__name__.encode("ascii", "replace"))
    else:
        if os.getpid() == process:  # not a fork of the program that ran on to here
            say(b"T " + os.read(TOKEN, 64))
    finally:
        leave(0)


def main() -> None:
    """Entry point of the sandboxed interpreter; the limits come as arguments."""
    set_limits(*map(int, sys.argv[1].split(",")))
    sys.argv[:] = [""]
    say(b"started")  # from here on, whatever happens is the program's own outcome
    with os.fdopen(JOB, "rb") as job:
        source, entry_point, calls = marshal.load(job)
    run(source, entry_point, calls)


if __name__ == "__main__":
    main()
