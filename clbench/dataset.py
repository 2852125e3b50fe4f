"""Where rows come from (DataSet) and how a row becomes text (Template), as plain values."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from clbench.errors import UserError
from clbench.task import Row

Values = Mapping[str, Any]


@dataclass(frozen=True)
class DataSet:
    """One split of a data set, by name; `clbench.hub.Hub` finds, pins and reads it.

    `place` says what `id` is: a repository of the hub; a file (JSON Lines, JSON, CSV or Parquet)
    of the user's; or the name of a published folder, whose files lie under `--data-dir`.
    `files` are patterns inside the repository or folder; without them a repository's own
    configuration `config` says which files make `split`. `draw` is for files that are sorted by
    class and for protocols that score a sample: at most so many records, drawn by a fixed seed
    and in the order drawn, so that the first of them are a draw too.
    """

    id: str
    split: str = "train"
    config: str | None = None
    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # what is used; one that is missing is an error
    revision: str | None = None  # None is the newest; the commit that was used is recorded
    license: str = "not stated"
    place: Literal["hub", "file", "folder"] = "hub"
    draw: int | None = None

    def drawn(self, num_records: int) -> Sequence[int]:
        """Return the positions that are used of so many records."""
        if self.draw is None:
            return range(num_records)
        chosen = random.Random(f"{self.id}|{self.split}")
        return chosen.sample(range(num_records), min(self.draw, num_records))

    @property
    def name(self) -> str:
        """Return what messages call it, e.g. "openai/gsm8k (main, train)"."""
        if self.place == "file":
            return self.id
        return f"{self.id} ({', '.join(part for part in (self.config, self.split) if part)})"


@dataclass(frozen=True)
class Template:
    """Texts with {column} in them, as `str.format` writes them; {{ and }} are braces.

    `request` is what a chat template wraps in place of `prompt`; without one it wraps the prompt.
    """

    prompt: str
    answer: str
    request: str = ""

    def columns(self) -> tuple[str, ...]:
        """Return the columns that the texts name, in order; raises UserError for a bad text."""
        found: dict[str, None] = {}
        for text in (self.prompt, self.answer, self.request):
            found |= dict.fromkeys(_fields(text))
        return tuple(found)

    def check(self) -> None:
        """Raise UserError for a template that teaches nothing: an answer without a column."""
        self.columns()
        if not _fields(self.answer):
            raise UserError(f"the answer template {self.answer!r} names no column of the data")

    def row(self, row_id: str, values: Values) -> Row:
        """Return the training row of one record of the data."""
        texts = (self.prompt, self.answer, self.request)
        return Row(row_id, *(text.format_map(values) for text in texts))


@dataclass(frozen=True)
class Source:
    """Texts made from a data set: the training rows of a task, or what a calibration reads.

    `prepare` derives what the template names from a record, and returns None to leave one out;
    a change of what it does is a new `version`.
    """

    data: DataSet
    template: Template
    prepare: Callable[[Values], Values | None] | None = None
    limit: int | None = None  # the first records used, in the order of the files
    version: int = 1

    def identity(self) -> dict[str, Any]:
        """Return, ready for JSON, what decides the rows beside the files."""
        return {
            "id": self.data.id,
            "config": self.data.config,
            "split": self.data.split,
            "draw": self.data.draw,
            "columns": list(self.data.columns),
            "license": self.data.license,
            "template": asdict(self.template),
            "limit": self.limit,
            "version": self.version,
        }


def _fields(text: str) -> tuple[str, ...]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise UserError(f"the template {text!r} is malformed: {error}") from None
    for name in names:
        if not name.isidentifier():
            raise UserError(f"the template {text!r} holds {{{name}}}, which is no column name")
    return tuple(names)
