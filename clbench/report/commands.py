"""What to type after a run: its own command with another seed or another strategy."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from clbench.results import Record

OF_ONE_RUN = {"--out", "--fresh"}


class Option(NamedTuple):
    """An option as it was typed, with its value or as a flag."""

    name: str
    value: str | None
    words: tuple[str, ...]


def following(record: Record, place: Path) -> list[str]:
    """Return commands, each with what it is for; `place` is where the run's record lies.

    A run that was not typed, such as one from Python or a reference, has no command to change.
    """
    compare = (
        f"clbench compare {shlex.quote(str(place))} OTHER  # the paired difference of two runs"
    )
    asked = cast(Mapping[str, Any], (record.config.model_extra or {}).get("run", {}))
    typed = _typed(record.provenance.get("command"))
    if not _is_of(typed, asked):
        return [compare]
    kept = [option for option in typed if option.name not in OF_ONE_RUN]
    seed = f"--seed {record.config.seed + 1}"
    params = asked.get("params", {})
    shared = (option for option in kept if not _is_of_strategy(option, params))
    return [
        f"{_command(kept, '--seed')} {seed}  # another seed",
        f"{_command(shared, '--strategy')} --strategy NAME  # another one; clbench list names them",
        compare,
    ]


def _command(options: Iterable[Option], replaced: str) -> str:
    words = (word for option in options if option.name != replaced for word in option.words)
    return shlex.join(["clbench", "run", *words])


def _typed(command: Any) -> list[Option]:
    """Return the options of a typed `clbench run`, none for another command."""
    program, *words = cast(Sequence[str], command or [""])
    if Path(program).name.removesuffix(".exe") != "clbench" or "run" not in words:
        return []
    groups: list[list[str]] = []
    for word in words[words.index("run") + 1 :]:
        if word.startswith("-"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [_option(group) for group in groups]


def _option(words: Sequence[str]) -> Option:
    name, equals, value = words[0].partition("=")
    following = words[1] if len(words) > 1 else None
    return Option(name, value if equals else following, tuple(words))


def _is_of(typed: Sequence[Option], asked: Mapping[str, Any]) -> bool:
    """Tell whether a run is the one that was typed, not a reference that was run beside it."""
    given, strategy = {option.name: option.value for option in typed}, asked.get("strategy")
    if not given or asked.get("joint"):
        return False
    if asked.get("tasks") and not given.keys() & {"--tasks", "--config"}:
        return False
    return bool(given.get("--strategy", strategy) == strategy)


def _is_of_strategy(option: Option, params: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether an option sets what another strategy may not have."""
    if option.name != "--set":
        return False
    part, _, field = str(option.value).partition("=")[0].strip().rpartition(".")
    return part in params or (not part and any(field in own for own in params.values()))
