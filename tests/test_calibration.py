"""Covariances: what is summed, over which tokens, in how much memory, of which model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_model, toy_windows
from transformers import PreTrainedModel

from clbench import calibration
from clbench.adapters import FactorLinear, adapted, attach, find_targets, freeze, weight_shape
from clbench.calibration import Calibration, calibrate, draw_windows, held_out_energy, shared_inputs
from clbench.errors import RunFailed, UserError
from clbench.linalg import orthonormal, seeded_generator

WINDOWS = toy_windows(16, 24)
ROOMY = 10**6
Q, OUT, DOWN = (
    f"model.layers.1.{part}" for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
)


def measured(model: nn.Module, windows: Tensor = WINDOWS, **options) -> Calibration:
    options = {"budget_bytes": ROOMY} | options
    return calibrate(model, windows, find_targets(model), **options)


def inputs_of(model: nn.Module, name: str, windows: Tensor) -> Tensor:
    """Return a layer's input in float64, (windows, tokens, in)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, x, y: seen.append(x[0]))
    logits(model, windows)
    handle.remove()
    return seen[0].double()


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_second_moment_per_token(layout: str, accumulate: str) -> None:
    model = toy_model(layout, decaying=True)
    found = measured(model, accumulate=accumulate)
    assert found.tokens == WINDOWS.numel()
    for name in find_targets(model):
        x = inputs_of(model, name, WINDOWS).flatten(0, 1)
        covariance = found.covariances[name]
        assert covariance.dtype == getattr(torch, accumulate)
        expected = x.T @ x / len(x)
        error = float((covariance - expected).norm() / expected.norm())
        assert error < (1e-6 if accumulate == "float32" else 1e-12), name


def test_sums_are_float32_on_a_bfloat16_model() -> None:
    model = toy_model(decaying=True).bfloat16()
    covariance = measured(model).covariances[Q]
    assert covariance.dtype == torch.float32
    x = inputs_of(model, Q, WINDOWS).flatten(0, 1)
    torch.testing.assert_close(covariance.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [("llama", [3, 1, 2, 1]), ("qwen2", [3, 1, 2, 1]), ("gemma", [3, 1, 2, 1]), ("gpt2", [1] * 4)],
)
def test_layers_of_one_input_share_one_accumulator(layout: str, sizes: list[int]) -> None:
    model = toy_model(layout)
    groups = shared_inputs(model, WINDOWS, find_targets(model))
    assert [len(group) for group in groups] == sizes * 2
    covariances = measured(model).covariances
    for group in groups:
        assert all(covariances[name] is covariances[group[0]] for name in group)
    assert len({id(covariances[name]) for name in covariances}) == len(groups)


def test_appended_padding_changes_nothing() -> None:
    model = toy_model(decaying=True)
    padded = torch.cat((WINDOWS, torch.zeros(16, 12, dtype=torch.int64)), 1)
    mask = (torch.arange(36) < 24).long().expand(16, 36)
    plain, masked = measured(model), measured(model, padded, attention_mask=mask)
    unmasked = measured(model, padded)
    assert masked.tokens == plain.tokens == 16 * 24
    for name in (Q, OUT, DOWN):
        torch.testing.assert_close(masked.covariances[name], plain.covariances[name])
        error = (unmasked.covariances[name] - plain.covariances[name]).norm()
        assert float(error / plain.covariances[name].norm()) > 0.1


def test_the_same_text_twice_changes_nothing() -> None:
    model = toy_model(decaying=True)
    once, twice = measured(model), measured(model, WINDOWS.repeat(2, 1))
    for name in (Q, DOWN):
        torch.testing.assert_close(twice.covariances[name], once.covariances[name])


def test_published_window_scaling_divides_by_the_maximum_and_by_the_windows() -> None:
    model = toy_model(decaying=True)
    found = measured(model, window_scaling="published").covariances
    for name in (Q, DOWN):
        x = inputs_of(model, name, WINDOWS).double()
        x = x / x.amax((1, 2), keepdim=True).abs()
        rows = x.flatten(0, 1)
        torch.testing.assert_close(found[name].double(), rows.T @ rows / 16, rtol=1e-5, atol=1e-6)


def test_grouped_passes_equal_the_plain_pass_within_the_budget() -> None:
    model = toy_model(decaying=True)
    plain = measured(model)
    budget = 2 * 4 * 32 * 32 + 4 * 48 * 48
    grouped = measured(model, budget_bytes=budget)
    assert len(plain.passes) == 1
    assert len(grouped.passes) > 2
    for part in grouped.passes:
        assert sum(group.num_bytes for group in part) <= budget
    names = list(grouped.covariances)
    assert sorted(names) == sorted(find_targets(model))
    for name in names:
        assert torch.equal(grouped.covariances[name], plain.covariances[name])
        held = {id(tensor): tensor.nbytes for tensor in grouped._resident.values()}
        assert sum(held.values()) <= budget
    assert plain.tokens_forwarded == WINDOWS.numel()  # reading in order: one forward per pass
    assert grouped.tokens_forwarded == len(grouped.passes) * WINDOWS.numel()


def test_asking_whether_a_layer_is_there_costs_no_pass() -> None:
    found = measured(toy_model())
    assert Q in found.covariances
    assert "lm_head" not in found.covariances
    with pytest.raises(KeyError):
        found.covariances["lm_head"]
    assert found.tokens_forwarded == 0


def num_hooks(model: nn.Module) -> list[tuple[int, int]]:
    return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # 5.17 has no other
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_is_left_as_it_was(checkpointing: bool) -> None:
    model = toy_model(decaying=True)
    expected = measured(toy_model(decaying=True)).covariances[DOWN]
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    model.model.layers[0].eval()
    calls: list[str] = []
    layer = model.get_submodule(DOWN)
    layer.register_forward_pre_hook(lambda *_: calls.append("own"))
    modes = [module.training for module in model.modules()]
    own = num_hooks(model)
    before = logits(model, WINDOWS)

    torch.testing.assert_close(measured(model).covariances[DOWN], expected)

    assert [module.training for module in model.modules()] == modes
    assert num_hooks(model) == own
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.is_gradient_checkpointing is checkpointing
    calls.clear()
    assert torch.equal(logits(model, WINDOWS), before)
    assert calls == ["own"]


def test_hooks_are_removed_after_an_error() -> None:
    model = toy_model()
    windows = WINDOWS.clone()
    windows[-1] = 1000  # no such token
    found = measured(model, windows)
    with pytest.raises(IndexError):
        found.covariances[Q]
    assert set(num_hooks(model)) == {(0, 0)}


def test_fewer_tokens_than_the_width_are_refused() -> None:
    model = toy_model()
    with pytest.raises(UserError, match=r"47 tokens, but model\.layers\.0\.mlp\.down_proj is 48"):
        measured(model, toy_windows(1, 47))
    few = measured(model, toy_windows(1, 48))
    assert "48 tokens" in few.notes[0]
    assert "384" in few.notes[0]
    assert measured(model, toy_windows(8, 48)).notes == ()


def test_masked_tokens_do_not_count_toward_the_width() -> None:
    mask = torch.zeros_like(WINDOWS)
    mask[:, 0] = 1
    with pytest.raises(UserError, match="16 tokens"):
        measured(toy_model(), attention_mask=mask)


def test_a_budget_below_one_covariance_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget_bytes 9215 is less than the 9216 .*down_proj"):
        measured(toy_model(), budget_bytes=9215)


def test_windows_longer_than_the_model_are_refused() -> None:
    with pytest.raises(UserError, match="window 65 is longer than the model's 64"):
        measured(toy_model("gpt2"), toy_windows(4, 65))


def test_a_target_that_is_not_used_is_refused() -> None:
    model = toy_model()
    model.model.layers[0].spare = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"layers\.0\.spare is not used"):
        measured(model)


def test_numbers_that_are_not_finite_stop_the_run() -> None:
    model = toy_model()
    model.model.layers[0].mlp.up_proj.weight.data.fill_(torch.nan)
    with pytest.raises(RunFailed, match=r"layers\.0\.mlp\.down_proj are not finite"):
        measured(model).covariances[DOWN]


def test_another_model_gives_other_covariances() -> None:
    model = toy_model(decaying=True)
    before = measured(model).covariances[DOWN].clone()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1.0
    assert not torch.equal(measured(model).covariances[DOWN], before)


def test_a_closed_calibration_holds_nothing_and_cannot_be_read() -> None:
    found = measured(toy_model())
    assert found.covariances[Q].shape == (32, 32)
    found.close()
    assert not found._resident
    with pytest.raises(RuntimeError, match="closed"):
        found.covariances[Q]
    assert Q in found.diagnostics()


# Diagnostics


class Echo(nn.Module):
    """A model of one block whose only linear layer reads chosen vectors, one per token id."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(vectors)
        self.blocks = nn.ModuleList([nn.Linear(vectors.shape[1], 2)])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        output: Tensor = self.blocks[0](self.embedding(input_ids))
        return output


def test_the_recorded_numbers() -> None:
    vectors = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1e-5]))
    found = calibrate(Echo(vectors), torch.arange(4).repeat(2, 1), ["blocks.0"], budget_bytes=ROOMY)
    assert found.diagnostics() == {}
    found.covariances["blocks.0"]
    numbers = found.diagnostics()["blocks.0"]
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers == {
        "tokens": 8,
        "tokens_per_width": 2.0,
        "trace_per_dimension": pytest.approx(0.75),
        "top_share": pytest.approx(1 / 3),
        "entropy_rank": pytest.approx(3.0),
        "participation_ratio": pytest.approx(3.0),
        "noise_share": 0.25,
    }


def test_the_two_effective_ranks_differ() -> None:
    vectors = torch.diag(torch.tensor([3.0, 1.0]).sqrt())
    found = calibrate(Echo(vectors), torch.arange(2).repeat(4, 1), ["blocks.0"], budget_bytes=ROOMY)
    found.covariances["blocks.0"]
    numbers = found.diagnostics()["blocks.0"]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert numbers["entropy_rank"] == pytest.approx(math.exp(entropy))
    assert numbers["participation_ratio"] == pytest.approx(1 / (0.75**2 + 0.25**2))


def with_down(model: PreTrainedModel, rank: int, layers: Sequence[str]) -> None:
    freeze(model)
    generator = seeded_generator("energy")
    for name in layers:
        num_out, num_in = weight_shape(model.get_submodule(name))
        basis = orthonormal(num_in, rank, generator)
        skew = torch.tril(torch.ones(rank, rank, dtype=torch.float64))  # rows span the same space
        attach(model, name, torch.ones(num_out, rank), skew @ basis.T, scale=1.0)


def test_held_out_energy_is_the_share_inside_the_rows_of_down() -> None:
    model = toy_model(decaying=True)
    with_down(model, 5, (Q, DOWN))
    x = {name: inputs_of(model, name, WINDOWS).flatten(0, 1) for name in (Q, DOWN)}
    found = held_out_energy(model, WINDOWS)
    assert set(found) == {Q, DOWN}
    for name, numbers in found.items():
        layer = adapted(model)[name]
        assert isinstance(layer, FactorLinear)
        rows = torch.linalg.qr(layer.down.detach().double().T).Q
        expected = (x[name] @ rows).square().sum() / x[name].square().sum()
        assert numbers["energy"] == pytest.approx(float(expected), rel=1e-5)
        assert numbers["random"] == pytest.approx(5 / x[name].shape[1])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_random_subspace_lets_its_share_through() -> None:
    energies = []
    for seed in range(30):
        model = toy_model(seed=seed, decaying=True)
        with_down(model, 8, (Q,))
        energies.append(held_out_energy(model, WINDOWS)[Q]["energy"])
    assert sum(energies) / 30 == pytest.approx(8 / 32, rel=0.25)


def test_a_layer_that_starts_with_nothing_has_no_energy() -> None:
    model = toy_model()
    freeze(model)
    attach(model, Q, torch.ones(32, 2), torch.zeros(2, 32), scale=1.0, form="zero", trains="down")
    assert held_out_energy(model, WINDOWS) == {}


# Windows


class WordTokenizer:
    """One token per word; a blank line is token 1; prompts may start with token 0."""

    def __init__(self, *, opening: bool = False) -> None:
        self.bos_token_id = 0 if opening else None
        self.opening = opening

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        words = text.replace("\n\n", " 1 ").split()
        ids = [int(word) for word in words]
        return {"input_ids": [0, *ids] if self.opening and add_special_tokens else ids}


TEXTS = [" ".join([str(100 + i)] * 4) for i in range(200)]  # 1,000 tokens with blank lines


def test_windows_come_from_the_seed_and_the_task() -> None:
    def draw(seed: int, index: int) -> list[list[int]]:
        windows = draw_windows(TEXTS, WordTokenizer(), 20, 10, seed=seed, index=index)
        return windows.calibration.tolist()

    assert draw(0, 0) == draw(0, 0)
    assert len({str(draw(seed, index)) for seed in (0, 1) for index in (0, 1)}) == 4


def test_windows_are_full_share_no_token_and_hold_out_a_tenth() -> None:
    found = draw_windows(TEXTS, WordTokenizer(), 60, 15, seed=0, index=0)
    assert found.calibration.shape == (60, 15)
    assert found.held_out.shape == (6, 15)
    assert found.calibration.dtype == torch.int64
    drawn = torch.cat((found.calibration, found.held_out)).flatten()
    texts = drawn[drawn >= 100]
    assert int(texts.bincount().max()) == 4  # no text twice
    assert abs(len(texts) / len(drawn) - 0.8) < 0.01  # a blank line after every four words


def test_every_window_starts_as_a_prompt_does() -> None:
    found = draw_windows(TEXTS, WordTokenizer(opening=True), 20, 10, seed=0, index=0, held_out=0)
    assert found.calibration[:, 0].tolist() == [0] * 20
    assert int((found.calibration == 0).sum()) == 20
    assert found.held_out.shape == (0, 10)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match="holds 1000 tokens, but 110 windows of 10 take 1100"):
        draw_windows(TEXTS, WordTokenizer(), 100, 10, seed=0, index=0)


def test_held_out_windows_never_enter_the_covariance() -> None:
    """Calibrating on what was drawn equals calibrating on those windows alone."""
    texts = [" ".join(str(3 + (7 * i + j) % 61) for j in range(8)) for i in range(120)]
    drawn = draw_windows(texts, WordTokenizer(), 30, 24, seed=0, index=0)
    model = toy_model(decaying=True)
    x = inputs_of(model, Q, drawn.calibration).flatten(0, 1)
    found = measured(model, drawn.calibration).covariances[Q].double()
    torch.testing.assert_close(found, x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    held = inputs_of(model, Q, drawn.held_out).flatten(0, 1)
    both = (x.T @ x + held.T @ held) / (len(x) + len(held))
    assert float((found - both).norm()) > 1e-3


def test_batches_of_windows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(decaying=True)
    whole = measured(model).covariances[DOWN]
    monkeypatch.setattr(calibration, "TOKENS_PER_FORWARD", 24 * 5)  # 16 windows as 5, 5, 5, 1
    torch.testing.assert_close(measured(model).covariances[DOWN], whole)


@pytest.mark.gpu
def test_on_cuda_covariances_stay_on_the_device_and_agree() -> None:
    expected = measured(toy_model(decaying=True)).covariances
    torch.set_float32_matmul_precision("high")  # TF32, which sums must not use
    try:
        found = measured(toy_model(decaying=True).cuda()).covariances
        for name in (OUT, DOWN):
            assert found[name].is_cuda
            error = (found[name].cpu() - expected[name]).norm() / expected[name].norm()
            assert float(error) < 5e-3  # the model itself runs in TF32
    finally:
        torch.set_float32_matmul_precision("highest")
