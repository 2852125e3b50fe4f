"""From a configuration to what an experiment works with; refuses before anything is written."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from clbench import data, engines, leak, models, registry, sandbox, training
from clbench.config import RunConfig
from clbench.dataset import Source
from clbench.errors import UserError
from clbench.estimate import Workload
from clbench.evalplan import EvalPlan
from clbench.evaluation import Evaluator
from clbench.hub import Hub
from clbench.strategy import Batch, Example, Strategy, TaskContext
from clbench.stream import Edition
from clbench.task import Row, Task

CHARACTERS_PER_TOKEN = 3.5  # of English in common vocabularies; only the estimate rests on it


@dataclass(frozen=True)
class Plan:
    """A checked configuration with the objects that its names stand for."""

    config: RunConfig
    edition: Edition
    strategy: Strategy
    device: torch.device
    isolation: sandbox.Isolation | None  # None: generated code is not run
    hub: Hub

    @cached_property
    def loaded(self) -> models.Loaded:
        """Return the base model and its tokenizer, loaded on first use."""
        config = self.config
        return models.load(config.model, config.dtype, self.device, revision=config.revision)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Return what scores the model, the same documents and prompts for every row."""
        return Evaluator(
            self.loaded.info,
            self.loaded.tokenizer,
            self.edition.evals,
            self.config.eval,
            isolation=self.isolation,
            cache_dir=cache_directory() / "evals",
            hub=self.hub,
            plans=self._eval_plans,
        )

    @cached_property
    def _eval_plans(self) -> dict[str, EvalPlan]:
        return {}

    @cached_property
    def _rows(self) -> dict[str, Sequence[Row]]:
        return {}

    def rows(self, task: Task) -> Sequence[Row]:
        """Return the training rows of a task, in the order of its data; made once."""
        if task.name not in self._rows:
            if task.parts:
                made: Sequence[Row] = [row for part in task.parts for row in self.rows(part)]
            else:
                made = self.hub.rows(task.train) if isinstance(task.train, Source) else task.train()
            self._rows[task.name] = made
        return self._rows[task.name]

    @cached_property
    def calibration_texts(self) -> list[str]:
        """Return the world text that calibration reads."""
        source = self.edition.calibration
        if isinstance(source, Source):
            return [row.prompt + row.answer for row in self.hub.rows(source)]
        return list(source())

    @cached_property
    def _examples(self) -> dict[str, list[Example]]:
        return {}

    @cached_property
    def pad_id(self) -> int:
        """Return the id that fills batches."""
        return data.pad_id(self.loaded.tokenizer)

    def examples(self, task: Task) -> list[Example]:
        """Return the tokenized training examples of a task; tokenized once."""
        if task.name not in self._examples:
            positions = self.loaded.info["max_positions"] or self.config.train.max_length
            limit = min(self.config.train.max_length, positions)
            self._examples[task.name] = data.encode(
                self.rows(task), self.loaded.tokenizer, task.name, limit
            )
        return self._examples[task.name]

    def budget(self, task: Task) -> int:
        """Return the tokens a task may see; a joint task may see the sum of its parts'."""
        if task.parts:
            return sum(self.budget(part) for part in task.parts)
        return training.budget(self.examples(task), self.config.train)

    def context(
        self,
        index: int,
        examples: list[Example],
        targets: tuple[str, ...],
    ) -> TaskContext:
        """Return what the strategy may know of task `index` (from 0)."""
        size = self.config.train.micro_batch or self.config.train.batch_size

        def batches() -> Iterator[Batch]:
            return data.one_pass(examples, size, self.pad_id, self.device)

        return TaskContext(
            name=self.edition.tasks[index].name,
            index=index,
            seed=self.config.seed,
            examples=lambda: list(examples),
            batches=batches,
            covariances={},
            targets=targets,
        )

    def leaks(self) -> dict[str, Any]:
        """Return how much of each eval occurs in what is trained and calibrated on."""
        sources = {
            f"train {t.name}": [[r.prompt, r.answer] for r in self.rows(t)]
            for t in self.edition.tasks
        }
        sources["calibration"] = [[text] for text in self.calibration_texts]
        return leak.report(sources, self.evaluator.probes(), self._data_ids())

    def _data_ids(self) -> dict[str, str]:
        ids = {f"train {t.name}": t.info["id"] for t in self.edition.tasks if "id" in t.info}
        evals = {e.id: e.data_id for e in self.edition.evals if e.data_id is not None}
        return ids | evals | {"calibration": self.edition.calibration_id}

    def workload(self) -> Workload:
        """Return how much the run will do, roughly: text is counted in characters."""
        config, tasks = self.config.train, self.edition.tasks
        train = 0.0
        for task in (part for t in tasks for part in (t.parts or (t,))):
            rows = self.rows(task)
            length = sum(len(r.prompt + r.answer) for r in rows) / len(rows) / CHARACTERS_PER_TOKEN
            if config.tokens is not None:
                train += config.tokens
            elif config.steps is not None:
                train += config.steps * config.batch_size * length
            else:
                train += (config.epochs or 0.0) * len(rows) * length
        evaluator = Evaluator(  # without the model, which may turn out not to fit
            {}, None, self.edition.evals, self.config.eval, hub=self.hub, plans=self._eval_plans
        )
        written = 0.0
        for spec in self.edition.evals:
            asked = evaluator.plan(spec.id)
            written += sum(len(prompt) / CHARACTERS_PER_TOKEN for prompt in asked.prompts)
            written += len(asked.prompts) * (asked.new_tokens or 0)
        return Workload(len(tasks), round(train), round(written * (len(tasks) + 1)))


def cache_directory() -> Path:
    """Return where evaluations are kept: $CLBENCH_CACHE, else clbench in the user's cache."""
    chosen = os.environ.get("CLBENCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "clbench"


def prepare(config: RunConfig) -> Plan:
    """Resolve the names of a configuration; raises UserError for what cannot be run."""
    quiet_libraries()
    edition = registry.stream(config.stream).edition(config.data or "full")
    if config.order is not None:
        edition = edition.reordered(config.order)
    if config.tasks is not None:
        edition = edition.only(config.tasks)
    if config.eval.split == "validation":
        edition = edition.validating()
    if config.joint:
        edition = edition.joined()
    strategy = registry.build_strategy(config.strategy, config.params)
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        torch.set_flush_denormal(True)
    engines.check(config.eval.engine, device)
    hub = Hub(data_dir=None if config.data_dir is None else Path(config.data_dir))
    return Plan(config, edition, strategy, device, _isolation(config, edition), hub)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA where there is one. Raises UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; choices: auto, cpu, cuda, cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; choices: auto, cpu, cuda, cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA "
            "device(s); choices: auto, cpu"
        )
    return device


def _isolation(config: RunConfig, edition: Edition) -> sandbox.Isolation | None:
    if all(e.execution is None for e in edition.evals):
        return None
    return sandbox.find_isolation(config.isolation)


def quiet_libraries() -> None:
    """Keep third parties from writing into the progress display."""
    for name in ("transformers", "datasets", "lm_eval", "accelerate", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", module=r"(transformers|datasets|lm_eval|accelerate)\b")
