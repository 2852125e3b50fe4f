"""The training loop: what a step is, when hooks are called, when a task ends."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from clbench.config import TrainConfig
from clbench.data import collate, num_tokens, one_pass
from clbench.errors import UserError
from clbench.strategy import Batch, Example, Step, Strategy, TaskContext
from clbench.training import TrainLog, answer_loss, budget, learning_rate, train

CPU = torch.device("cpu")
VOCABULARY = 20


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).eval()


def make_examples(count: int, task: str = "now") -> list[Example]:
    """Make examples of 5 to 9 tokens whose answers, of 2 to 4 tokens, repeat the prompt."""
    generator = torch.Generator().manual_seed(7)
    examples = []
    for index in range(count):
        prompt = torch.randint(1, VOCABULARY, (3 + index % 3,), generator=generator).tolist()
        answer = [*prompt[: 1 + index % 3], 0]
        mask = (False,) * len(prompt) + (True,) * len(answer)
        examples.append(Example((*prompt, *answer), mask, task, index))
    return examples


def context(examples: list[Example], index: int = 0, seed: int = 0) -> TaskContext:
    return TaskContext(
        name="now",
        index=index,
        seed=seed,
        examples=lambda: examples,
        batches=lambda: one_pass(examples, 4, 0, CPU),
        covariances={},
        targets=(),
    )


def config(**fields: Any) -> TrainConfig:
    defaults = {"lr": 1e-2, "batch_size": 4, "steps": 6, "warmup": 0.0, "max_length": 32}
    return TrainConfig(**{**defaults, **fields})


def run(
    cfg: TrainConfig,
    *,
    model: nn.Module | None = None,
    strategy: Strategy | None = None,
    examples: list[Example] | None = None,
    seed: int = 0,
    **arguments: Any,
) -> tuple[nn.Module, TrainLog]:
    model = model or tiny_llama()
    examples = examples or make_examples(10)
    arguments.setdefault("budget_tokens", budget(examples, cfg))
    task = context(examples, seed=seed)
    strategy = strategy or Strategy()
    log = train(model, strategy, task, examples, cfg, pad_id=0, device=CPU, **arguments)
    return model, log


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    return moved_since([p.detach() for p in one.parameters()], other)


def moved_since(before: list[Tensor], model: nn.Module) -> float:
    """Return the largest change of a weight since `before`."""
    pairs = zip(before, model.parameters(), strict=True)
    return max(float((a - b.detach()).abs().max()) for a, b in pairs)


@dataclasses.dataclass
class Recorder(Strategy):
    """Notes every hook call, with what the gradients and weights were."""

    def __post_init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[Step] = []
        self.norms: list[float] = []
        self.lists: list[list[Example]] = []

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        for examples in batches:
            self.lists.append(examples)
            yield examples

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        assert model.training
        assert torch.isfinite(outputs.loss)
        self.calls.append("penalty")
        return 0.0

    def before_step(self, model: nn.Module, step: Step) -> None:
        self.calls.append("before")
        self.steps.append(step)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self.norms.append(float(torch.linalg.vector_norm(torch.cat([g.ravel() for g in grads]))))
        self.weights = [p.detach().clone() for p in model.parameters()]

    def after_step(self, model: nn.Module, step: Step) -> None:
        self.calls.append("after")
        assert step == self.steps[-1]
        self.moved = moved_since(self.weights, model)


def test_hooks_come_once_per_step_around_the_optimizer() -> None:
    strategy = Recorder()
    _, log = run(config(batch_size=4, micro_batch=2), strategy=strategy)
    assert strategy.calls == ["penalty", "penalty", "before", "after"] * log.steps
    assert [step.index for step in strategy.steps] == list(range(log.steps))
    assert [step.lr for step in strategy.steps] == list(log.lrs)
    assert strategy.moved > 0


def test_before_step_sees_the_gradient_before_clipping() -> None:
    class Huge(Recorder):
        def after_step(self, model: nn.Module, step: Step) -> None:
            self.largest_step = moved_since(self.weights, model)

    clipped, free = Huge(), Huge()
    run(config(clip=1e-9, steps=1), strategy=clipped)
    run(config(clip=None, steps=1), strategy=free)
    assert clipped.norms[0] == free.norms[0] > 1e-3
    # Adam's first step is lr·g/(|g| + 1e-8), so only a gradient near 1e-8 shows in it.
    assert clipped.largest_step < 0.2 * free.largest_step


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_gives_the_same_weights(micro_batch: int) -> None:
    whole, whole_log = run(config(batch_size=16, clip=None))
    parts, parts_log = run(config(batch_size=16, micro_batch=micro_batch, clip=None))
    assert largest_difference(whole, tiny_llama()) > 1e-2
    assert largest_difference(whole, parts) < 1e-5
    assert whole_log.losses == pytest.approx(parts_log.losses, abs=1e-5)
    assert whole_log.tokens_loss == parts_log.tokens_loss


def test_one_step_equals_a_step_written_out() -> None:
    examples = make_examples(4)
    model, log = run(config(steps=1, schedule="constant"), examples=examples)
    expected = tiny_llama().train()
    batch = collate(examples, 0, CPU)
    # The library's own loss is the mean over all labelled tokens of the batch.
    loss = expected(**batch.model_inputs(), labels=batch.labels).loss
    loss.backward()
    nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.0).step()
    assert log.losses == pytest.approx([loss.item()], abs=1e-6)
    assert largest_difference(model, expected) < 1e-5


class Pull(Strategy):
    """Pull every weight towards zero, so that the penalty's size shows in the gradient."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.norms: list[float] = []

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        if not self.strength:
            return 0.0
        return self.strength * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))

    def before_step(self, model: nn.Module, step: Step) -> None:
        self.grads = torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])


def test_penalty_counts_once_per_step() -> None:
    grads = {}
    for strength, micro_batch in itertools.product((0.0, 0.5), (4, 1)):
        strategy = Pull(strength)
        cfg = config(steps=1, micro_batch=micro_batch)
        _, log = run(cfg, strategy=strategy, examples=make_examples(4))
        grads[strength, micro_batch] = strategy.grads
        assert log.losses[0] < 2 * math.log(VOCABULARY)  # the penalty is not in the loss
    start = torch.cat([p.detach().ravel() for p in tiny_llama().parameters()])
    for micro_batch in (4, 1):
        share = grads[0.5, micro_batch] - grads[0.0, micro_batch]
        torch.testing.assert_close(share, start, atol=1e-5, rtol=1e-4)


def test_same_seed_same_bits_and_another_seed_another_order() -> None:
    model, log = run(config(), model=tiny_gpt2())  # GPT-2 has dropout: the global seed counts
    torch.rand(3)
    again, log_again = run(config(), model=tiny_gpt2())
    other, _ = run(config(), model=tiny_gpt2(), seed=1)
    assert largest_difference(model, again) == 0.0
    assert log.losses == log_again.losses
    assert largest_difference(model, other) > 0.0


def test_it_learns() -> None:
    _, log = run(config(steps=60, schedule="constant"))
    assert sum(log.losses[-5:]) < 0.5 * sum(log.losses[:5])


def test_a_task_ends_with_its_token_budget() -> None:
    examples = make_examples(10)
    _, log = run(config(), examples=examples, budget_tokens=200)
    assert 200 <= log.tokens_seen < 200 + 4 * 9
    assert log.tokens_loss < log.tokens_seen
    assert log.tokens_replayed == 0
    per_epoch = sum(sum(e.loss_mask) for e in examples)
    _, log = run(config(batch_size=5, epochs=2.0, steps=None), examples=examples)
    assert log.steps == 4
    assert log.tokens_seen == 2 * num_tokens(examples)
    assert log.tokens_loss == 2 * per_epoch


def test_budget_from_steps_epochs_and_tokens() -> None:
    examples = make_examples(6)
    total = num_tokens(examples)
    assert budget(examples, config(steps=3, batch_size=2)) == total
    assert budget(examples, config(steps=None, epochs=1.5)) == round(1.5 * total)
    assert budget(examples, config(steps=None, tokens=123)) == 123


class Replay(Strategy):
    """Put one old example into every list."""

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        old = make_examples(1, task="before")
        for examples in batches:
            yield examples[:-1] + old


def test_replayed_tokens_are_counted_and_use_the_budget() -> None:
    examples = make_examples(10)
    _, log = run(config(batch_size=5, micro_batch=5), examples=examples, strategy=Replay())
    assert log.tokens_replayed == log.steps * len(make_examples(1)[0].ids)
    assert 0 < log.tokens_replayed < log.tokens_seen


def test_learning_rate_is_a_function_of_tokens() -> None:
    cfg = config(warmup=0.2, lr=1.0)
    assert learning_rate(0.1, cfg) == pytest.approx(0.5)
    assert learning_rate(0.2, cfg) == pytest.approx(1.0)
    assert learning_rate(0.6, cfg) == pytest.approx(0.5)
    assert learning_rate(1.0, cfg) == pytest.approx(0.0)
    linear = config(warmup=0.0, lr=1.0, schedule="linear")
    assert [learning_rate(p, linear) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    constant = config(warmup=0.5, lr=1.0, schedule="constant")
    assert [learning_rate(p, constant) for p in (0.25, 0.5, 1.0)] == [0.5, 1.0, 1.0]
    assert learning_rate(1.0, config(warmup=1.0, lr=1.0)) == 1.0


def test_rates_rise_and_fall_without_a_step_of_rate_zero() -> None:
    _, log = run(config(steps=20, warmup=0.2))
    peak = log.lrs.index(max(log.lrs))
    assert 2 <= peak <= 5
    assert min(log.lrs) > 0
    assert list(log.lrs[peak:]) == sorted(log.lrs[peak:], reverse=True)
    assert log.sum_lr == pytest.approx(sum(log.lrs))
    assert log.lrs[-1] < 0.02 * 1e-2


def test_frozen_parameters_do_not_move_and_nothing_to_train_is_an_error() -> None:
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    run(config(), model=model)
    start = dict(tiny_llama().named_parameters())
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n in start if "q_proj" in n}
    model.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train in task now"):
        run(config(), model=model)


class Poison(Strategy):
    """Make the third loss, or the third gradient, infinite."""

    def __init__(self, where: str) -> None:
        self.where, self.num_steps = where, 0

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        if self.where == "loss" and self.num_steps == 2:
            return outputs.loss * math.nan
        return 0.0

    def before_step(self, model: nn.Module, step: Step) -> None:
        if self.where == "gradient" and self.num_steps == 2:
            next(model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]

    def after_step(self, model: nn.Module, step: Step) -> None:
        self.num_steps += 1
        self.weights = [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_divergence_stops_before_the_weights_see_it(where: str, clip: float | None) -> None:
    strategy = Poison(where)
    model, log = run(config(clip=clip), strategy=strategy)
    assert log.diverged
    assert log.steps == 2
    assert all(math.isfinite(loss) for loss in log.losses)
    assert moved_since(strategy.weights, model) == 0.0
    assert not model.training


def test_the_model_comes_back_in_eval_mode_and_without_gradients() -> None:
    model, log = run(config())
    assert not log.diverged
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def num_checkpointed(model: nn.Module) -> int:
    return sum(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_gradient_checkpointing_changes_nothing_and_is_off_afterwards() -> None:
    class Watch(Strategy):
        def before_step(self, model: nn.Module, step: Step) -> None:
            self.seen = num_checkpointed(model)

    strategy = Watch()
    plain, _ = run(config())
    checkpointed, _ = run(config(gradient_checkpointing=True), strategy=strategy)
    assert strategy.seen > 0
    assert num_checkpointed(checkpointed) == 0
    assert largest_difference(plain, checkpointed) < 1e-6


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_packed_and_padded_training_agree(make: Any) -> None:
    model = make()
    if isinstance(model, GPT2LMHeadModel):
        for module in model.modules():  # masks of dropout depend on the shape of the batch
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    packed = copy.deepcopy(model)
    model, padded_log = run(config(), model=model)
    packed, packed_log = run(config(packing=True), model=packed)
    assert padded_log.losses == pytest.approx(packed_log.losses, abs=1e-4)
    assert largest_difference(model, make()) > 1e-2
    assert padded_log.tokens_seen == packed_log.tokens_seen


def test_packing_is_refused_where_examples_could_see_each_other() -> None:
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="sdpa or eager, not 'flash_attention_2'"):
        run(config(packing=True), model=model)


def test_batches_reach_the_hook_as_lists_of_examples() -> None:
    strategy = Recorder()
    examples = make_examples(8)
    run(config(batch_size=4, micro_batch=2, steps=4), strategy=strategy, examples=examples)
    first_epoch = [e for part in strategy.lists[:4] for e in part]
    assert {e.index for e in first_epoch} == set(range(8))
    assert all(len(part) == 2 for part in strategy.lists)


def test_on_step_reports_every_step() -> None:
    reports = []
    _, log = run(config(), on_step=reports.append)
    assert [r.loss for r in reports] == list(log.losses)
    assert [r.lr for r in reports] == list(log.lrs)
    assert reports[-1].tokens_seen == log.tokens_seen >= reports[-1].budget_tokens
    assert reports[-1].total == 6


def test_answer_loss_counts_labelled_tokens_with_the_shift() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 3, -100, 1], [-100, -100, -100, 4]])
    scores = logits.log_softmax(-1)
    expected = -(scores[0, 0, 3] + scores[0, 2, 1] + scores[1, 2, 4])
    torch.testing.assert_close(answer_loss(logits, labels), expected)


TWO_PROCESSES = """
import sys
from types import SimpleNamespace

import torch
from torch import nn

from clbench.config import TrainConfig
from clbench.data import one_pass
from clbench.strategy import Example, Strategy, TaskContext
from clbench.training import train


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12)

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


class Pull(Strategy):
    def penalty(self, model, batch, outputs):
        return 0.1 * sum(p.square().sum() for p in model.parameters())


torch.set_num_threads(1)
torch.manual_seed(0)
lengths = [3, 6, 4, 8, 5, 7, 4, 3]
examples = [
    Example(tuple(range(1, n + 1)), (False,) + (True,) * (n - 1), "now", i)
    for i, n in enumerate(lengths)
]
cpu = torch.device("cpu")
task = TaskContext("now", 0, 0, lambda: examples, lambda: one_pass(examples, 2, 0, cpu), {}, ())
cfg = TrainConfig(lr=1e-2, batch_size=4, micro_batch=int(sys.argv[2]), steps=5)
model = Toy()
log = train(model, Pull(), task, examples, cfg, pad_id=0, device=cpu, budget_tokens=100)
torch.save({"weights": model.state_dict(), "losses": log.losses}, sys.argv[1])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(out: str, micro_batch: int, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(tmp_path / out), str(micro_batch)]
        return subprocess.Popen(command, env={**os.environ, **paths, **environment})

    ranks = [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        for rank in ("0", "1")
    ]
    children = [start(f"rank{env['RANK']}", 1, **env, **address) for env in ranks]
    children.append(start("alone", 4))
    try:
        assert [child.wait(timeout=400) for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    first, second, alone = (torch.load(tmp_path / name) for name in ("rank0", "rank1", "alone"))
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-5, rtol=1e-5)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
