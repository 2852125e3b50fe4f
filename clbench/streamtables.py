"""The format of a stream file: its tables and keys, as they are checked. Nothing is looked up."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from clbench.config import Checked
from clbench.errors import UserError, unknown
from clbench.scoring import SCORES

Count = Annotated[int, Field(ge=1, strict=True)]  # not "5"
Texts = tuple[str, ...]
OF_A_REPOSITORY = ("config", "split", "files", "revision")


class DataTable(Checked):
    """Where records come from: `data`, a file beside the stream file, or `hub`, a repository."""

    data: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    revision: str | None = None
    license: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)  # name in a template -> column

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.data is not None and self.hub is not None:
            raise ValueError("data and hub both say where the records are; give one of them")
        for key in OF_A_REPOSITORY:
            if self.data is not None and getattr(self, key) and not self._reads(key):
                raise ValueError(f"{key} belongs to hub, but data = {self.data!r} is a file")
        return self

    def _reads(self, key: str) -> bool:
        """Tell whether a file may have a key of repositories."""
        return False

    def check_place(self) -> None:
        """Raise ValueError where neither data nor hub is given."""
        if self.data is None and self.hub is None:
            raise ValueError('it has no records: give data = "FILE" or hub = "OWNER/NAME"')


class TextTable(DataTable):
    """Records, the texts made of them, and the options if the answer is one of several."""

    name: str | None = None
    prompt: str | None = None
    answer: str | None = None
    request: str = ""  # what a chat template wraps in place of the prompt
    options: Texts | str = ()  # texts, or the column that holds them

    @model_validator(mode="after")
    def _plain_name(self) -> Self:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", self.name):
            raise ValueError(f"name {self.name!r} may hold letters, digits, and _ . + - only")
        return self

    def check_texts(self) -> None:
        """Raise ValueError where a name, a prompt or an answer is missing."""
        for key in ("name", "prompt", "answer"):
            if not getattr(self, key):
                raise ValueError(f"{key} is missing")


class EvalTable(TextTable):
    """One eval: a registered one (`use`), one of lm-eval's, or a score of ours."""

    title: ClassVar[str] = "eval"

    use: str | None = None
    lm_eval: Annotated[str, Field(min_length=1)] | None = None
    metric: str | None = None  # the key under lm-eval's results, "metric,filter"
    shots: int | None = Field(default=None, ge=0, strict=True)  # None is what lm-eval's task says
    score: str | None = None
    stops: Texts | None = None
    new_tokens: Count | None = None
    chance: float | None = Field(default=None, ge=0, lt=1, strict=True)
    eval_limit: Count | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [key for key in ("use", "lm_eval", "score") if getattr(self, key) is not None]
        if len(ways) != 1:
            found = " and ".join(ways) or "nothing"
            raise ValueError(f"{found} says how it is scored; give one of use, lm_eval and score")
        source = {"name", "chance", "eval_limit", *DataTable.model_fields}
        refuse_beside(
            self,
            ways[0],
            {
                "use": {"eval_limit"},
                "lm_eval": {"metric", "shots", *source},
                "score": {*EvalTable.model_fields} - {"metric", "shots"},
            }[ways[0]],
        )
        if self.lm_eval is not None and self.metric is None:
            example = 'metric = "exact_match,none"'
            raise ValueError(f"lm_eval = {self.lm_eval!r} needs the key of its score: {example}")
        if self.stops is not None and "" in self.stops:
            raise ValueError("stops holds '', which would end every answer before it begins")
        if self.score is not None and self.score not in SCORES:
            raise unknown("score", self.score, SCORES)
        return self

    @property
    def held_out(self) -> bool:
        """Tell whether the eval is scored on records held out of its task's."""
        keys = ("data", "hub", *OF_A_REPOSITORY)
        return self.use is None and not any(getattr(self, key) for key in keys)

    def beside(self, task: TextTable) -> Self:
        """Return the eval with what it leaves unsaid taken from its task."""
        if self.use is not None:
            return self
        keys = {"license"} if self.score is None else {*TextTable.model_fields}
        keys -= {"data", "hub", *OF_A_REPOSITORY, "columns"}
        if self.prompt is not None:  # another question than the task's
            keys -= {"request"}
        if self.data is None and self.hub is None:
            keys |= {"data", "hub", *OF_A_REPOSITORY}
        found = task.model_dump(include=keys & task.model_fields_set)
        said = self.model_dump(include=self.model_fields_set)
        columns = {**task.columns, **self.columns}
        return self.of({**found, **said, "columns": columns}, f"tasks.{task.name}.eval")

    def _reads(self, key: str) -> bool:
        """Let a file stand for the split that one of lm-eval's tasks reads."""
        return key == "split" and self.lm_eval is not None


class TaskTable(TextTable):
    """One task: a registered one (`use`), or records with templates and evals."""

    title: ClassVar[str] = "task"

    use: str | None = None
    about: str = ""
    epochs: float | None = Field(
        default=None, gt=0, strict=True
    )  # for runs whose train.epochs is "task"
    train_limit: Count | None = None
    eval_limit: Count | None = None
    eval: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _used_or_written(self) -> Self:
        if self.use is not None:
            refuse_beside(self, "use", {"name", "epochs", "train_limit", "eval_limit"})
            return self
        self.check_place()
        self.check_texts()
        if not self.eval:
            raise ValueError("eval is missing: say how it is scored")
        return self

    @property
    def evals(self) -> list[EvalTable]:
        """Return the tables of its evals, what they leave unsaid taken from here."""
        tables = self.eval if isinstance(self.eval, list) else [self.eval]
        return [EvalTable.of(table, f"tasks.{self.name}.eval") for table in tables]


class CalibrationTable(DataTable):
    """World text of one's own: records and the text made of each."""

    title: ClassVar[str] = "calibration"

    text: str
    limit: Count | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        self.check_place()
        return self


class EditionTable(Checked):
    """The content of a stream in one choice of data."""

    title: ClassVar[str] = "stream"

    tasks: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    world: list[str | dict[str, Any]] = Field(default_factory=list)
    diagnostics: list[str] = Field(default_factory=list)  # registered evals that are no scores
    calibration: str | dict[str, Any] | None = None
    preset: str | None = None
    train_limit: Count | None = None  # of every task
    eval_limit: Count | None = None  # of every eval


class TopTable(Checked):
    """What stands at the top of a stream file beside the content of its only edition."""

    title: ClassVar[str] = "stream"

    about: str = ""
    notes: str = ""
    source: str | None = None
    editions: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | None = None


def refuse_beside(table: Checked, way: str, allowed: set[str]) -> None:
    """Raise ValueError for a key that does not go with another one."""
    for key in sorted(table.model_fields_set - allowed - {way}):
        raise ValueError(f"{key} does not go with {way} = {getattr(table, way)!r}")


def task_table(entry: str | dict[str, Any], at: int) -> TaskTable:
    """Return the checked table of a task, which a file may give by its name alone."""
    if isinstance(entry, str):
        return TaskTable(use=entry)
    return TaskTable.of(entry, f"tasks.{entry.get('name') or entry.get('use') or at}")


def world_table(entry: str | dict[str, Any], at: int) -> EvalTable:
    """Return the checked table of a world eval, which a file may give by its name alone."""
    if isinstance(entry, str):
        return EvalTable(use=entry)
    title = f"world.{entry.get('name') or entry.get('use') or at}"
    table = EvalTable.of(entry, title)
    try:
        if table.use is None:
            table.check_place()
        if table.score is not None:
            table.check_texts()
    except ValueError as error:
        raise UserError(f"{title}: {error}") from None
    return table


def label(table: TaskTable | EvalTable) -> str:
    """Return what the definition of a stream calls a task or an eval."""
    return str(table.name or table.use or getattr(table, "lm_eval", None))
