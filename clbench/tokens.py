"""Examples as arrays on disk: written once, mapped into memory, made into objects when asked for.

A folder holds `ids.bin`, the tokens of all examples one after another (little-endian int32);
`spans.npy`, per example where its tokens start and how many there are, how many of them are the
prompt, and the number of its row; and `facts.json`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from clbench.digests import canonical_json
from clbench.errors import UserError
from clbench.results import sync_directory
from clbench.strategy import Example

Integers = NDArray[np.int64]

ID = np.dtype("<i4")
BUFFERED = 1 << 20  # tokens held before they are written


class Tokens(Sequence[Example]):
    """The tokenized examples of one task: a prompt without loss, then an answer with it.

    `spans` is (examples, 4): start in `ids`, tokens, prompt tokens, number of the row. `facts`
    says what became of the rows: `num_rows`, `num_empty`, `num_too_long`, `rows_digest`.
    """

    def __init__(
        self, task: str, ids: NDArray[np.int32], spans: Integers, facts: Mapping[str, Any]
    ) -> None:
        self.task, self.ids, self.spans, self.facts = task, ids, spans, facts

    @property
    def lengths(self) -> Integers:
        """Return the number of tokens of each example (examples,)."""
        return self.spans[:, 1]

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens."""
        return int(self.lengths.sum())

    @property
    def num_labels(self) -> int:
        """Return the number of tokens with a loss; a first token has none."""
        return int((self.lengths - np.maximum(self.spans[:, 2], 1)).sum())

    def without(self, rows: Collection[int]) -> Tokens:
        """Return the examples but for those of some rows, by their numbers."""
        left = ~np.isin(self.spans[:, 3], list(rows))
        return Tokens(self.task, self.ids, self.spans[left], self.facts)

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start, length, prompt, _ = self.spans[at].tolist()
        ids = tuple(self.ids[start : start + length].tolist())
        mask = (False,) * prompt + (True,) * (length - prompt)
        return Example(ids, mask, self.task, at % len(self))

    def __iter__(self) -> Iterator[Example]:
        return (self[at] for at in range(len(self)))


class Writer:
    """Takes the examples of one folder, a bounded number of tokens in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = open(folder / "ids.bin", "xb")  # noqa: SIM115 - `writing` closes it
        self._ids = array("i")
        self._spans: list[tuple[int, int, int, int]] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, prompt: Sequence[int], answer: Sequence[int], row: int) -> None:
        """Append one example; `row` is the number of the row that it was made of."""
        length = len(prompt) + len(answer)
        self._spans.append((self._size, length, len(prompt), row))
        self._size += length
        self._ids.extend(prompt)
        self._ids.extend(answer)
        if len(self._ids) >= BUFFERED:
            self._flush()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write what is left and make all of it durable."""
        self._flush()
        with _on_disk(self.folder):
            _sync(self._file)
            with open(self.folder / "spans.npy", "xb") as file:
                np.save(file, np.array(self._spans, dtype=np.int64).reshape(-1, 4))
                _sync(file)
            with open(self.folder / "facts.json", "xb") as file:
                file.write(canonical_json({**facts, "num_ids": self._size}).encode())
                _sync(file)

    def close(self) -> None:
        """Let go of the file, whatever was written."""
        self._file.close()

    def _flush(self) -> None:
        with _on_disk(self.folder):
            self._file.write(np.asarray(self._ids, dtype=ID).tobytes())
        self._ids = array("i")


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Give a writer whose folder takes its name only when everything is on disk.

    What fails leaves nothing behind. Raises UserError where the cache cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    try:
        with _on_disk(unfinished):
            unfinished.mkdir(parents=True)
            writer = Writer(unfinished)
        with closing(writer):
            yield writer
        with _on_disk(unfinished):
            try:
                os.rename(unfinished, folder)
            except OSError:
                if not folder.exists():  # else another run has written the same
                    raise
            sync_directory(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"tokens cannot be kept under {str(folder.parent)!r}: {error.strerror}; free some "
            "space, or let CLBENCH_CACHE name another folder"
        ) from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def load(folder: Path, task: str) -> Tokens | None:
    """Return the examples of a folder, mapped; None where there is none or a file is damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_bytes())
        spans = np.load(folder / "spans.npy")
        if (folder / "ids.bin").stat().st_size != ID.itemsize * facts["num_ids"]:
            raise ValueError("the tokens are not all there")
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        shutil.rmtree(folder)
        return None
    return Tokens(task, np.memmap(folder / "ids.bin", dtype=ID, mode="r"), spans, facts)
