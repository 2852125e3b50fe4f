"""Data sets on disk: found on the hub, in a file or in a folder, and read as tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.parquet

from clbench.config import RunConfig
from clbench.dataset import DataSet, Source, data_file
from clbench.errors import UserError, unknown
from clbench.hubcache import Repository, fingerprint
from clbench.jsonlines import as_lines
from clbench.lock import Entry, Lock
from clbench.repositories import Repositories
from clbench.task import Row

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
PACKED = (".gz", ".bz2", ".xz", ".zst")
CARDS = ("README.md", ".huggingface.yaml")  # where a repository says which files make a split
BATCH = 1000  # records read at a time


class Found(NamedTuple):
    """The files of one split, and the commit they are of; None for files of the user's."""

    names: tuple[str, ...]  # as the repository or folder has them
    paths: tuple[Path, ...]
    revision: str | None


class Hub:
    """Finds and reads the data sets of one run, each once; what was used is kept for the record."""

    def __init__(
        self, repositories: Repositories | None = None, *, data_dir: Path | None = None
    ) -> None:
        self.repositories = repositories or Repositories()
        self.data_dir = data_dir
        self._found: dict[DataSet, Found] = {}

    def find(self, data: DataSet) -> Found:
        """Return the files of a data set, fetched if they are not there; raises UserError."""
        if data not in self._found:
            finders = {"hub": self._fetch, "file": self._file, "folder": self._folder}
            self._found[data] = finders[data.place](data)
        return self._found[data]

    def sources(self, *data: DataSet) -> list[dict[str, Any]]:
        """Return, for the record, which commit and files each data set was read from."""
        return [self._source(each) for each in dict.fromkeys(data)]

    def _source(self, data: DataSet) -> dict[str, Any]:
        found = self.find(data)
        files = zip(found.names, found.paths, strict=True)
        held = {name: fingerprint(path).model_dump() for name, path in files}
        return data.identity() | {"revision": found.revision, "files": held}

    def table(self, data: DataSet | Sequence[DataSet]) -> Any:
        """Return the records as a memory-mapped `datasets.Dataset`; several are concatenated.

        Raises UserError for a file that cannot be read, a missing column and an empty split.
        """
        if not isinstance(data, DataSet):
            return datasets.concatenate_datasets([self.table(part) for part in data])
        paths = self.find(data).paths
        kind = next(part for part in (*reversed(paths[0].suffixes), "") if part not in PACKED)
        if kind not in READERS:
            raise UserError(
                f"data set {data.name} holds {paths[0].name}; choices of its kind: "
                f"{', '.join(READERS)}"
            )
        options = {"sep": "\t"} if kind == ".tsv" else {}
        if not any(path.stat().st_size for path in paths):
            raise UserError(f"data set {data.name} is empty")
        try:
            full = [str(_lines(path)) for path in paths if _holds_rows(path)]
            if not full:
                raise UserError(f"data set {data.name} is empty")
            table: Any = datasets.load_dataset(
                READERS[kind], data_files=full, split="train", **options
            )
        except UserError:
            raise
        except Exception as error:  # a damaged file may fail in any way
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(f"data set {data.name} cannot be read: {reason}") from error
        if len(table) == 0:
            raise UserError(f"data set {data.name} is empty")
        for column in data.columns:
            if column not in table.column_names:
                raise unknown(f"column of data set {data.name}", column, table.column_names)
        for column, feature in table.features.items():
            if isinstance(feature, datasets.Image):  # seen to be there or not, never looked at
                table = table.cast_column(column, datasets.Image(decode=False))
        chosen = data.chosen(len(table))
        if not chosen:
            raise UserError(f"data set {data.name} has one record, too few to hold some out")
        return table if chosen == range(len(table)) else table.select(chosen)

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

    def wanted(self, data: DataSet) -> tuple[Repository, list[str]]:
        """Return the repository of a data set of the hub, and which of its files make it."""
        repo = Repository("dataset", data.id, data.revision or "main")
        if data.files:
            return repo, _matching(data, self.repositories.names(repo, data.files))
        return repo, self._configured(repo, data)

    def _fetch(self, data: DataSet) -> Found:
        repo, names = self.wanted(data)
        paths = self.repositories.fetch(repo, names)
        return Found(
            tuple(names), tuple(paths[name] for name in names), self.repositories.commit(repo)
        )

    def _configured(self, repo: Repository, data: DataSet) -> list[str]:
        """Return the files that the repository's own configuration names for a split."""
        key = f"{data.config or 'default'}/{data.split}"
        if self.repositories.locked:
            locked = self.repositories.entry(repo).splits
            if key not in locked:
                raise self.repositories.refusal(f"data set {data.name}")
            return locked[key]
        names = self.repositories.names(repo)
        script = f"{data.id.rpartition('/')[2]}.py"
        if script in names:
            raise UserError(
                f"data set {data.name} needs its own code {script}, which is not run; name the "
                "files to read, or use a copy of it that holds its rows as files"
            )
        cards = self.repositories.fetch(repo, [name for name in CARDS if name in names])
        found = _data_files(names, cards, data)
        commit = self.repositories.commit(repo)
        self.repositories.note(
            Entry(
                kind=repo.kind, id=repo.id, asked=repo.asked, revision=commit, splits={key: found}
            )
        )
        return found

    def _file(self, data: DataSet) -> Found:
        path = data_file(data.base, data.id)
        self.repositories.note_local("file", data.id, {path.name: path})
        return Found((path.name,), (path,), None)

    def _folder(self, data: DataSet) -> Found:
        if self.data_dir is None:
            raise UserError(
                f"data set {data.id} is a folder that you have to fetch: give --data-dir"
            )
        if not self.data_dir.is_dir():
            raise UserError(f"there is no folder {str(self.data_dir)!r}")
        everything = sorted(
            path.relative_to(self.data_dir).as_posix()
            for path in self.data_dir.rglob("*")
            if path.is_file()
        )
        paths = {name: self.data_dir / name for name in _matching(data, everything)}
        self.repositories.note_local("folder", data.id, paths)
        return Found(tuple(paths), tuple(paths.values()), None)


def check_data_dir(config: RunConfig, *data: DataSet) -> None:
    """Raise UserError for a folder that is given and that none of these data sets lies in."""
    if config.data_dir is not None and all(each.place != "folder" for each in data):
        raise UserError(
            f"--data-dir {config.data_dir!r} is given, and stream {config.stream} reads no data "
            "set that is published as a folder; leave it away"
        )


def open_hub(config: RunConfig) -> Hub:
    """Return what finds the data of a run, held to its lock if it is locked; raises UserError."""
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    if not config.locked:
        return Hub(data_dir=data_dir)
    remedy = f"clbench fetch --stream {config.stream} --model {config.model} --lock {config.lock}"
    path = Path(config.lock)
    if not path.exists():
        raise UserError(f"there is no lock {config.lock!r}; `{remedy}` writes it")
    return Hub(Repositories(Lock.load(path), locked=True, remedy=remedy), data_dir=data_dir)


def _matching(data: DataSet, names: Iterable[str]) -> list[str]:
    """Return the names that the patterns of a data set choose; each has to choose some."""
    known = list(names)
    for pattern in data.files:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"data set {data.name} has no file {pattern}")
    return [name for name in known if any(fnmatchcase(name, p) for p in data.files)]


def _holds_rows(path: Path) -> bool:
    """Tell whether a file has rows; the library cannot read one that has none."""
    if path.suffix == ".parquet":
        return int(pyarrow.parquet.read_metadata(path).num_rows) > 0
    with path.open("rb") as file:
        return file.read(64).strip() not in (b"", b"[]")


def _lines(path: Path) -> Path:
    """Return what the library reads in place of a file: a list of records as lines."""
    if path.suffix != ".json":
        return path
    return as_lines(path, Path(datasets.config.HF_DATASETS_CACHE) / "json-lines")


def _data_files(names: Sequence[str], cards: Mapping[str, Path], data: DataSet) -> list[str]:
    """Return which of the names make a split, as the `datasets` library reads the cards.

    It is shown a folder with the cards and empty files of these names, so that it asks nothing
    of the network, and answers for a commit that is only partly in the cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "data"
        for name in names:
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(cards[name].read_bytes() if name in cards else b"")
        try:
            _check_config(root, data)
            builder = datasets.load_dataset_builder(str(root), data.config, cache_dir=folder)
        except UserError:
            raise
        except Exception as error:  # what a card says may be wrong in any way
            reason = str(error).strip().partition("\n")[0].replace(str(root), data.id)
            raise UserError(f"data set {data.name} does not say its files: {reason}") from error
        splits = {str(split): files for split, files in builder.config.data_files.items()}
        if data.split not in splits:
            raise unknown(f"split of data set {data.id}", data.split, splits)
        return [Path(file).relative_to(root).as_posix() for file in splits[data.split]]


def _check_config(root: Path, data: DataSet) -> None:
    """Raise UserError for a configuration that a repository has not, or has to be told."""
    known = datasets.get_dataset_config_names(str(root))
    chosen = data.config or datasets.get_dataset_default_config_name(str(root))
    if chosen is None:
        raise UserError(
            f"data set {data.id} has several configurations and none is named; "
            f"give config; choices: {', '.join(known)}"
        )
    if chosen not in known:
        raise unknown(f"configuration of data set {data.id}", chosen, known)


def _records(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the records of a table; whole batches are read much faster than one at a time."""
    for batch in table.iter(BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
