"""I-LoRA: which copy is read, how the slow one follows, and what the consistency term measures."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar, cast

import pytest
import torch
from clbench_strategies.fastslow import (
    FastSlowLinear,
    HiddenStates,
    decoder_layers,
    fast_slow_layers,
    reading_slow,
)
from clbench_strategies.ilora import ILora
from clbench_strategies.lora import Lora
from clbench_strategies.replay import Replay
from torch import Tensor
from toys import LAYOUTS, logits, toy_context, toy_model, toy_windows

from clbench.adapters import adapted, fold, read_weight, rebuild, structure
from clbench.checkpoint import Checkpoints
from clbench.composition import Composed, compose
from clbench.config import TrainConfig
from clbench.data import collate, num_tokens
from clbench.errors import UserError
from clbench.movement import StartWeights, task_movement
from clbench.strategy import Batch, Example, Step, Strategy
from clbench.training import TrainLog, budget, train

CPU = torch.device("cpu")
HELD_OUT = toy_windows(4, 12, seed=1)
COPIES = ("up", "down", "slow_up", "slow_down")


def rows(num: int, task: str = "a", *, seed: int = 0) -> list[Example]:
    """Return distinct random examples of 4 to 9 tokens with an answer of 2."""
    found = []
    for index, window in enumerate(toy_windows(num, 9, seed=seed).tolist()):
        ids = tuple(window[: 4 + index % 6])
        mask = (*[False] * (len(ids) - 2), True, True)
        found.append(Example(ids, mask, task, index))
    return found


TASKS = [rows(24), rows(24, "b", seed=1), rows(24, "c", seed=2)]


def begin(strategy: Strategy, model, index: int, tasks=TASKS):
    examples = tasks[index]
    task = toy_context(model, index=index)
    task.name, task.examples = examples[0].task, lambda: examples
    strategy.begin_task(model, task)
    return task


def train_on(strategy: Strategy, model, task, **options) -> TrainLog:
    examples = task.examples()
    cfg = TrainConfig(**{"lr": 1e-2, "batch_size": 4, "steps": 4, "max_length": 32} | options)
    tokens = budget(examples, cfg)
    return train(model, strategy, task, examples, cfg, pad_id=0, device=CPU, budget_tokens=tokens)


def learn(strategy: Strategy, model, *indices: int, tasks=TASKS, **options) -> list[TrainLog]:
    """Take tasks through all of their hooks with the real training loop."""
    logs = []
    for index in indices:
        task = begin(strategy, model, index, tasks)
        logs.append(train_on(strategy, model, task, **options))
        strategy.end_task(model, task)
    return logs


def factors(model) -> list[dict[str, Tensor]]:
    """Return copies of the four factors of every layer."""
    return [
        {name: getattr(layer, name).detach().clone() for name in COPIES}
        for layer in fast_slow_layers(model).values()
    ]


def num_hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Watched(ILora):
    """Keeps the factors before training and after every step."""

    def begin_task(self, model, task):
        model = super().begin_task(model, task)
        self.seen = [*getattr(self, "seen", [factors(model)])]
        return model

    def after_step(self, model, step):
        super().after_step(model, step)
        self.seen.append(factors(model))


# The two copies


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_copies_start_equal_and_change_no_function(layout: str) -> None:
    model = toy_model(layout)
    before, trained = logits(model, HELD_OUT), logits(model.train(), HELD_OUT)
    model.eval()
    task = begin(ILora(rank=4), model, 0)
    assert set(task.trained) == set(task.targets) == set(fast_slow_layers(model))
    for layer in factors(model):
        assert torch.equal(layer["up"], layer["slow_up"])
        assert torch.equal(layer["down"], layer["slow_down"])
        assert layer["down"].any()
        assert not layer["up"].any()
    assert torch.equal(logits(model, HELD_OUT), before)
    assert torch.equal(logits(model.train(), HELD_OUT), trained)
    names = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"up", "down"}


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@pytest.mark.parametrize("warmup", [True, False])
def test_the_slow_copy_is_the_average_over_the_whole_stream(layout: str, warmup: bool) -> None:
    strategy, model = Watched(rank=4, ema_decay=0.6, ema_warmup=warmup), toy_model(layout)
    learn(strategy, model, 0, 1)
    assert len(strategy.seen) == strategy.num_steps_ + 1 >= 9
    for n, (before, after) in enumerate(zip(strategy.seen, strategy.seen[1:], strict=False)):
        weight = min(1 - 1 / (n + 1), 0.6) if warmup else 0.6
        for old, new in zip(before, after, strict=True):
            for name in ("up", "down"):
                expected = weight * old[f"slow_{name}"] + (1 - weight) * new[name]
                torch.testing.assert_close(new[f"slow_{name}"], expected)
                moved = not torch.equal(new[f"slow_{name}"], old[f"slow_{name}"])
                assert moved or (name, n) == ("down", 0)  # while up is 0, down has no gradient
    if warmup:  # the first step of the stream copies
        assert all(torch.equal(a["up"], a["slow_up"]) for a in strategy.seen[1])


def test_without_inertia_slow_is_fast_and_with_full_inertia_it_stays() -> None:
    strategy, model = Watched(rank=4, ema_decay=0.0), toy_model()
    learn(strategy, model, 0, 1)
    for layer in factors(model):
        assert torch.equal(layer["up"], layer["slow_up"])
        assert torch.equal(layer["down"], layer["slow_down"])
    strategy = Watched(rank=4, ema_decay=1.0, ema_warmup=False)
    model = toy_model()
    learn(strategy, model, 0, 1)
    for start, end in zip(strategy.seen[0], factors(model), strict=True):
        assert torch.equal(start["slow_up"], end["slow_up"])
        assert torch.equal(start["slow_down"], end["slow_down"])
        assert not torch.equal(start["up"], end["up"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eval_mode_reads_slow_and_train_mode_fast(layout: str) -> None:
    strategy, model = ILora(rank=4, ema_decay=0.9), toy_model(layout)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(strategy, model, 0)

    def by_hand(copy_name: str) -> Tensor:
        plain = toy_model(layout)
        for name, layer in fast_slow_layers(model).items():
            change = getattr(layer, f"{copy_name}up") @ getattr(layer, f"{copy_name}down")
            weight = plain.get_submodule(name).weight
            weight.data += change.detach().T if layout == "gpt2" else change.detach()
        return logits(plain, HELD_OUT)

    slow, fast = logits(model, HELD_OUT), logits(model.train(), HELD_OUT)
    with reading_slow(model):
        assert torch.equal(logits(model, HELD_OUT), slow)
    assert torch.equal(logits(model, HELD_OUT), fast)
    model.eval()
    torch.testing.assert_close(slow, by_hand("slow_"), rtol=0, atol=1e-5)
    torch.testing.assert_close(fast, by_hand(""), rtol=0, atol=1e-5)
    assert float((slow - fast).abs().max()) > 1e-3
    for name, parameter in model.named_parameters():
        plain = name.replace(".base.", ".")
        assert plain not in base or torch.equal(parameter, base[plain])
    torch.testing.assert_close(logits(fold(model), HELD_OUT), slow, rtol=0, atol=1e-5)


def test_the_record_measures_the_slow_copy() -> None:
    strategy, model = ILora(rank=4), toy_model()
    names = begin(strategy, model, 0).targets
    start = StartWeights(toy_model(), names)
    assert task_movement(model) == 0.0
    learn(strategy, model, 0)
    layer = fast_slow_layers(model)[names[0]]
    change = layer.slow_up @ layer.slow_down
    torch.testing.assert_close(read_weight(layer), layer.weight + change)
    assert task_movement(model) == pytest.approx(start.movement(model)["all"], rel=1e-4)
    begin(strategy, model, 1)
    assert task_movement(model) == 0.0
    assert start.movement(model)["all"] > 0


def test_a_guard_sees_the_change_of_the_copy_that_trains() -> None:
    strategy, model = ILora(rank=4), toy_model("gpt2")
    learn(strategy, model, 0)
    task = begin(strategy, model, 1)
    model.train()
    before = logits(model, HELD_OUT)
    layers = list(task.trained.values())
    assert all(not layer.delta().any() for layer in layers)
    train_on(strategy, model, task)
    model.train()
    for layer in layers:
        up0, down0 = layer.start()["up"], layer.start()["down"]
        expected = layer.up @ layer.down - up0 @ down0
        torch.testing.assert_close(layer.delta(), expected, rtol=0, atol=1e-6)
        layer.delta().sum().backward()
        assert set(layer.trainables()) == {"up", "down"}
        assert all(p.grad is not None for p in layer.trainables().values())
    for layer in layers:
        layer._without = True
    assert torch.equal(logits(model, HELD_OUT), before)


def test_the_factors_are_float32_on_bfloat16_and_untouched_tasks_change_no_bit() -> None:
    model = toy_model().bfloat16()
    before = logits(model, HELD_OUT)
    strategy = ILora(rank=4)
    for index in range(3):
        task = begin(strategy, model, index)
        strategy.end_task(model, task)
    assert torch.equal(logits(model, HELD_OUT), before)
    for layer in fast_slow_layers(model).values():
        assert {t.dtype for n, t in layer.state_dict().items() if "base" not in n} == {
            torch.float32
        }
        assert torch.equal(layer.folded().view(torch.int16), layer.weight.view(torch.int16))


def test_what_a_task_was_given_stays_as_it_was() -> None:
    """The slow copy of before is kept as the start of the task; a new one follows."""
    strategy, model = ILora(rank=4, ema_decay=0.5), toy_model()
    learn(strategy, model, 0)
    given = dict(model.named_buffers())
    before = {name: tensor.clone() for name, tensor in given.items()}
    train_on(strategy, model, begin(strategy, model, 1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.items())
    for layer in fast_slow_layers(model).values():
        assert not torch.equal(layer.slow_up, layer.slow_up_start)


def test_alpha_scales_both_copies() -> None:
    strategy, model = ILora(rank=4, alpha=8.0), toy_model()
    learn(strategy, model, 0)
    layer = next(iter(fast_slow_layers(model).values()))
    torch.testing.assert_close(layer.change(), 2.0 * layer.slow_up @ layer.slow_down)


def test_nothing_grows_from_task_to_task() -> None:
    strategy, model, sizes = ILora(rank=4), toy_model(), []
    for index in range(3):
        learn(strategy, model, index)
        entries = {name: value.shape for name, value in model.state_dict().items()}
        sizes.append((entries, len(adapted(model)), num_hooks(model)))
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0][2] == 0


# Consistency


def manual_hidden(model, layout: str, batch: Batch) -> list[Tensor]:
    """Return what the decoder layers give, read by hooks of the test's own."""
    kept: list[Tensor] = []
    layers = model.transformer.h if layout == "gpt2" else model.model.layers
    handles = [
        layer.register_forward_hook(
            lambda m, i, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(**batch.model_inputs())
    for handle in handles:
        handle.remove()
    assert len(kept) == 2
    return kept


class Penalties(ILora):
    """Notes the value of the term, its gradient and what it was computed on."""

    def batches(self, batches):
        self.values: list[float] = []
        self.fed: list[list[Example]] = []
        return super().batches(batches)

    def penalty(self, model, batch, outputs):
        value = super().penalty(model, batch, outputs)
        self.values.append(float(torch.as_tensor(value).detach()))
        self.fed.append(batch.examples)
        return value


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("target", ["slow", "max"])
def test_the_term_is_the_mean_squared_distance_on_memory_rows(layout: str, target: Any) -> None:
    strategy = Penalties(rank=4, consistency=3.0, target=target, ema_decay=0.9)
    model = toy_model(layout)
    learn(strategy, model, 0)
    task = begin(strategy, model, 1)
    frozen = copy.deepcopy(model)
    train_on(strategy, model, task, steps=1)
    memory = collate([e for e in strategy.fed[0] if e.task == "a"], 0, CPU)
    assert len(memory.examples) == 2
    assert not memory.attention_mask.all()
    fast = manual_hidden(frozen.train(), layout, memory)
    slow = manual_hidden(frozen.eval(), layout, memory)
    squares = []
    for quick, steady in zip(fast, slow, strict=True):
        for row, example in enumerate(memory.examples):
            for token in range(len(example.ids)):
                gap = steady[row, token] - quick[row, token]
                squares.append((gap.clamp(min=0) if target == "max" else gap).square())
    expected = 3.0 * float(torch.cat(squares).mean())
    assert expected > 1e-7
    assert strategy.values[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_the_term_does_not_depend_on_micro_batches(layout: str) -> None:
    """Neither do hooks and passes of their own: only the first batch of a task pays the latter."""
    moved, terms = [], []
    for micro_batch in (8, 2, 1):
        strategy, model = Penalties(rank=4, consistency=100.0), toy_model(layout)
        learn(strategy, model, 0)
        task = begin(strategy, model, 1)
        train_on(strategy, model, task, steps=2, batch_size=8, micro_batch=micro_batch)
        num_parts = 8 // micro_batch
        values = strategy.values
        terms.append([sum(values[i : i + num_parts]) / num_parts for i in (0, num_parts)])
        moved.append(torch.cat([f["up"].flatten() for f in factors(model)]))
    for values, weights in zip(terms[1:], moved[1:], strict=True):
        assert values == pytest.approx(terms[0], rel=1e-3)
        torch.testing.assert_close(weights, moved[0], rtol=0, atol=2e-4)


def test_the_term_pulls_the_fast_copy_alone() -> None:
    strategy, model = ILora(rank=4, ema_decay=0.9), toy_model()
    learn(strategy, model, 0)
    begin(strategy, model, 1)
    fed = next(strategy.batches(iter([TASKS[1][:4]])))
    batch = collate(fed, 0, CPU)
    model.train()
    outputs = model(**batch.model_inputs())
    value = strategy.penalty(model, batch, outputs)
    assert isinstance(value, Tensor)
    value.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.rpartition(".")[2] for name in trained} == {"up", "down"}
    assert all(not layer.slow_up.requires_grad for layer in fast_slow_layers(model).values())
    strategy.end_task(model, toy_context(model, index=1))


def test_no_consistency_means_no_pass_and_no_hook() -> None:
    strategy, model = Penalties(rank=4, consistency=0.0), toy_model()
    learn(strategy, model, 0)
    train_on(strategy, model, begin(strategy, model, 1))
    assert set(strategy.values) == {0.0}
    assert num_hooks(model) == 0
    assert strategy.tokens_forward_ == strategy.tokens_backward_ == 0
    assert strategy.tokens_old_ > 0


def test_the_first_task_is_a_plain_adapter_without_memory() -> None:
    strategy, model = Penalties(rank=4), toy_model()
    (log,) = learn(strategy, model, 0)
    assert set(strategy.values) == {0.0}
    assert log.tokens_replayed == 0
    assert strategy.facts()["tokens_extra_forward"] == 0


def test_half_of_every_later_batch_is_old() -> None:
    strategy, model = Penalties(rank=4), toy_model()
    logs = learn(strategy, model, 0, 1, 2)
    assert [sum(e.task != "c" for e in fed) for fed in strategy.fed] == [2] * len(strategy.fed)
    assert logs[2].tokens_replayed / logs[2].tokens_seen == pytest.approx(0.5, abs=0.1)
    assert min(strategy.values) > 0
    facts = strategy.facts()
    assert facts["batch"] == logs[2].tokens_replayed / logs[2].tokens_seen
    first = num_tokens(e for e in strategy.fed[0] if e.task != "c")
    assert facts["tokens_extra_forward"] == logs[2].tokens_replayed + first
    assert facts["tokens_extra_backward"] == first
    assert facts["memory_examples"] == 72


def test_hooks_live_within_the_training_of_a_task_and_others_stay() -> None:
    strategy, model = ILora(rank=4), toy_model()
    calls: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    learn(strategy, model, 0)
    task = begin(strategy, model, 1)
    train_on(strategy, model, task)
    assert num_hooks(model) == 1 + 2  # one on each decoder layer
    given = {name: tensor.clone() for name, tensor in model.named_buffers()}
    strategy.end_task(model, task)
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.named_buffers())
    assert num_hooks(model) == 1
    calls.clear()
    logits(model, HELD_OUT)
    assert calls == [1]


def test_the_decoder_layers_are_those_with_adapters() -> None:
    model = toy_model("gpt2")
    assert decoder_layers(model) == []
    model.other = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.Linear(2, 2)])])
    begin(ILora(rank=2), model, 0)
    assert decoder_layers(model)[:2] == list(model.transformer.h)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_checkpointing_activations_changes_nothing(layout: str) -> None:
    moved = []
    for checkpointing in (False, True):
        strategy, model = Penalties(rank=4, consistency=100.0), toy_model(layout)
        learn(strategy, model, 0)
        task = begin(strategy, model, 1)
        train_on(strategy, model, task, gradient_checkpointing=checkpointing)
        assert min(strategy.values) > 0
        moved.append(factors(model))
    for one, other in zip(*moved, strict=True):
        for name in COPIES:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


def test_packed_rows_give_the_same_term() -> None:
    values = []
    for packing in (False, True):
        strategy, model = Penalties(rank=4), toy_model()
        learn(strategy, model, 0)
        train_on(strategy, model, begin(strategy, model, 1), packing=packing)
        values.append(strategy.values)
    assert values[1] == pytest.approx(values[0], rel=1e-2)


def test_the_passes_cast_as_the_training_step_does() -> None:
    model = toy_model()
    begin(ILora(rank=2), model, 0)
    hidden = HiddenStates(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(model, HELD_OUT)
    with hidden.autocast(CPU):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    logits(model, HELD_OUT)
    with hidden.autocast(CPU):
        assert not torch.is_autocast_enabled("cpu")
    assert [states.shape for states in hidden.take()] == [(4, 12, 32)] * 2
    assert hidden.take() == []
    strategy, model = Penalties(rank=4), toy_model()
    learn(strategy, model, 0, 1, autocast="bf16")
    assert min(strategy.values) > 0


# The stream


def test_the_names_of_the_tasks_do_not_matter() -> None:
    ends = []
    for names in ("abc", "zyx"):
        tasks = [
            [example._replace(task=name) for example in examples]
            for name, examples in zip(names, TASKS, strict=True)
        ]
        strategy, model = ILora(rank=4, memory_size=20), toy_model()
        logs = learn(strategy, model, 0, 1, 2, tasks=tasks)
        ends.append((factors(model), [log.losses for log in logs]))
    assert ends[0][1] == ends[1][1]
    for one, other in zip(ends[0][0], ends[1][0], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in COPIES)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_run_killed_in_training_ends_as_one_that_was_not(layout: str, tmp_path) -> None:
    """It goes on from the checkpoint before training, with a new object and no begin_task."""
    strategy, model = ILora(20, 0.5, rank=4), toy_model(layout)
    learn(strategy, model, 0)
    task = begin(strategy, model, 1)
    checkpoints = Checkpoints(tmp_path, toy_model(layout))
    checkpoints.save("2-calibrate", model, strategy)
    twin = ILora(20, 0.5, rank=4)
    assert twin.state() == {}
    again = checkpoints.load("2-calibrate", toy_model(layout), twin)
    assert torch.equal(logits(again, HELD_OUT), logits(model, HELD_OUT))
    for one, trained in ((strategy, model), (twin, again)):
        train_on(one, trained, task)
    checkpoints.save("2-train", again, twin)
    twin = ILora(20, 0.5, rank=4)
    again = checkpoints.load("2-train", toy_model(layout), twin)
    for one, trained in ((strategy, model), (twin, again)):
        one.end_task(trained, task)
        assert num_hooks(trained) == 0
    assert twin.facts() == strategy.facts()
    for one, trained in ((strategy, model), (twin, again)):
        learn(one, trained, 2)
    assert twin.facts() == strategy.facts()
    assert twin.state() == strategy.state()
    for mine, other in zip(factors(model), factors(again), strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in COPIES)
    ids = HELD_OUT
    assert torch.equal(logits(model, ids), logits(again, ids))


def test_the_structure_rebuilds_from_its_settings() -> None:
    strategy, model = ILora(rank=4, alpha=8.0), toy_model()
    learn(strategy, model, 0)
    other = rebuild(toy_model(), structure(model))
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, HELD_OUT), logits(model, HELD_OUT))
    layer = next(iter(fast_slow_layers(other).values()))
    assert layer.settings() == {"rank": 4, "scale": 2.0}


@dataclasses.dataclass
class Quiet(Strategy):
    kind: ClassVar = "guard"


def named(name: str) -> Strategy:
    """Return a guard that goes by a name."""
    kind = type("Named", (Quiet,), {"name": classmethod(lambda cls: name)})
    return cast(Strategy, kind())


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        (Replay(), "i-lora has a memory of its own"),
        (named("ewc"), "ewc estimates in eval mode"),
        (named("mas"), "mas estimates in eval mode"),
        (named("a-gem"), "a-gem estimates in eval mode"),
        (named("gpm"), "gpm needs factors that are fresh"),
        (named("wise-ft"), "wise-ft needs factors that are fresh"),
    ],
    ids=lambda value: value.name() if isinstance(value, Strategy) else "",
)
def test_guards_that_cannot_work_are_refused_with_the_reason(guard, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        compose([ILora(), guard], lambda name: Lora())
    assert isinstance(compose([ILora(), named("l2")], lambda name: Lora()), Composed)


def test_a_narrow_layer_gets_a_lower_rank() -> None:
    model = toy_model()
    begin(ILora(rank=16), model, 0)
    layers = fast_slow_layers(model)
    assert layers["model.layers.0.self_attn.k_proj"].settings()["rank"] == 8
    assert isinstance(layers["model.layers.0.self_attn.q_proj"], FastSlowLinear)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank": 0}, "i-lora: rank 0 is not"),
        ({"alpha": -1.0}, "i-lora: alpha -1.0 is not"),
        ({"ema_decay": 1.5}, "i-lora: ema_decay 1.5 is not a number from 0 to 1"),
        ({"ema_decay": True}, "i-lora: ema_decay True"),
        ({"consistency": -1}, "i-lora: consistency -1 is not"),
        ({"consistency": float("nan")}, "i-lora: consistency nan is not"),
        ({"target": "maximum"}, "unknown target of i-lora 'maximum'"),
        ({"share": 1.0}, "i-lora: share 1 leaves no room"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ILora(**fields)


def test_the_same_seed_gives_the_same_weights() -> None:
    ends = []
    for noise in (0, 1):
        torch.manual_seed(noise)  # none of the strategy's draws may come from here
        strategy, model = ILora(rank=4), toy_model()
        learn(strategy, model, 0, 1)
        ends.append(factors(model))
    for one, other in zip(*ends, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in COPIES)


def test_the_average_counts_the_steps_of_the_stream() -> None:
    strategy, model = ILora(rank=4), toy_model()
    logs = learn(strategy, model, 0, 1)
    assert strategy.num_steps_ == sum(log.steps for log in logs)
    before = factors(model)
    strategy.after_step(model, Step(0, 10, 1e-3))
    n = strategy.num_steps_ - 1
    weight = min(1 - 1 / (n + 1), 0.99)
    for old, layer in zip(before, fast_slow_layers(model).values(), strict=True):
        torch.testing.assert_close(
            layer.slow_up, weight * old["slow_up"] + (1 - weight) * old["up"]
        )
