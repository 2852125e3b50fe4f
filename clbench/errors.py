"""What users did that cannot be done: the only errors that the command line shortens."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence that names the offending value and the choices. Exit code 2."""


class RunFailed(RuntimeError):
    """A run or a check that failed after it started; a run's record is kept. Exit code 3."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Return the error for a name that is not among the choices, with the likely one."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    return UserError(f"unknown {kind} {name!r}{hint} choices: {', '.join(known) or 'none'}")
