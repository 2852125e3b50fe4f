"""Replay memories and the guard that feeds from them: what is stored, what is drawn, and when."""

from __future__ import annotations

import copy
import io
import json
from itertools import islice

import pytest
import torch
from clbench_strategies.lora import Lora
from clbench_strategies.replay import Replay
from clbench_strategies.reservoir import BalancedReservoir, Reservoir
from clbench_strategies.spectral import LoraNull
from scipy.stats import chisquare
from toys import toy_context, toy_model, toy_windows

from clbench.adapters import adapted, find_targets
from clbench.calibration import calibrate
from clbench.checkpoint import Checkpoints
from clbench.composition import Composed, compose
from clbench.config import TrainConfig
from clbench.data import collate, endless, num_tokens
from clbench.errors import UserError
from clbench.linalg import seeded_generator
from clbench.registry import build_strategy
from clbench.strategy import Example, Strategy
from clbench.training import TrainLog, budget, train

CPU = torch.device("cpu")


def rows(num: int, task: str = "a") -> list[Example]:
    """Return distinct examples of 3 to 6 tokens with an answer of 2."""
    return [
        Example(
            ids=tuple(3 + (i * 7 + k) % 60 for k in range(3 + i % 4)),
            loss_mask=(*[False] * (1 + i % 4), True, True),
            task=task,
            index=i,
        )
        for i in range(num)
    ]


def uniformity(counts: torch.Tensor, kept: int) -> float:
    """Return what is chi-square with n - 1 degrees if each run keeps `kept` of n uniformly."""
    num = len(counts)  # the examples of one run exclude one another, which shrinks the variance
    statistic: float = chisquare(counts.numpy()).statistic
    return statistic / (1 - kept / num) * (num - 1) / num


def fill(memory, examples):
    for example in examples:
        memory.offer(example)
    return memory


# The memories


def test_a_reservoir_keeps_early_and_late_examples_with_equal_probability() -> None:
    examples, runs, capacity = rows(100), 2000, 10
    generator = seeded_generator(0, "inclusion")
    counts = torch.zeros(len(examples))
    for _ in range(runs):
        kept = [e.index for e in fill(Reservoir(capacity, generator), examples).items]
        assert len(set(kept)) == capacity
        counts[kept] += 1
    expected = runs * capacity / len(examples)  # 200 each
    assert counts.sum() == runs * capacity
    assert 60 < uniformity(counts, capacity) < 149  # 99 degrees of freedom: 1e-3 on either side
    assert counts[:10].mean() == pytest.approx(expected, rel=0.06)
    assert counts[-10:].mean() == pytest.approx(expected, rel=0.06)


def test_a_reservoir_with_room_keeps_everything_in_order() -> None:
    examples = rows(7)
    assert fill(Reservoir(10, seeded_generator(0)), examples).items == examples


@pytest.mark.parametrize("kind", [Reservoir, BalancedReservoir])
def test_a_reloaded_memory_goes_on_as_the_first_would(kind) -> None:
    first = fill(kind(8, seeded_generator(1)), rows(30))
    state = first.state()
    twin = kind.load(state, seeded_generator(2))
    first.generator.set_state(seeded_generator(2).get_state())
    for memory in (first, twin):
        fill(memory, rows(30, "b"))
    assert twin.items == first.items
    assert twin.state() == first.state() != state
    assert fill(kind(8, seeded_generator(1)), rows(30)).state() == state


def test_a_balanced_memory_gives_each_task_its_share() -> None:
    memory = BalancedReservoir(11, seeded_generator(3))
    sizes = []
    for task, num in (("a", 100), ("b", 20), ("c", 40), ("d", 2)):
        held = set(memory.items)
        fill(memory, rows(num, task))
        assert {e for e in memory.items if e.task != task} <= held
        assert len(set(memory.items)) == len(memory.items) <= 11
        sizes.append([sum(e.task == t for e in memory.items) for t in "abcd"])
    assert sizes == [[11, 0, 0, 0], [6, 5, 0, 0], [4, 4, 3, 0], [3, 3, 3, 2]]


def test_a_balanced_memory_drops_early_and_late_examples_alike() -> None:
    generator, counts = seeded_generator(4), torch.zeros(20)
    for _ in range(2000):
        memory = fill(BalancedReservoir(10, generator), rows(20) + rows(20, "b") + rows(20, "c"))
        counts[[e.index for e in memory.items if e.task == "a"]] += 1
    assert counts.sum() == 2000 * 4
    assert 5 < uniformity(counts, 4) < 44  # 19 degrees of freedom: 1e-3 on either side


def test_a_balanced_memory_smaller_than_the_number_of_tasks_keeps_the_earliest() -> None:
    memory = BalancedReservoir(1, seeded_generator(5))
    fill(memory, rows(5) + rows(5, "b"))
    assert [e.task for e in memory.items] == ["a"]


# The guard


def task_of(examples: list[Example], index: int, model=None, **options):
    """Return the context of a task with these examples, named as they are."""
    task = toy_context(model or toy_model(), index=index, **options)
    task.name, task.examples = examples[0].task, lambda: examples
    return task


def after(guard: Replay, *tasks: list[Example], seed: int = 0) -> Replay:
    """Return the guard as it stands after tasks that trained nothing, in the next one."""
    model = toy_model()
    for index, examples in enumerate(tasks):
        task = task_of(examples, index, model, seed=seed)
        guard.begin_task(model, task)
        guard.end_task(model, task)
    guard.begin_task(model, task_of(rows(10, "next"), len(tasks), model, seed=seed))
    return guard


def learn(whole: Strategy, model, examples: list[Example], index: int, **options) -> TrainLog:
    """Take one task through all of its hooks with the real training loop."""
    found = calibrate(model, toy_windows(32, 24), find_targets(model), budget_bytes=2**17)
    task = task_of(examples, index, model, covariances={"world": found.covariances})
    whole.begin_task(model, task)
    log = train_on(whole, model, task, **options)
    whole.end_task(model, task)
    return log


def train_on(whole: Strategy, model, task, **options) -> TrainLog:
    examples = task.examples()
    cfg = TrainConfig(**{"lr": 1e-2, "batch_size": 4, "steps": 6, "max_length": 32} | options)
    tokens = budget(examples, cfg)
    return train(model, whole, task, examples, cfg, pad_id=0, device=CPU, budget_tokens=tokens)


def kept(guard: Replay) -> set[Example]:
    return set(guard._memory().items)


def test_a_tenth_of_the_first_four_hundred_is_old() -> None:
    guard = after(Replay(memory_size=30), rows(50), rows(50, "b"))
    fed = list(islice(guard.batches(endless(rows(60, "next"), 4, seed=1)), 100))
    assert {len(batch) for batch in fed} == {4}
    old = [e for batch in fed for e in batch if e.task != "next"]
    assert len(old) == 40
    for n in range(100):
        assert sum(e.task != "next" for batch in fed[:n] for e in batch) == 4 * n // 10
    assert set(old) == kept(guard)  # 40 draws walk through all 30
    guard.end_task(toy_model(), task_of(rows(60, "next"), 2))
    assert guard.facts()["used"] == 30


@pytest.mark.parametrize(("share", "size"), [(0.29, 100), (0.07, 100), (0.5, 1), (0.3, 7)])
def test_the_running_share_is_exact_in_decimals(share: float, size: int) -> None:
    guard = after(Replay(share=share), rows(50))
    fed = list(islice(guard.batches(endless(rows(60, "next"), size, seed=1)), 100))
    assert {len(batch) for batch in fed} == {size}
    assert sum(e.task == "a" for batch in fed for e in batch) == round(share * 100) * size


def test_current_examples_wait_for_their_turn() -> None:
    current = endless(rows(16, "next"), 4, seed=1)
    expected = [e for batch in islice(endless(rows(16, "next"), 4, seed=1), 8) for e in batch]
    fed = islice(after(Replay(share=0.25), rows(50)).batches(current), 8)
    assert [e for batch in fed for e in batch if e.task == "next"] == expected[:24]


def test_a_finite_stream_ends() -> None:
    guard = after(Replay(share=0.5), rows(50))
    fed = [e for batch in guard.batches(iter([rows(4, "next"), rows(3, "next")])) for e in batch]
    assert [e for e in fed if e.task == "next"] == rows(4, "next") + rows(3, "next")


def test_adding_puts_the_share_on_top() -> None:
    guard = after(Replay(share=1, mode="add"), rows(50))
    for batch in islice(guard.batches(endless(rows(60, "next"), 4, seed=1)), 10):
        assert [e.task for e in batch] == ["next"] * 4 + ["a"] * 4
    guard = after(Replay(share=0.1, mode="add"), rows(50))
    fed = list(islice(guard.batches(endless(rows(60, "next"), 4, seed=1)), 10))
    assert sorted(len(batch) for batch in fed) == [4] * 6 + [5] * 4


@pytest.mark.parametrize("guard", [Replay(), Replay(mode="add", share=1)])
def test_nothing_is_replayed_in_the_first_task(guard: Replay) -> None:
    model, stream = toy_model(), endless(rows(9), 4, seed=1)
    guard = copy.deepcopy(guard)
    guard.begin_task(model, task_of(rows(9), 0, model))
    assert guard.batches(stream) is stream


def test_no_share_feeds_what_no_guard_would() -> None:
    stream = endless(rows(9), 4, seed=1)
    assert after(Replay(share=0), rows(50)).batches(stream) is stream


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_the_memory_holds_each_task_as_it_was_and_none_twice(policy: str) -> None:
    tasks = [rows(40), rows(20, "b"), rows(30, "c")]
    guard = after(Replay(memory_size=24, policy=policy), *tasks)  # type: ignore[arg-type]
    items = guard._memory().items
    assert len(items) == len(set(items)) == 24
    assert set(items) <= {example for task in tasks for example in task}
    sizes = [sum(e.task == t for e in items) for t in "abc"]
    assert sizes == [8, 8, 8] if policy == "balanced" else sizes != [8, 8, 8]


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_the_memory_depends_on_the_seed_and_on_nothing_else(policy: str) -> None:
    def memory(seed: int, noise: int) -> list[Example]:
        torch.manual_seed(noise)
        guard = Replay(memory_size=20, policy=policy)  # type: ignore[arg-type]
        after(guard, rows(60), rows(60, "b"), seed=seed)
        list(islice(guard.batches(endless(rows(9, "next"), 4, seed=noise)), noise))
        return guard._memory().items

    assert memory(0, 1) == memory(0, 2)
    assert memory(0, 1) != memory(1, 1)


def test_the_order_of_replay_differs_between_tasks_and_seeds() -> None:
    def drawn(index: int, seed: int) -> list[int]:
        guard = after(Replay(share=0.5), rows(40), seed=seed)
        guard.begin_task(toy_model(), task_of(rows(9, "next"), index, seed=seed))
        fed = islice(guard.batches(endless(rows(9, "next"), 4, seed=1)), 20)
        return [e.index for batch in fed for e in batch if e.task == "a"]

    assert drawn(1, 0) == drawn(1, 0)
    assert sorted(drawn(1, 0)) == list(range(40))
    assert len({tuple(drawn(index, seed)) for index in (1, 2) for seed in (0, 1)}) == 4


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", [Lora(rank=2), LoraNull(rank=2)], ids=["lora", "lora-null"])
def test_a_stream_trains_as_many_examples_as_without_replay(adapter, layout: str) -> None:
    tasks = [rows(24), rows(24, "b"), rows(24, "c")]
    guard = Replay(memory_size=12, share=0.25)
    whole = compose([copy.deepcopy(adapter), guard], lambda name: Lora())
    assert isinstance(whole, Composed)
    model, facts, steps = toy_model(layout, decaying=True), [], []
    for index, examples in enumerate(tasks):
        log = learn(whole, model, examples, index)
        assert not adapted(model)
        facts.append(whole.facts()["replay"])
        assert facts[-1]["batch"] == log.tokens_replayed / log.tokens_seen
        steps.append(log.steps)
        assert 0 <= log.tokens_seen - num_tokens(examples) < 4 * 6  # at most one step more
    assert facts[0] == {
        "kept": {}, "batch": 0.0, "buffer": 0.0, "used": 0,
        "memory_examples": 12, "memory_bytes": facts[0]["memory_bytes"],
    }  # fmt: skip
    assert facts[1]["kept"] == {"a": 0.5}
    assert facts[1]["buffer"] == 0.5
    assert facts[1]["used"] == steps[1]  # one old example a step
    assert facts[1]["batch"] == pytest.approx(0.25, abs=0.05)
    assert set(facts[2]["kept"]) == {"a", "b"}
    assert sum(facts[2]["kept"].values()) == pytest.approx(0.5)
    assert facts[2]["memory_bytes"] == 9 * num_tokens(kept(guard))
    assert json.loads(json.dumps(facts)) == facts


def test_two_epochs_leave_the_memory_of_one() -> None:
    memories = []
    for epochs in (1, 2):
        guard = Replay(memory_size=10, share=0.5)
        whole = Composed((Lora(rank=2), guard))
        model = toy_model()
        for index, examples in enumerate([rows(20), rows(20, "b"), rows(20, "c")]):
            learn(whole, model, examples, index, steps=None, epochs=epochs)
        memories.append(guard._memory().items)
    assert memories[0] == memories[1]


def test_the_memory_holds_no_padding() -> None:
    guard = Replay(memory_size=20)
    learn(Composed((Lora(rank=2), guard)), toy_model(), rows(12), 0)
    items = guard._memory().items
    assert items == rows(12)
    batch = collate(items, 63, CPU)
    assert batch.attention_mask.sum() == num_tokens(items) < batch.input_ids.numel()
    assert guard._memory().items == rows(12)


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_the_state_loads_without_pickle_and_goes_on(policy: str) -> None:
    guard = after(Replay(memory_size=9, policy=policy), rows(30))  # type: ignore[arg-type]
    buffer = io.BytesIO()
    torch.save(guard.state(), buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([Example]):
        loaded = torch.load(buffer, weights_only=True)
    twin = type(guard)(**guard.params())
    assert twin.state() == {}
    twin.load_state(loaded)
    assert twin.state() == guard.state()
    streams = [g.batches(endless(rows(9, "next"), 5, seed=1)) for g in (guard, twin)]
    assert list(islice(streams[0], 20)) == list(islice(streams[1], 20))
    task = task_of(rows(30, "next"), 1)
    for one in (guard, twin):
        one.end_task(toy_model(), task)
    assert twin.state() == guard.state()
    assert twin.facts() == guard.facts() != {}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"memory_size": 0}, "memory_size 0 is not a positive integer"),
        ({"memory_size": 2.5}, "memory_size 2.5 is not a positive integer"),
        ({"share": -0.1}, "share -0.1 is not a number from 0 to 1"),
        ({"share": float("nan")}, "share nan is not a number"),
        ({"share": "half"}, "share 'half' is not a number"),
        ({"share": 1.0}, "share 1 leaves no room"),
        ({"policy": "balance"}, "policy of replay 'balance'; did you mean balanced?"),
        ({"mode": "append"}, "unknown mode of replay 'append'"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        Replay(**fields)


def test_replay_alone_brings_lora() -> None:
    assert [part.name() for part in build_strategy("replay", {}).parts] == ["lora", "replay"]


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_run_killed_in_training_replays_the_same(layout: str, tmp_path) -> None:
    """It goes on from the checkpoint before training, with a new object and no begin_task."""
    tasks = [rows(24), rows(24, "b"), rows(24, "c")]
    whole, model = Composed((Lora(rank=2), Replay(20, 0.5))), toy_model(layout)
    learn(whole, model, tasks[0], 0)
    task = task_of(tasks[1], 1, model)
    whole.begin_task(model, task)
    checkpoints = Checkpoints(tmp_path, toy_model(layout))
    checkpoints.save("2-calibrate", model, whole)
    twin = Composed((Lora(rank=2), Replay(20, 0.5)))
    again = checkpoints.load("2-calibrate", toy_model(layout), twin)
    logs = [train_on(w, m, task) for w, m in ((whole, model), (twin, again))]
    assert logs[0].tokens_replayed == logs[1].tokens_replayed > 0
    assert logs[0].losses == logs[1].losses
    for one, other in ((whole, model), (twin, again)):
        one.end_task(other, task)
        learn(one, other, tasks[2], 2)
    assert twin.state() == whole.state()
    assert twin.facts() == whole.facts()
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
