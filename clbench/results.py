"""The record of a run and its per-item outcomes: strict JSON, written atomically."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from clbench.digests import canonical_json, check_finite, digest, items_digest
from clbench.errors import UserError
from clbench.matrix import Cell, Metric, References, Schedule, ScoreMatrix

__all__ = [
    "Cell",
    "Metric",
    "Record",
    "References",
    "ScoreMatrix",
    "canonical_json",
    "check_writable",
    "differences",
    "digest",
    "has_items",
    "items_digest",
    "items_path",
    "read_items",
    "schema_text",
    "write_atomic",
    "write_items",
]

SCHEMA_VERSION = 1
FORMAT = "clbench.record"
RECORD_FILE = "record.json"
Status = Literal["complete", "partial", "diverged", "failed", "refused"]
# The only parts of the comparison key's blocks that two comparable runs may differ in. The
# digests of rows, items and weights say what was read; `sources` say where, and `asked_as` and
# `example_row` show it.
NOT_COMPARED = frozenset(
    {
        "leak",
        "batch_agreement",
        "engine_agreement",
        "code_check",
        "seconds",
        "sources",
        "asked_as",
        "example_row",
    }
)
COMPARED_CONFIG = ("stream", "schedule", "token_budget", "targets", "trials")


class Block(BaseModel):
    """A block of the record: the named fields are checked, further ones are any JSON."""

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )
    __pydantic_extra__: dict[str, JsonValue]


class Identity(Block):
    """Which run this is and what made it. Times are UTC, ISO 8601."""

    run_id: str
    suite_version: str
    commit: str | None = None
    dirty: bool | None = None
    started: str | None = None
    finished: str | None = None


class ConfigBlock(Block):
    """What was asked for; of it the stream, schedule, budget, targets and trials are compared."""

    stream: str
    strategy: str
    strategy_version: str | None = None
    params: dict[str, JsonValue] = {}
    seed: int = 0
    order: tuple[int, ...] | None = None
    schedule: Schedule = "full"
    token_budget: JsonValue = None
    targets: JsonValue = None
    trials: int = 1


class ModelBlock(Block):
    """The base model; every field is compared."""

    id: str
    revision: str | None = None
    weights_digest: str | None = None
    tokenizer_digest: str | None = None
    chat_template_digest: str | None = None
    dtype: str
    parameters: int | None = None


class EvalBlock(Block):
    """How one eval was run and read; `metric` is the pinned key, "metric,filter"."""

    version: int
    metric: str
    task_digest: str | None = None
    chance: float = 0.0
    group: str | None = None  # the kind of ability of a world eval, for the deltas by group


class Clean(Block):
    """The run on the items that nothing it was trained on holds, where an eval leaks.

    The matrix and its metrics are what is ranked of such a run; `left_out` counts the other items.
    """

    left_out: dict[str, int]
    matrix: ScoreMatrix
    metrics: dict[str, Metric]


class Record(BaseModel):
    """Everything known about one run, enough to re-score and re-rank it without the model."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    format: Literal["clbench.record"] = "clbench.record"
    schema_version: Literal[1] = 1
    identity: Identity
    config: ConfigBlock
    model: ModelBlock
    data: dict[str, JsonValue] = {}
    evals: dict[str, EvalBlock] = {}
    matrix: ScoreMatrix
    references: References = References()
    trace: JsonValue = None
    metrics: dict[str, Metric] = {}
    clean: Clean | None = Field(default=None, exclude_if=lambda value: value is None)
    cost: dict[str, JsonValue] = {}
    provenance: dict[str, JsonValue] = {}
    status: Status = "partial"  # until it is complete
    flags: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> Self:
        """Return the record with some blocks changed, validated again."""
        return type(self).model_validate(
            {name: getattr(self, name) for name in self.model_fields_set} | changes
        )

    def metric_key(self, eval_id: str) -> str:
        """Return the pinned "metric,filter" of an eval, empty where the record names none."""
        return self.evals[eval_id].metric if eval_id in self.evals else ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON with its digest; raises ValueError for NaN or infinity."""
        value = self.model_dump(mode="json")
        check_finite(value, "record")
        return value | {"record_digest": digest(value)}

    def record_digest(self) -> str:
        """Return the digest of everything but itself."""
        return str(self.to_json()["record_digest"])

    def compared(self) -> dict[str, Any]:
        """Return what two runs must share to stand on one board: the content of the key."""
        value = self.model_dump(mode="json")
        config = {name: value["config"][name] for name in COMPARED_CONFIG}
        parts = {name: value[name] for name in ("model", "data", "evals")}
        compared = without({"config": config} | parts, NOT_COMPARED)
        assert isinstance(compared, dict)
        return compared

    def comparison_key(self) -> str:
        """Return the digest shared by runs that differ only in strategy, seed and order."""
        return digest(self.compared())

    def save(self, directory: str | Path) -> Path:
        """Write `record.json` atomically and return its path."""
        path = Path(directory) / RECORD_FILE
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(path, text + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record from its file or directory.

        Raises UserError when there is none, or when it is not strict JSON, not a record of
        this suite, of a newer schema, incomplete, or changed after it was written.
        """
        path = Path(path)
        path = path / RECORD_FILE if path.is_dir() else path
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path} is no clbench record: its format is not {FORMAT!r}")
        version = value.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path} has record schema {version!r}; this clbench reads {SCHEMA_VERSION}"
            )
        stored = value.pop("record_digest", None)
        if stored != digest(value):
            raise UserError(f"{path} was changed after it was written: its digest does not match")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path} is no valid record: {where}: {first['msg']}") from None


def without(value: Any, names: frozenset[str]) -> Any:
    """Return a JSON value without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: without(entry, names) for key, entry in value.items() if key not in names}
    return [without(entry, names) for entry in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the dotted paths at which two JSON values differ, in order."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted(set(a) | set(b)):
            path = f"{where}.{key}" if where else str(key)
            if key not in a or key not in b:
                found.append(path)
            else:
                found += differences(a[key], b[key], path)
        return found
    return [] if canonical_json(a) == canonical_json(b) else [where]


def schema_text() -> str:
    """Return the JSON schema of the record, as published in `docs/record.schema.json`."""
    schema = Record.model_json_schema(mode="serialization")
    schema["properties"]["record_digest"] = {
        "type": "string",
        "description": "BLAKE2b-256 of the canonical JSON of everything else.",
    }
    schema["required"] = sorted({*schema["properties"]} - {"clean"})  # only where an eval leaks
    schema["$id"] = f"clbench/record/{SCHEMA_VERSION}"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Raise UserError where a folder cannot be made or written into; nothing is left there."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{what} {str(folder)!r} cannot be written ({error.strerror}); {remedy}"
        ) from error


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file so that at every instant the old or the new content is there, whole.

    Raises UserError, leaving nothing behind, when the disk is full.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left to write {path}, which needs {len(data):,} bytes; "
                "free some and run the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename in a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """Read strict JSON; raises UserError in one sentence where it is not."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return parse_json(text, str(path))


def parse_json(text: str, name: str) -> Any:
    """Parse strict JSON, refusing NaN and infinities, with `name` in the error."""
    try:
        value = json.loads(text)
        check_finite(value, "value")
    except ValueError as error:
        raise UserError(f"{name} is not strict JSON: {error}") from None
    return value


def items_path(run_dir: str | Path, row: int | str, eval_id: str) -> Path:
    """Return where the items of one row and eval lie; a reference's row is its name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", eval_id):
        raise ValueError(f"eval id {eval_id!r} cannot be part of a file name")
    return Path(run_dir) / "items" / f"{row}.{eval_id}.jsonl"


def has_items(run_dir: str | Path, row: int | str, eval_id: str) -> bool:
    """Return whether the items of one row and eval are on disk."""
    return items_path(run_dir, row, eval_id).exists()


def write_items(
    run_dir: str | Path, row: int | str, eval_id: str, items: Sequence[Mapping[str, Any]]
) -> Path:
    """Write one JSON object per item, sorted by id, atomically; raises ValueError for NaN."""
    path = items_path(run_dir, row, eval_id)
    ordered = sorted(items, key=lambda item: str(item["id"]))
    write_atomic(path, "".join(canonical_json(item) + "\n" for item in ordered))
    return path


def read_items(run_dir: str | Path, row: int | str, eval_id: str) -> list[dict[str, Any]]:
    """Read the items of one row and eval; raises UserError where missing or corrupt."""
    path = items_path(run_dir, row, eval_id)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a text may hold U+2028
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    items = [parse_json(line, f"line {n} of {path}") for n, line in enumerate(lines, start=1)]
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or "id" not in item:
            raise UserError(f"line {number} of {path} is no item: it has no id")
    return items
