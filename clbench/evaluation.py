"""Scores a model through lm-eval, in process: which evals, from which documents, once each."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.tasks
from jinja2 import UndefinedError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml
from torch import nn

from clbench import decoding, engines, evalcache, evalkeys, evalresult, judge
from clbench.chat import Chat
from clbench.config import EngineName, EvalConfig
from clbench.engines import Engine
from clbench.errors import UserError, unknown
from clbench.evalplan import (
    Documents,
    EvalPlan,
    read_items,
    read_metric,
)
from clbench.evalresult import EvalResult, Scored
from clbench.harness import Harness, Oracle, compiled_once, quiet, run_harness
from clbench.hub import Hub
from clbench.jointeval import JointTask
from clbench.judge import Judge
from clbench.leak import Probe
from clbench.openanswers import add_drift
from clbench.sandbox import Isolation
from clbench.stream import data_sets
from clbench.task import Eval

FEWSHOT_SEED = 1234  # lm-eval's default
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def build_task(spec: Eval, hub: Hub, *, chat: bool = False) -> ConfigurableTask:
    """Return lm-eval's task of an eval: its own by name, or ours from its fields.

    The documents are those that `hub` finds, whatever the task would have downloaded; with `chat`
    they ask what a chat template is to wrap. Raises
    UserError for a name that lm-eval does not know, for another version of it than the eval is
    pinned to, and for what the eval needs and this machine does not have.
    """
    evalkeys.check_needs(spec)
    if spec.parts:
        with quiet():
            return JointTask(
                spec, {part.id: build_task(part, hub, chat=chat) for part in spec.parts}
            )
    if spec.setup is not None:
        spec.setup()
    if isinstance(spec.config, str):
        path = _definition(spec.config)
        evalkeys.check_definition(spec, load_yaml(path, resolve_func=False))
        fields = dict(load_yaml(path, resolve_func=True))  # imports the functions that it names
        evalkeys.check_version(spec, fields.get("metadata", {}).get("version"))
    else:
        fields = {key: copy.deepcopy(value) for key, value in spec.config.items()}
        fields |= {"task": spec.id, "metadata": {"version": spec.version}}
        fields.setdefault("test_split", "test")
    if chat and spec.request:
        fields["doc_to_text"] = spec.request
    docs = fields.pop("docs", None)
    if docs is not None or spec.data:
        fields["custom_dataset"] = lambda **_: (
            {"test": Documents(docs())} if docs is not None else _splits(spec, hub)
        )
    if spec.data:  # lm-eval reads every split that a definition names, even for zero shots
        for key in SPLITS:
            if fields.get(key) not in spec.data:
                fields.pop(key, None)
    for key in ("tag", "group"):  # where lm-eval lists a task, not what it is
        fields.pop(key, None)
    fields["num_fewshot"] = evalkeys.shots(spec, fields)
    evalkeys.check_examples(spec, fields)
    with quiet():
        task = ConfigurableTask(config=fields)
    if isinstance(spec.config, str):
        evalkeys.check_columns(spec, fields, task.features)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def _definition(name: str) -> Path:
    """Return the file of one of lm-eval's tasks; raises UserError for an unknown name.

    A name may be that of the file below all of them. Most lie in a file or a folder of their
    name; the index of all is made for the others only.
    """
    root = Path(lm_eval.tasks.__file__).parent
    file = (root / name).resolve()
    if file.suffix == ".yaml" and file.is_file() and root.resolve() in file.parents:
        return file
    named = [] if "/" in name else [f"{name}.yaml", f"{name}/*.yaml"]
    for path in (path for pattern in named for path in sorted(root.rglob(pattern))):
        if load_yaml(path, resolve_func=False).get("task") == name:
            return path
    entry = None if "/" in name else _task_index().get(name)
    if entry is None:
        raise UserError(f"lm-eval {lm_eval.__version__} has no task {name!r}")
    tasks = _members(name)
    if tasks != [name]:
        raise evalkeys.many_tasks(name, tasks)
    return Path(entry.yaml_path)


def _members(name: str) -> list[str]:
    """Return the tasks that a group or tag of lm-eval's stands for, in order; a task is its own."""
    entry = _task_index()[name]
    if entry.kind is Kind.TAG:
        return sorted(entry.tags)
    if entry.kind is not Kind.GROUP:
        return [name]
    names = (part for part in entry.cfg["task"] if isinstance(part, str))
    return [task for part in names if part in _task_index() for task in _members(part)]


@functools.cache
def _task_index() -> dict[str, Any]:
    """Return what lm-eval knows by name; it reads thousands of files to say so."""
    return dict(TaskManager().task_index)


def _splits(spec: Eval, hub: Hub) -> dict[str, Any]:
    """Return the tables that a task reads, by split, each record prepared."""
    tables = {split: hub.table(data) for split, data in spec.data.items()}
    if spec.prepare is None:
        return tables
    return {split: _prepared(spec, split, table) for split, table in tables.items()}


def _prepared(spec: Eval, split: str, table: Any) -> Documents:
    """Return the documents of a split; raises UserError where every record is left out."""
    assert spec.prepare is not None
    made = [spec.prepare(record) for record in table]
    docs = Documents(dict(doc) for doc in made if doc is not None)
    if not docs:
        raise UserError(
            f"eval {spec.id} can ask none of the {len(made)} records of split {split}, whose "
            "answers are empty or which it leaves out"
        )
    docs.num_left_out = len(made) - len(docs)
    return docs


@contextlib.contextmanager
def _reading(spec: Eval, hub: Hub) -> Iterator[None]:
    """Make one sentence of what one of lm-eval's own tasks misses in the records given to it."""
    try:
        yield
    except (UndefinedError, KeyError) as error:
        if not isinstance(spec.config, str):
            raise
        tables = map(hub.table, data_sets(spec))
        columns = dict.fromkeys(name for table in tables for name in table.column_names)
        named = re.fullmatch(r"'(\w+)'( is undefined)?", str(error))
        missing = f"column {named[1]!r}" if named else f"what is not there ({error})"
        raise evalkeys.unread(spec, columns, missing) from error


class Evaluator:
    """Scores models on a set of evals, the same documents and prompts every time.

    Evals are planned on first use and kept in `plans`, which evaluators of one configuration may
    share. `tokenizer` is copied, because scoring may give it a padding token. `model_info` needs
    "tokenizer_digest" and "dtype" where results are cached.
    """

    def __init__(
        self,
        model_info: Mapping[str, Any],
        tokenizer: Any,
        evals: Sequence[Eval],
        config: EvalConfig,
        *,
        isolation: Isolation | None = None,
        cache_dir: Path | None = None,
        hub: Hub | None = None,
        plans: dict[str, EvalPlan] | None = None,
        chat: Chat | None = None,
    ) -> None:
        self.hub = hub or Hub()
        self.chat = chat
        self.model_info = model_info
        self.tokenizer = copy.deepcopy(tokenizer)
        self.evals = {spec.id: spec for spec in evals}
        self.config = config
        self.engine: EngineName = config.engine  # "hf" where the one that was asked for disagrees
        self.judge = Judge.of(config)
        self.isolation = isolation
        self.cache_dir = cache_dir
        self._plans = {} if plans is None else plans
        self._ceilings: dict[str, float | None] = {}

    def evaluate(
        self,
        model: nn.Module,
        eval_ids: Sequence[str] | None = None,
        weights_digest: str | None = None,
    ) -> dict[str, EvalResult]:
        """Score a model on some or all evals; it is left in the mode it came in.

        With `weights_digest` and a cache folder, an eval that was run before with exactly
        these weights, tokenizer, items and settings is read back. Raises UserError for an
        unknown eval and KeyError for a pinned metric that lm-eval does not print.
        """
        wanted = list(self.evals if eval_ids is None else eval_ids)
        for name in wanted:
            if name not in self.evals:
                raise unknown("eval", name, self.evals)
        engine = engines.engine(self.engine, model, self.tokenizer, self.config.batch_size)
        with contextlib.closing(engine):
            return {n: self._evaluate_or_recall(model, engine, n, weights_digest) for n in wanted}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return, for the record, how each eval is run and read."""
        return {
            name: self.plan(name).describe()
            | {"ceiling": self.ceiling(name), "engine": engines.describe(self.engine)}
            for name in self.evals
        }

    def probes(self) -> dict[str, dict[str, Probe]]:
        """Return what a leak check looks for: each item's question and its right answers."""
        return {
            name: self.plan(name).probes()
            for name, spec in self.evals.items()
            if not spec.diagnostic
        }

    def check_room(self) -> None:
        """Raise UserError for an eval whose new tokens leave the model no room for a prompt."""
        longest = self.model_info["max_positions"]
        for name in self.evals if longest else ():
            if self.plan(name).most_new_tokens >= longest:
                raise UserError(
                    f"eval {name} writes up to {self.plan(name).most_new_tokens} new tokens, and "
                    f"the model reads no more than {longest}, its prompt included"
                )

    def plan(self, name: str) -> EvalPlan:
        """Return what an eval asks, its documents loaded."""
        if name not in self._plans:
            spec = self.evals[name]
            with quiet(), compiled_once(), _reading(spec, self.hub):
                task = build_task(spec, self.hub, chat=self.chat is not None)
                self._plans[name] = EvalPlan(spec, task, self.config, self.chat)
        return self._plans[name]

    def ceiling(self, name: str) -> float | None:
        """Return the score of an oracle that writes the gold through the eval's stops.

        None for an eval whose documents name no right answer, such as one that a judge rates.
        For code it is the share of references that the stops leave whole; `check_code_eval` runs
        them. Raises UserError for a pinned key that lm-eval does not print.
        """
        plan = self.plan(name)
        if plan.spec.judged:
            return None
        if name not in self._ceilings:
            oracle = Oracle(plan.task)
            if plan.spec.execution:
                texts = [oracle.reference(doc) for doc in plan.docs]
                whole = [decoding.cut_at_stops(t, plan.stops or ()) == t for t in texts]
                self._ceilings[name] = sum(whole) / len(whole)
            else:
                results = run_harness(oracle, plan)["results"]
                evalkeys.check_printed(plan.spec, results[plan.task.task_name])
                score = read_metric(plan, results, plan.spec.metric)
                self._ceilings[name] = score if plan.has_gold else None
        return self._ceilings[name]

    def identity(self, name: str, weights_digest: str) -> dict[str, Any]:
        """Return, ready for JSON, everything that decides the result of an eval."""
        plan = self.plan(name)
        return {
            "weights": weights_digest,
            "tokenizer": self.model_info["tokenizer_digest"],
            "dtype": self.model_info["dtype"],
            "task": plan.task_digest,
            "generation": {
                "new_tokens": plan.new_tokens,
                "long_tokens": plan.spec.long_tokens if plan.spec.open_answer else None,
                "batch_size": self.config.batch_size,
            },
            "rank_ids": plan.rank_ids,
            "chat_template": plan.chat_digest,
            "isolation": self.isolation.name if plan.spec.execution and self.isolation else None,
            "engine": engines.describe(self.engine),
        }

    def _evaluate_or_recall(
        self, model: nn.Module, engine: Engine, name: str, weights_digest: str | None
    ) -> EvalResult:
        if self.cache_dir is None or weights_digest is None:
            return self._evaluate(model, engine, name, weights_digest)
        identity = self.identity(name, weights_digest)
        stored = evalcache.load(self.cache_dir, identity)
        if stored is not None:
            return EvalResult.from_cache(stored)
        result = self._evaluate(model, engine, name, weights_digest)
        if result.reason != "failed":  # a judge that was away may be there the next time
            evalcache.store(self.cache_dir, identity, result.to_json())
        return result

    def _evaluate(
        self, model: nn.Module, engine: Engine, name: str, weights_digest: str | None
    ) -> EvalResult:
        plan = self.plan(name)
        with decoding.eval_mode(model):
            harness = Harness(model, self.tokenizer, self.config.batch_size, engine, self.chat)
            run = run_harness(harness, plan, self.chat)
            items = read_items(plan, run["samples"][plan.task.task_name], harness.generations)
            if plan.spec.open_answer:
                add_drift(harness, plan, items)
        start = time.monotonic()
        if plan.spec.execution:
            evalresult.run_code(items, plan.docs, plan.spec.metric, self.isolation)
            scored = evalresult.code_score(items, self.isolation)
            harness.seconds["execute"] = time.monotonic() - start
        elif plan.spec.judged:
            scored = judge.rate(items, plan.questions, plan.spec.metric, self.judge)
            harness.seconds["judge"] = time.monotonic() - start
        else:
            scored = Scored(read_metric(plan, run["results"], plan.spec.metric))
        flags = evalresult.cell_flags(
            items, limited=plan.limited, truncated=harness.num_truncated > 0
        )
        if plan.spec.execution and self.isolation is not None and not self.isolation.isolated:
            flags.append("unisolated")
        others = {key: read_metric(plan, run["results"], key) for key in plan.spec.other_metrics}
        return EvalResult(
            **scored._asdict(),
            flags=tuple(flags),
            items=items,
            num_items=len(items),
            items_digest=plan.items_digest,
            task_digest=plan.task_digest,
            ceiling=self.ceiling(name),
            others=others,
            counts=evalresult.count_items(items),
            seconds=harness.seconds,
            tokens_generated=harness.num_tokens,
            engine=engines.label(self.engine),
            weights_digest=weights_digest,
        )
