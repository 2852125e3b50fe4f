"""Where rows come from (DataSet) and how a row becomes text (Template), as plain values."""

from __future__ import annotations

import functools
import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

from clbench.errors import UserError
from clbench.task import Row

Values = Mapping[str, Any]
MOST_HELD_OUT = 200


@dataclass(frozen=True)
class DataSet:
    """One split of a data set, by name; `clbench.hub.Hub` finds, pins and reads it.

    `place` says what `id` is: a repository of the hub; a file (JSON Lines, JSON, CSV or Parquet)
    of the user's; or the name of a published folder, whose files lie under `--data-dir`.
    `files` are patterns inside the repository or folder; without them a repository's own
    configuration `config` says which files make `split`. `draw` is for files that are sorted by
    class and for protocols that score a sample: at most so many records, drawn by a fixed seed
    and in the order drawn, so that the first of them are a draw too. `part` divides what is both
    trained on and scored: "held_out" is its last tenth, at most `MOST_HELD_OUT` records, and
    "kept" is what comes before.
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
    base: str = ""  # the folder that the path of a file is relative to
    part: Literal["all", "kept", "held_out"] = "all"

    def chosen(self, num_records: int) -> Sequence[int]:
        """Return the positions that are used of so many records, in order of use."""
        drawn: Sequence[int] = range(num_records)
        if self.draw is not None:
            chosen = random.Random(f"{self.id}|{self.split}")
            drawn = chosen.sample(drawn, min(self.draw, num_records))
        start = len(drawn) - min(max(1, len(drawn) // 10), MOST_HELD_OUT)
        return {"all": drawn, "kept": drawn[:start], "held_out": drawn[start:]}[self.part]

    @property
    def name(self) -> str:
        """Return what messages call it, e.g. "openai/gsm8k (main, train)"."""
        if self.place == "file":
            return self.id
        return f"{self.id} ({', '.join(part for part in (self.config, self.split) if part)})"

    def identity(self) -> dict[str, Any]:
        """Return, ready for JSON, which records these are, beside the files."""
        return {
            "id": self.id,
            "config": self.config,
            "split": self.split,
            "draw": self.draw,
            "part": self.part,
            "columns": list(self.columns),
            "license": self.license,
        }


def data_file(base: str | Path, name: str) -> Path:
    """Return the path of a file of the user's; raises UserError where it is none."""
    path = Path(base) / Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder, and data names a file in one")
    if not path.is_file():
        raise UserError(f"there is no data file {str(path)!r}")
    return path


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
            found |= dict.fromkeys(fields_of(text))
        return tuple(found)

    def check(self) -> None:
        """Raise UserError for a template that teaches nothing: an answer without a column."""
        self.columns()
        if not fields_of(self.answer):
            raise UserError(f"the answer template {self.answer!r} names no column of the data")

    def row(self, row_id: str, values: Values) -> Row:
        """Return the training row of one record; its answer is empty if all columns of it are."""
        prompt, answer, request = (
            text.format_map(values) for text in (self.prompt, self.answer, self.request)
        )
        empty = all(str(values[name]).strip() == "" for name in fields_of(self.answer))
        return Row(row_id, prompt, "" if empty else answer, request)


@dataclass(frozen=True)
class Columns:
    """Makes of a record the values that templates name.

    `names` maps each of them to its column. That of the answer, where the answer names one alone,
    may hold a list of right texts, of which the first is learned; and with `options`, texts or
    the column that holds them, the position of one of them from 0.
    """

    data: str  # what messages call the data set
    names: Mapping[str, str]
    answer: str | None = None
    options: tuple[str, ...] | str = ()

    def __call__(self, record: Values) -> Values:
        """Return the values by name, "" for an answer that is empty.

        Raises UserError for another value that is missing, and for one that is no text.
        """
        values = {name: self._text(record, name) for name in self.names if name != self.answer}
        if self.answer is None:
            return values
        return {**values, self.answer: next(iter(self.accepted(record)), "")}

    def accepted(self, record: Values) -> tuple[str, ...]:
        """Return the right texts of the answer's column: none where it is empty."""
        assert self.answer is not None
        value = record[self.names[self.answer]]
        listed = value if isinstance(value, list) else [value]
        texts = [text for text in listed if text is not None and str(text).strip()]
        if not self.options:
            return tuple(str(text) for text in texts)
        choices = self.choices(record)
        return tuple(choices[self._position(record, text, choices)] for text in texts)

    def choices(self, record: Values) -> tuple[str, ...]:
        """Return the options of a record."""
        if isinstance(self.options, tuple):
            return self.options
        found = record[self.options]
        if not isinstance(found, list) or not found:
            raise self._wrong(record, f"holds no list of options in {self.options!r}")
        return tuple(str(option) for option in found)

    def _position(self, record: Values, value: Any, choices: Sequence[str]) -> int:
        if str(value) in choices:
            return choices.index(str(value))
        if str(value).isdigit() and int(value) < len(choices):
            return int(value)
        raise self._wrong(record, f"answers {value!r}; choices: {', '.join(choices)}")

    def _text(self, record: Values, name: str) -> Any:
        value = record[self.names[name]]
        if value is None:
            raise self._wrong(record, f"has no {self.names[name]!r}")
        if isinstance(value, list | dict):
            raise self._wrong(record, f"holds no text in {self.names[name]!r}")
        return value

    def _wrong(self, record: Values, what: str) -> UserError:
        return UserError(f"a record of data set {self.data} {what}: {str(record)[:80]}")


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
        prepare = self.prepare
        return self.data.identity() | {
            "template": asdict(self.template),
            "limit": self.limit,
            "version": self.version,
            "prepare": json.loads(json.dumps(asdict(prepare))) if is_dataclass(prepare) else None,
        }


@dataclass(frozen=True)
class Texts:
    """Calibration text that is generated, under the name that records give it."""

    id: str
    read: Callable[[], Sequence[str]]

    def __call__(self) -> Sequence[str]:
        """Return the texts."""
        return self.read()


@functools.cache  # asked for every row
def fields_of(text: str) -> tuple[str, ...]:
    """Return the columns that a text names, in order; raises UserError for a malformed text."""
    try:
        fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        raise UserError(f"the template {text!r} is malformed: {error}") from None
    for _, name, form, conversion in fields:
        if not str(name).isidentifier():
            raise UserError(f"the template {text!r} holds {{{name}}}, which is no column name")
        if form or conversion:
            raise UserError(
                f"the template {text!r} formats column {name}, which is written as it is; "
                f"write {{{name}}} alone"
            )
    return tuple(str(name) for _, name, _, _ in fields)
