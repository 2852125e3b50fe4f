"""The lock: which commit and which bytes of every model and data set a run may use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from clbench.digests import digest
from clbench.errors import UserError
from clbench.results import read_json, write_atomic

FORMAT = "clbench.lock"
SCHEMA_VERSION = 1
UNSTATED = "not stated"
Kind = Literal["model", "dataset", "file", "folder"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LockedFile(_Value):
    """One file: its bytes and the SHA-256 of them."""

    size: int
    sha256: str


class Entry(_Value):
    """One model or data set at one commit, with every file that was fetched of it."""

    kind: Kind
    id: str
    asked: str = "main"  # the revision that was asked for
    revision: str | None = None  # the commit that it was; None for files of the user's
    license: str = UNSTATED
    files: dict[str, LockedFile] = {}
    # "config/split" -> the files that the repository's own configuration names for it
    splits: dict[str, list[str]] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what an entry is found by."""
        return self.kind, self.id, self.asked

    def joined(self, other: Entry) -> Entry:
        """Return both entries' files; those of another commit are left behind."""
        if self.revision != other.revision:
            return other
        files, splits = self.files | other.files, self.splits | other.splits
        return other.model_copy(update={"files": files, "splits": splits})


class Lock(_Value):
    """All entries, in the order of their keys; a plain value that is written as strict JSON."""

    entries: tuple[Entry, ...] = ()

    def find(self, kind: str, name: str, asked: str) -> Entry | None:
        """Return the entry of a revision that was asked for, or of a commit by itself."""
        for entry in self.entries:
            if (entry.kind, entry.id) == (kind, name) and asked in (entry.asked, entry.revision):
                return entry
        return None

    def merged(self, new: Mapping[tuple[str, str, str], Entry]) -> Lock:
        """Return the lock with entries added; those of the same commit keep their files."""
        entries = {entry.key: entry for entry in self.entries}
        for key, entry in new.items():
            entries[key] = entries[key].joined(entry) if key in entries else entry
        return Lock(entries=tuple(entries[key] for key in sorted(entries)))

    def digest(self) -> str:
        """Return the digest that the record of a locked run names."""
        return digest(self.model_dump(mode="json"))

    def save(self, path: Path) -> None:
        """Write the lock atomically."""
        head: dict[str, Any] = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
        value = head | self.model_dump(mode="json")
        write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a lock; raises UserError where there is none, or for what is no lock."""
        value = read_json(path)
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise UserError(f"{path} is no clbench lock: its format is not {FORMAT!r}")
        version = value.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has lock schema {version!r}; this clbench reads 1")
        try:
            return cls.model_validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path} is no valid lock: {where}: {first['msg']}") from None


def readable(num_bytes: float) -> str:
    """Return bytes as a reader wants them: "812 B", "36 kB", "1.2 MB", "13.5 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB" if num_bytes >= 1e3 else f"{num_bytes:.0f} B"
