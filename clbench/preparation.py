"""From a configuration to what an experiment works with; refuses before anything is written."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from clbench import (
    data,
    engines,
    evalcache,
    evalkeys,
    models,
    registry,
    sandbox,
    tokens,
    training,
)
from clbench.chat import Chat
from clbench.config import RunConfig
from clbench.dataset import Source
from clbench.digests import digest
from clbench.errors import UserError
from clbench.estimate import Workload
from clbench.evalplan import EvalPlan
from clbench.evaluation import Evaluator
from clbench.hub import Hub, check_data_dir, open_hub
from clbench.leakcheck import Checked, LeakCheck
from clbench.progress import Progress, Silent
from clbench.results import check_writable
from clbench.rows import Rows, source_identity
from clbench.strategy import Batch, Example, Strategy, TaskContext
from clbench.stream import Edition
from clbench.task import Row, Task
from clbench.tokens import Tokens

CHARACTERS_PER_TOKEN = 3.5  # of English in common vocabularies; only the estimate rests on it
ROWS_ESTIMATED = 500  # whose length stands for that of all


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
        return models.load(
            config.model,
            config.dtype,
            self.device,
            revision=config.revision,
            repositories=self.hub.repositories,
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        """Return what scores the model, the same documents and prompts for every row."""
        return Evaluator(
            self.loaded.info,
            self.loaded.tokenizer,
            self.edition.measured,
            self.config.eval,
            isolation=self.isolation,
            cache_dir=cache_directory() / "evals",
            hub=self.hub,
            chat=self.chat,
            plans=self._eval_plans if self.chat is None else None,
        )

    @cached_property
    def _eval_plans(self) -> dict[str, EvalPlan]:
        return {}

    @cached_property
    def chat(self) -> Chat | None:
        """Return the chat template that wraps requests, None where they are asked as they are."""
        return Chat(self.loaded.tokenizer) if self.config.chat_template else None

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        return {}

    def rows(self, task: Task) -> Rows:
        """Return the training rows of a task, in the order of its data."""
        if task.name not in self._rows:
            self._rows[task.name] = Rows(task, self.hub)
        return self._rows[task.name]

    def first_row(self, task: Task) -> Row:
        """Return the first training row of a task; what was read is not read again for it."""
        folder, rows = cache_directory() / "rows", self.rows(task)
        stored = evalcache.load(folder, rows.identity)
        if stored is None:
            stored = next(iter(rows))._asdict()
            evalcache.store(folder, rows.identity, stored)
        return Row(**stored)

    def texts(self, task: Task) -> list[str]:
        """Return the training rows of a task as text, those left out that ask what an eval asks."""
        asked = set(self.asked(task))
        rows = (row for number, row in enumerate(self.rows(task)) if number not in asked)
        if self.chat is not None:
            return [self.chat.prompt(row) + self.chat.answer(row) for row in rows]
        return [row.prompt + row.answer for row in rows]

    @cached_property
    def calibration_texts(self) -> Sequence[str]:
        """Return the world text that calibration reads."""
        source = self.edition.calibration
        if source is None:
            return []
        if isinstance(source, Source):
            return [row.prompt + row.answer for row in self.hub.iter_rows(source)]
        return list(source())

    @cached_property
    def calibration_digest(self) -> str:
        """Return the digest of the calibration text; what is read is not read again for it."""
        source = self.edition.calibration
        if not isinstance(source, Source):
            return digest(self.calibration_texts)
        folder, identity = cache_directory() / "texts", source_identity(source, self.hub)
        stored = evalcache.load(folder, identity)
        if stored is None:
            stored = {"text_digest": digest(self.calibration_texts)}
            evalcache.store(folder, identity, stored)
        return str(stored["text_digest"])

    @cached_property
    def pad_id(self) -> int:
        """Return the id that fills batches."""
        return data.pad_id(self.loaded.tokenizer)

    @cached_property
    def _examples(self) -> dict[str, Tokens]:
        return {}

    def examples(self, task: Task, progress: Progress | None = None) -> Tokens:
        """Return the tokenized training examples of a task; tokenized once for all runs.

        Rows that ask what an eval of this run asks are left out. Raises UserError if none is left.
        """
        if task.name not in self._examples:
            found = self._tokens(task, progress or Silent())
            left = found.without(self.asked(task))
            if not left:
                raise UserError(
                    f"every training row of task {task.name} asks what an eval of the run asks"
                )
            self._examples[task.name] = left
        return self._examples[task.name]

    @property
    def _max_length(self) -> int:
        longest = self.config.train.max_length
        return min(longest, self.loaded.info["max_positions"] or longest)

    def _tokens(self, task: Task, progress: Progress) -> Tokens:
        rows, limit = self.rows(task), self._max_length
        identity = {
            "version": data.ENCODING,
            "rows": rows.identity,
            "tokenizer": self.loaded.info["tokenizer_digest"],
            "chat_template": None if self.chat is None else self.chat.digest,
            "max_length": limit,
        }
        folder = cache_directory() / "tokens" / digest(identity)
        found = tokens.load(folder, task.name)
        if found is None:
            progress.phase(f"tokenize {task.name}", rows.at_most)
            found = data.encode(
                *(rows, self.loaded.tokenizer, task.name, limit, folder),
                chat=self.chat,
                advance=progress.advance,
            )
        return found

    def budget(self, task: Task) -> int:
        """Return the tokens a task may see; a joint task may see the sum of its parts'."""
        if task.parts:
            return sum(self.budget(part) for part in task.parts)
        return training.budget(self.examples(task), self.config.train, task.epochs)

    def context(
        self,
        index: int,
        examples: Sequence[Example],
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
            examples=lambda: examples,
            batches=batches,
            covariances={},
            targets=targets,
        )

    def asked(self, task: Task) -> list[int]:
        """Return the numbers of the training rows that ask what an eval of the run asks.

        Generated rows share nothing with the evals by construction: none of them.
        """
        if not task.parts:
            return self.leak_check.removed(task)
        numbers, start = [], 0
        for part in task.parts:
            numbers += [start + number for number in self.asked(part)]
            start += self._tokens(part, Silent()).facts["num_rows"]
        return numbers

    @cached_property
    def leak_check(self) -> LeakCheck:
        """Return what finds the questions of the evals in what is trained and calibrated on."""
        calibration = None
        if self.edition.calibration is not None:
            calibration = Checked(
                self.calibration_digest, lambda: ([text] for text in self.calibration_texts)
            )
        folder = cache_directory() / "leaks"
        return LeakCheck(self.edition, self.rows, calibration, self.evaluator.probes(), folder)

    def leaks(self) -> dict[str, Any]:
        """Return how much of each eval occurs in what is trained and calibrated on."""
        return self.leak_check.report()

    def read(self, progress: Progress) -> None:
        """Check the evals, tokenize the training rows, and say how much of both is left out."""
        self.evaluator.check_room()
        self.leak_check.scans(progress)
        for name in self.evaluator.evals:
            plan = self.evaluator.plan(name)
            if plan.num_left_out:
                total = len(plan.everything) + plan.num_left_out
                progress.note(
                    f"eval {name}: {plan.num_left_out:,} of {total:,} records have an empty answer "
                    "or cannot be asked, and are left out"
                )
        for task in self.edition.tasks:
            facts = self.examples(task, progress).facts
            reasons = {
                f"are longer than {self._max_length} tokens": facts["num_too_long"],
                "have an empty answer": facts["num_empty"],
                "ask what an eval asks": len(self.asked(task)),
            }
            for reason, count in reasons.items():
                if count:
                    progress.note(
                        f"task {task.name}: {count:,} of {facts['num_rows']:,} training rows "
                        f"{reason} and are left out"
                    )

    def workload(self) -> Workload:
        """Return how much the run will do, roughly: text is counted in characters."""
        config, tasks = self.config.train, self.edition.tasks
        train = 0.0
        for task in self.edition.single_tasks:
            rows = self.rows(task)
            some = [len(r.prompt + r.answer) for r in islice(rows, ROWS_ESTIMATED)]
            length = sum(some) / len(some) / CHARACTERS_PER_TOKEN
            if config.tokens is not None:
                train += config.tokens
            elif config.steps is not None:
                train += config.steps * config.batch_size * length
            else:
                train += (config.passes(task.epochs) or 0.0) * rows.at_most * length
        evaluator = Evaluator(  # without the model, which may turn out not to fit
            {}, None, self.edition.measured, self.config.eval, hub=self.hub, plans=self._eval_plans
        )
        written = 0.0
        for spec in self.edition.measured:
            asked = evaluator.plan(spec.id)
            written += sum(len(prompt) / CHARACTERS_PER_TOKEN for prompt in asked.prompts)
            written += len(asked.prompts) * (asked.new_tokens or 0)
        return Workload(len(tasks), round(train), round(written * (len(tasks) + 1)))


def cache_directory() -> Path:
    """Return where results and tokens lie: $CLBENCH_CACHE, else clbench in the user's cache."""
    chosen = os.environ.get("CLBENCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "clbench"


def check_cache() -> None:
    """Raise UserError where results and tokens cannot be kept."""
    check_writable(cache_directory(), "the cache", "let CLBENCH_CACHE name another folder")


def prepare(config: RunConfig) -> Plan:
    """Resolve the names of a configuration; raises UserError for what cannot be run."""
    quiet_libraries()
    check_cache()
    edition = registry.stream(config.stream).edition(config.data or "full")
    check_data_dir(config, *edition.data_sets)
    if config.order is not None:
        edition = edition.reordered(config.order)
    if config.tasks is not None:
        edition = edition.only(config.tasks)
    if config.train_limit is not None:
        edition = edition.limited(config.train_limit)
    if config.eval.split == "validation":
        edition = edition.validating()
    if config.joint:
        edition = edition.joined()
    strategy = registry.build_strategy(config.strategy, config.params)
    if edition.calibration is None and "world" in strategy.calibration_sources():
        raise UserError(
            f"strategy {config.strategy} is calibrated on world text and stream {config.stream} "
            'has none: give it the key calibration, e.g. calibration = "tiny-facts"'
        )
    evalkeys.check_needs(*edition.measured)
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        torch.set_flush_denormal(True)
    engines.check(config.eval.engine, device)
    return Plan(config, edition, strategy, device, _isolation(config, edition), open_hub(config))


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
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it raises, Hub says
    warnings.filterwarnings("ignore", module=r"(transformers|datasets|lm_eval|accelerate)\b")
