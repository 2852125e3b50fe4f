"""A tiny model and tiny tasks, taken through the phases of a run in the driver's own order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from clbench.adapters import adapted, find_targets
from clbench.calibration import calibrate
from clbench.checkpoint import Checkpoints
from clbench.config import TrainConfig
from clbench.data import collate, derived_seed, endless, one_pass
from clbench.strategy import Batch, Covariances, Example, Step, Strategy, TaskContext
from clbench.training import TrainLog, answer_loss, budget, train

VOCABULARY, PAD, EOS = 64, 0, 2
CPU = torch.device("cpu")
# Biases, tied embeddings and grouped-query attention; then weights that are stored transposed.
LAYOUTS = ("qwen2", "gpt2")
PHASES = ("begin", "train", "end")
SETTINGS = {"lr": 1e-2, "steps": 2, "batch_size": 4, "warmup": 0.0, "schedule": "constant"}


def tiny_model(layout: str = "qwen2", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a random causal LM of 2 layers and width 32, the same at every call."""
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(_gpt2()) if layout == "gpt2" else Qwen2ForCausalLM(_qwen2())
    nn.Module.to(model, dtype)  # the model's own `to` is untyped
    return cast(PreTrainedModel, nn.Module.eval(model))


def tiny_examples(index: int) -> list[Example]:
    """Return the eight examples of task `index`: the answer repeats the prompt, shifted."""
    draw = random.Random(f"tiny examples/{index}")
    examples = []
    for number in range(8):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(3 + number % 3)]
        answer = [3 + (token + 7 * index) % (VOCABULARY - 3) for token in prompt[:3]]
        mask = (False,) * len(prompt) + (True,) * (len(answer) + 1)
        examples.append(Example((*prompt, *answer, EOS), mask, f"task{index}", number))
    return examples


class Course:
    """One strategy and one tiny model on their way through tiny tasks: begin, train, end."""

    def __init__(
        self, strategy: Strategy, *, layout: str = "qwen2", dtype: torch.dtype = torch.float32
    ) -> None:
        self.strategy, self.layout, self.dtype = strategy, layout, dtype
        self.model: nn.Module = tiny_model(layout, dtype)
        self.targets = find_targets(self.model)
        self.index = 0
        self.task = self._context()

    def begin(self, covariances: Mapping[str, Covariances] | None = None) -> None:
        """Calibrate, unless covariances are given, and begin the present task."""
        torch.manual_seed(derived_seed("begin", 0, self.index))
        measured = self.calibrations() if covariances is None else {}
        own = {source: found.covariances for source, found in measured.items()}
        self.task.covariances = self._with_nothing_seen(own) if covariances is None else covariances
        self.model = self.strategy.begin_task(self.model, self.task)
        self.task.covariances = {}
        for found in measured.values():
            found.close()  # as the driver does: who reads a covariance later learns it here

    def train(self, **changes: Any) -> TrainLog:
        """Train the present task with the settings of this module, but for `changes`."""
        cfg = TrainConfig.of({**SETTINGS, **changes})
        self.task.trained = dict(adapted(self.model))
        examples = self.task.examples()
        return train(
            self.model,
            self.strategy,
            self.task,
            examples,
            cfg,
            pad_id=PAD,
            device=CPU,
            budget_tokens=budget(examples, cfg),
        )

    def idle(self, num_steps: int = 2) -> None:
        """Call the hooks of optimizer steps whose gradients are all zero."""
        self.model.train()
        for index in range(num_steps):
            for parameter in self.trainables().values():
                parameter.grad = torch.zeros_like(parameter)
            step = Step(index, num_steps, SETTINGS["lr"])  # type: ignore[arg-type]
            self.strategy.before_step(self.model, step)
            self.strategy.after_step(self.model, step)
        self.model.zero_grad(set_to_none=True)
        self.model.eval()

    def end(self) -> None:
        """End the present task; the next one is then the present one."""
        torch.manual_seed(derived_seed("end", 0, self.index))
        self.task.trained = dict(adapted(self.model))
        self.model = self.strategy.end_task(self.model, self.task)
        self.index += 1
        self.task = self._context()

    def learn(self) -> None:
        """Do all three."""
        self.begin()
        self.train()
        self.end()

    def resumed(self, strategy: Strategy, folder: Path) -> Course:
        """Save what a run saves after a phase, and load it into a new model and a new strategy."""
        tag = f"{self.index}"
        Checkpoints(folder, tiny_model(self.layout, self.dtype)).save(
            tag, self.model, self.strategy
        )
        twin = Course(strategy, layout=self.layout, dtype=self.dtype)
        twin.model = Checkpoints(folder, twin.model).load(tag, twin.model, strategy)
        twin.index = self.index
        twin.task = twin._context()
        return twin

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return the parameters that require a gradient."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def logits(self, *, training: bool = False) -> Tensor:
        """Return the logits on every task's examples, (rows, tokens, vocabulary) float32."""
        return logits(self.model.train(training))

    def loss(self) -> float:
        """Return the loss per answer token of the present task, in eval mode."""
        (batch,) = one_pass(self.task.examples(), 8, PAD, CPU)
        with torch.no_grad():
            found = self.model(**batch.model_inputs()).logits
        return float(answer_loss(found, batch.labels)) / float((batch.labels >= 0).sum())

    def fed(self) -> Batch:
        """Return one batch of what the strategy feeds in the present task."""
        rows = self.strategy.batches(endless(self.task.examples(), 4, seed=0))
        return collate(next(rows), PAD, CPU)

    def calibrations(self, *, foreign: bool = False) -> dict[str, Any]:
        """Return a calibration of this model per source that can be measured by now.

        With `foreign`, on a few tokens only, whose inputs lie in other directions.
        """
        low, high = (3, 8) if foreign else (3, VOCABULARY)
        found = {}
        for number, source in enumerate(sorted(self.strategy.calibration_sources())):
            generator = torch.Generator().manual_seed(number)
            windows = torch.randint(low, high, (16, 32), generator=generator)
            if source != "seen" or self.index > 0:
                # room for about two covariances, so that reading takes several passes
                found[source] = calibrate(self.model, windows, self.targets, budget_bytes=2**14)
        return found

    def _with_nothing_seen(self, measured: dict[str, Covariances]) -> dict[str, Covariances]:
        """Add what the driver gives for a source of which there is nothing yet."""
        empty: dict[str, Covariances] = {s: {} for s in self.strategy.calibration_sources()}
        return empty | measured

    def _context(self) -> TaskContext:
        examples = tiny_examples(self.index)
        return TaskContext(
            name=f"task{self.index}",
            index=self.index,
            seed=0,
            examples=lambda: list(examples),
            batches=lambda: one_pass(examples, 4, PAD, CPU),
            covariances={},
            targets=self.targets,
        )


def logits(model: nn.Module) -> Tensor:
    """Return a tiny model's logits on fixed tokens, (rows, tokens, vocabulary); then eval mode."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (4, 12), generator=generator)
    with torch.no_grad():
        found = cast(Tensor, model(input_ids=ids).logits)
    model.eval()
    return found.float()


def _qwen2() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def _gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=48,
        initializer_range=0.1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
