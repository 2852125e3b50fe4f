"""What there is to learn (Task) and how it is scored (Eval), as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from clbench.dataset import DataSet, Source


class Row(NamedTuple):
    """One training row: the model reads `prompt` and learns to write `answer` and stop."""

    id: str
    prompt: str
    answer: str  # begins with its own separator, e.g. " Paris"
    request: str = ""  # what a chat template wraps in place of the prompt; "" is the prompt


class Need(NamedTuple):
    """Something that an eval cannot do without and that no data set brings."""

    what: str  # as in "needs the Python package langdetect"
    how: str  # the command that gets it
    present: Callable[[], bool]


@dataclass(frozen=True)
class Eval:
    """A scored test, run by lm-eval; its number is in 0..1, higher is better.

    A `diagnostic` is none: a quantity of any size, such as a perplexity, that an edition lists
    apart. It is a column of no matrix and enters no mean.

    `config` is the lm-eval task definition: the name of one of lm-eval's own tasks, or its file
    below those, or the fields of a task of ours. With `parts` it names a group of lm-eval's, and
    the eval is that of their documents together, each asked and read as its own part says, all
    of them counting the same. Documents come from `data`, which maps a split that the task reads
    to its data set, through `prepare`, which makes a document of a record and returns None to
    leave one out; or from the field `docs` of a task of ours, a function that returns them.
    A document of ours has an `id`; `reference` is a right response in full, `question` (or
    `probe`) what a leak check looks for. `metric` is the
    pinned key under lm-eval's `results[task]`, "metric,filter"; a key that lm-eval does not
    print is an error, never a guess.
    `version` is what the definition must have; None takes the one that is installed.
    `shots` examples precede the question, None leaves that to the definition; `setup` is called
    before the definition is read, where a scorer has a state to fix. Nothing of an eval is read
    before its `needs` are there.
    The score is pass@1 by running the completion in the sandbox with `execution="cases"`, where
    every document has `entry_point` and `cases` (a list of [arguments, expected]), and with
    `execution="program"`, where the program is the document's `prefix`, the completion and its
    `suffix`, which asserts; `cpu_seconds` is for a document whose right answers need longer than
    the usual limit. With `judged` there is no gold: a judge rates the answer to each
    document's `question`, see `clbench.judge`.
    """

    id: str
    version: int | None
    config: str | Mapping[str, Any]
    metric: str
    other_metrics: tuple[str, ...] = ()
    chance: float = 0.0
    data: Mapping[str, DataSet | tuple[DataSet, ...]] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    request: str = ""  # the document's field that a chat template wraps in place of the prompt
    shots: int | None = None
    needs: tuple[Need, ...] = ()
    setup: Callable[[], None] | None = None
    execution: Literal["cases", "program"] | None = None
    judged: bool = False
    diagnostic: bool = False
    open_answer: bool = False  # record the format-drift fields of docs/measurement
    num_items: int | None = None  # that the published data has; None is not stated
    default_items: int | None = None  # a seeded subset in the default run; None is all
    rank_items: int = 0  # items of the default run whose gold is ranked among 32 candidates
    long_tokens: int = 64  # new tokens of the lenient reading of an open answer
    data_id: str | None = None  # of a data set whose configurations all ask what this one asks
    license: str = ""  # of documents of its own; data sets have theirs
    group: str | None = None  # the kind of ability that a world eval is of, for deltas by group
    parts: tuple[Eval, ...] = ()  # the evals that this one joins
    about: str = ""

    @property
    def tables(self) -> dict[str, tuple[DataSet, ...]]:
        """Return the data sets that it and its parts read, by split, each once."""
        found: dict[str, dict[DataSet, None]] = {}
        for spec in (self, *self.parts):
            for split, data in spec.data.items():
                each = data if isinstance(data, tuple) else (data,)
                found.setdefault(split, {}).update(dict.fromkeys(each))
        return {split: tuple(each) for split, each in found.items()}


@dataclass(frozen=True)
class Task:
    """Something to learn: where its rows come from and the evals that are its column."""

    name: str
    train: Callable[[], Sequence[Row]] | Source
    evals: tuple[Eval, ...]
    validation_evals: tuple[Eval, ...] = ()  # on rows cut from training data; choose rates
    about: str = ""
    license: str = ""
    num_rows: int | None = None  # that its data has; None is not stated
    info: Mapping[str, Any] = field(default_factory=dict)  # id, revision, template: for the record
    epochs: float = 1.0  # passes that its protocol makes, for a run whose epochs are "task"
    parts: tuple[Task, ...] = ()  # the tasks that this one joins; its budget is the sum of theirs
