"""A run directory: the record, its items and events, and which phases are finished.

`record.json` is the commit point. A phase writes its checkpoint and items first and the record
last, so that a run killed at any instant goes on from the last phase that the record lists.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from clbench import provenance
from clbench.errors import UserError
from clbench.results import Record, check_writable

OURS = (
    "record.json",
    "items",
    "weights",
    "events.jsonl",
    "rescored",
    "export",
    ".lock",
    "report.html",
)


class RunDirectory:
    """The directory of one run, locked while it is open.

    Opening raises UserError if it holds another configuration, files that are not a run, a
    record that cannot be read, a run that another process is writing, or one that was
    interrupted and begun with packages of other versions.
    """

    def __init__(self, path: Path, new: Record, *, fresh: bool = False) -> None:
        self.path = path
        self._refuse_foreign_files()
        check_writable(path, "the run directory", "choose another --out")
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            self._open(new, fresh)
        except BaseException:
            self.close()
            raise

    def _open(self, new: Record, fresh: bool) -> None:
        path = self.path
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is writing the run in {path}") from error
        if fresh:
            self._clear()
        if (path / "record.json").exists():
            self.record = Record.load(path)
            self._refuse_other_configuration(new)
            self._refuse_other_packages(new)
        else:
            self.record = new

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory; a run that never began leaves nothing behind."""
        if not (self.path / "record.json").exists():
            (self.path / ".lock").unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()
        self._lock.close()

    @property
    def phases(self) -> list[dict[str, Any]]:
        """Return the finished phases in order: row, phase, seconds and what they measured."""
        return cast(list[dict[str, Any]], self.record.provenance.get("phases", []))

    @property
    def checkpoint(self) -> str | None:
        """Return the name of the checkpoint that the last finished phases left behind."""
        saved = [p for p in self.phases if p["phase"] != "evaluate"]
        return f"{saved[-1]['row']}-{saved[-1]['phase']}" if saved else None

    def done(self, row: int, phase: str) -> bool:
        """Tell whether the record lists this phase."""
        return any(p["row"] == row and p["phase"] == phase for p in self.phases)

    def commit(self, row: int, phase: str, facts: Mapping[str, Any], **changes: Any) -> None:
        """Save the record with a finished phase and with `changes` of its blocks."""
        done = [*self.phases, {"row": row, "phase": phase, **facts}]
        self.save(provenance={**self.record.provenance, "phases": done}, **changes)
        self.event("end", row=row, phase=phase)

    def save(self, **changes: Any) -> None:
        """Save the record with `changes` of its blocks, atomically."""
        self.record = self.record.replace(**changes)
        self.record.save(self.path)

    def describe(self, **blocks: Any) -> None:
        """Save the blocks that say what is trained and scored.

        Raises UserError if a run that has begun read a model or data set at another commit, or
        other files of the user's, than there are now.
        """
        if self.phases:
            there, here = _sources(self.record), _sources(self.record.replace(**blocks))
            for name in sorted(there.keys() & here.keys()):
                if there[name] != here[name]:
                    raise UserError(_moved(self.path, name, there[name], here[name]))
        self.save(**blocks)

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to the log of the run."""
        line = json.dumps({"time": provenance.now(), "event": kind, **facts})
        with (self.path / "events.jsonl").open("a") as handle:
            handle.write(line + "\n")

    def _clear(self) -> None:
        for name in OURS:
            target = self.path / name
            if name == ".lock":
                continue
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _refuse_foreign_files(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out names a directory")
        foreign = sorted(p.name for p in self.path.iterdir() if p.name not in OURS)
        if foreign and not (self.path / "record.json").exists():
            raise UserError(
                f"{self.path} holds files that are not a run ({foreign[0]}); "
                "choose an empty or new directory for --out"
            )

    def _refuse_other_configuration(self, new: Record) -> None:
        there, here = _run_config(self.record), _run_config(new)
        differ = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        if differ:
            named = ", ".join(f"{k} {there.get(k)!r} there, {here.get(k)!r} here" for k in differ)
            raise UserError(
                f"{self.path} holds a run of another configuration ({named}); "
                "choose another --out, or --fresh to delete it and start anew"
            )

    def _refuse_other_packages(self, new: Record) -> None:
        """Keep all rows of a run scored by one version of every package that moves a number."""
        if self.record.status != "partial" or not self.phases:
            return
        there, here = _packages(self.record), _packages(new)
        differ = [name for name in there if there[name] != here.get(name)]
        if differ:
            named = ", ".join(f"{k} {there[k]} there, {here.get(k)} here" for k in differ)
            raise UserError(
                f"{self.path} holds an interrupted run of other versions ({named}); install "
                "those, or choose another --out, or --fresh to delete it and start anew"
            )


def _packages(record: Record) -> dict[str, str | None]:
    return cast(dict[str, "str | None"], record.provenance.get("packages", {}))


def _run_config(record: Record) -> dict[str, Any]:
    return _flat(cast(dict[str, Any], (record.config.model_extra or {}).get("run", {})))


def _sources(record: Record) -> dict[str, dict[str, Any]]:
    """Return which commit and files a run read of each model and data set, by its name."""
    blocks = record.model_dump(mode="json", include={"model", "data", "evals"})
    return {
        " ".join(str(source[key]) for key in ("id", "config", "split") if source.get(key)): source
        for source in _nested(blocks, "sources")
    }


def _nested(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the entries of all lists called `name` in a JSON value."""
    if isinstance(value, list):
        return [found for entry in value for found in _nested(entry, name)]
    if not isinstance(value, dict):
        return []
    inside = [found for key in value if key != name for found in _nested(value[key], name)]
    return [*value.get(name, []), *inside]


def _moved(path: Path, name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    at, now = there["revision"], here["revision"]
    how = f"at commit {at}, and it is at {now} now" if at != now else "whose files have changed"
    return (
        f"{path} holds an interrupted run that read {name} {how}; choose another --out, or "
        "--fresh to delete it and start anew"
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
