"""Data sets on disk: found on the hub, in a file or in a folder, and read as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from clbench.dataset import DataSet, Source
from clbench.errors import UserError, unknown
from clbench.task import Row

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
BATCH = 1000  # records read at a time


class Found(NamedTuple):
    """The files of one split, and the commit they are of; None for files of the user's."""

    names: tuple[str, ...]  # as the repository or folder has them
    paths: tuple[Path, ...]
    revision: str | None


class Hub:
    """Finds and reads the data sets of one run, each once; what was used is kept for the record."""

    def __init__(self, *, data_dir: Path | None = None) -> None:
        self.data_dir = data_dir
        self._found: dict[DataSet, Found] = {}

    def find(self, data: DataSet) -> Found:
        """Return the files of a data set, fetched if they are not there; raises UserError."""
        if data not in self._found:
            finders = {"hub": self._fetch, "file": self._file, "folder": self._folder}
            self._found[data] = finders[data.place](data)
        return self._found[data]

    def table(self, data: DataSet | Sequence[DataSet]) -> Any:
        """Return the records as a memory-mapped `datasets.Dataset`; several are concatenated.

        Raises UserError for a file that cannot be read, a missing column and an empty split.
        """
        if not isinstance(data, DataSet):
            return datasets.concatenate_datasets([self.table(part) for part in data])
        paths = self.find(data).paths
        reader = READERS.get(paths[0].suffix)
        if reader is None:
            raise UserError(
                f"data set {data.name} holds {paths[0].name}; choices of its kind: "
                f"{', '.join(READERS)}"
            )
        try:
            table: Any = datasets.load_dataset(
                reader, data_files=[str(path) for path in paths], split="train"
            )
        except Exception as error:  # a damaged file may fail in any way
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(f"data set {data.name} cannot be read: {reason}") from error
        if len(table) == 0:
            raise UserError(f"data set {data.name} is empty")
        for column in data.columns:
            if column not in table.column_names:
                raise unknown(f"column of data set {data.name}", column, table.column_names)
        return table

    def rows(self, source: Source) -> tuple[Row, ...]:
        """Return the rows of a source; raises UserError where there are none."""
        return tuple(self.iter_rows(source))

    def iter_rows(self, source: Source) -> Iterator[Row]:
        """Yield the rows of a source, a few records in memory; raises UserError for none."""
        source.template.check()
        table, columns = self.table(source.data), source.template.columns()
        if source.prepare is None:
            for column in columns:
                if column not in table.column_names:
                    raise unknown(
                        f"column of data set {source.data.name}", column, table.column_names
                    )
            table = table.select_columns(list(columns))
        if source.limit is not None:
            table = table.select(range(min(source.limit, len(table))))
        found = False
        for number, record in enumerate(_records(table)):
            values = record if source.prepare is None else source.prepare(record)
            if values is not None:
                found = True
                texts = {name: "" if v is None else v for name, v in values.items()}
                yield source.template.row(f"{source.data.id}/{number}", texts)
        if not found:
            raise UserError(f"data set {source.data.name} has no usable row")

    def _fetch(self, data: DataSet) -> Found:
        from huggingface_hub import snapshot_download

        root = Path(
            snapshot_download(
                data.id,
                repo_type="dataset",
                revision=data.revision,
                allow_patterns=list(data.files),
            )
        )
        return Found(*self._matching(data, root), revision=root.name)

    def _file(self, data: DataSet) -> Found:
        path = Path(data.id).expanduser()
        if not path.is_file():
            raise UserError(f"there is no data file {data.id!r}")
        return Found((data.id,), (path,), None)

    def _folder(self, data: DataSet) -> Found:
        if self.data_dir is None:
            raise UserError(
                f"data set {data.id} is a folder that you have to fetch: give --data-dir"
            )
        if not self.data_dir.is_dir():
            raise UserError(f"there is no folder {str(self.data_dir)!r}")
        return Found(*self._matching(data, self.data_dir), revision=None)

    def _matching(self, data: DataSet, root: Path) -> tuple[tuple[str, ...], tuple[Path, ...]]:
        everything = sorted(
            path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
        )
        names = tuple(n for n in everything if any(fnmatchcase(n, p) for p in data.files))
        if not names:
            raise UserError(f"data set {data.name} has no file {' or '.join(data.files)}")
        return names, tuple(root / name for name in names)


def _records(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the records of a table; whole batches are read much faster than one at a time."""
    for batch in table.iter(BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
