"""A finished run as a model directory and as one adapter: loaded without clbench, it agrees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_runs
import toys
from clbench_strategies.full import Full
from clbench_strategies.lora import Lora
from clbench_strategies.spectral import LoraNull
from click.testing import CliRunner
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from clbench import experiment, models
from clbench import export as exporting
from clbench.adapters import AdaptedLinear, adapted, find_targets, freeze, replace, weight_shape
from clbench.checkpoint import Checkpoints
from clbench.cli import main
from clbench.config import EvalConfig
from clbench.errors import UserError
from clbench.export import export
from clbench.linalg import Factors
from clbench.matrix import Cell, ScoreMatrix
from clbench.results import Record
from clbench.strategy import Strategy, TaskContext

LAYOUTS = ["llama", "qwen2", "gemma", "gpt2"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TASKS = ("one", "two")


def probe() -> Tensor:
    return torch.randint(258, (3, 40), generator=torch.Generator().manual_seed(5))


def logits(model: nn.Module) -> Tensor:
    return toys.logits(model.eval(), probe()).float()


class Run:
    """The directory of a run that learned two tasks, with the logits that it ended with."""

    def __init__(self, place: Path, strategy: Strategy, layout: str = "llama", **how: Any) -> None:
        self.path, self.model = place / "run", place / "model"
        toy_runs.save_toy_model(self.model, layout)
        self.dtype = how.get("dtype", "float32")
        loaded = models.load(str(self.model), self.dtype, torch.device("cpu"))
        self.start = logits(loaded.model)
        checkpoints = Checkpoints(self.path / "weights", loaded.model)
        self.learn(loaded.model, strategy, checkpoints, **how)
        self.save_record(loaded.info)

    def learn(
        self,
        model: nn.Module,
        strategy: Strategy,
        checkpoints: Checkpoints,
        lr: float = 1e-2,
        targets: str | None = None,
        **_: Any,
    ) -> None:
        for index in range(len(TASKS)):
            context = toys.toy_context(
                model, {"world": moments(model)}, index=index, targets=targets
            )
            model = strategy.begin_task(model, context)
            toys.train_a_little(model, toys.toy_windows(4, 24, seed=index), lr=lr)
            model = strategy.end_task(model, context)
            checkpoints.save(f"{index + 1}-fold", model, strategy)
        self.logits = logits(model)
        self.digest = models.weights_digest(model)

    def save_record(self, info: Mapping[str, Any], status: str = "complete") -> None:
        cell = {"e": Cell(0.5, weights_digest=self.digest)}
        matrix = ScoreMatrix(TASKS, {"one": ("e",), "two": ("f",)}, (), (cell, cell, cell))
        run = {"stream": "s", "strategy": "lora", "model": str(self.model), "dtype": self.dtype}
        record = Record.model_validate(
            {
                "identity": {"run_id": "r", "suite_version": "0.1.0"},
                "config": {"stream": "s", "strategy": "x", "run": run},
                "model": dict(info),
                "matrix": matrix,
                "status": status,
            }
        )
        record.save(self.path)

    def base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=DTYPES[self.dtype])

    def on_base(self, adapter: Path) -> Tensor:
        return logits(PeftModel.from_pretrained(self.base(), adapter))


def moments(model: nn.Module) -> dict[str, Tensor]:
    """Return a covariance with a spectrum of its own for every target."""
    found = {}
    for number, name in enumerate(find_targets(model)):
        width = weight_shape(model.get_submodule(name))[1]
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4 * width, width, generator=generator)
        found[name] = x.T @ x / len(x)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("lora"), Lora(rank=2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_adapter_on_the_original_base_is_the_run(layout, tmp_path):
    run = Run(tmp_path, Lora(rank=2), layout)
    done = export(run.path, "peft", tmp_path / "adapter")
    assert (run.start - run.logits).abs().max() > 1e-2
    assert (run.on_base(tmp_path / "adapter") - run.logits).abs().max() < 1e-5
    assert done.difference < 1e-5
    assert set(done.ranks.values()) == {4}  # two tasks of rank 2
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert len(tensors) == 2 * len(done.ranks) == 2 * len(find_targets(run.base()))


def test_factors_that_start_from_the_weight_need_twice_the_rank(tmp_path):
    run = Run(tmp_path, LoraNull(rank=2))
    done = export(run.path, "peft", tmp_path / "adapter")
    assert 4 < max(done.ranks.values()) <= 8
    assert (run.on_base(tmp_path / "adapter") - run.logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("strategy", "layout"),
    [(Full(), "gpt2"), (Lora(rank=16), "llama")]
    + [(Lora(rank=2, between_tasks="carry"), layout) for layout in LAYOUTS],
)
def test_a_model_directory_is_the_run(strategy, layout, tmp_path):
    run = Run(tmp_path, strategy, layout)
    export(run.path, "merged", tmp_path / "model2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model2")
    assert model.dtype == torch.float32
    assert (run.start - run.logits).abs().max() > 1e-2
    assert (logits(model) - run.logits).abs().max() < 1e-5
    before = AutoTokenizer.from_pretrained(run.model)
    after = AutoTokenizer.from_pretrained(tmp_path / "model2")
    assert models.tokenizer_digest(after) == models.tokenizer_digest(before)


def test_what_was_folded_is_exported_bit_for_bit(run, tmp_path):
    done = export(run.path, "merged", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert done.difference == 0.0
    assert models.weights_digest(model) == run.digest


def test_a_tied_embedding_stays_tied(tmp_path):
    run = Run(tmp_path, Lora(rank=2), "qwen2")
    export(run.path, "merged", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not [n for n in load_file(tmp_path / "merged" / "model.safetensors") if "lm_head" in n]


def test_carried_factors_are_one_adapter_of_their_own_rank(tmp_path):
    run = Run(tmp_path, Lora(rank=2, between_tasks="carry"))
    done = export(run.path, "peft", tmp_path / "adapter")
    assert set(done.ranks.values()) == {2}
    assert (run.on_base(tmp_path / "adapter") - run.logits).abs().max() < 1e-5


@pytest.mark.parametrize("between", ["fold", "carry"])
@pytest.mark.parametrize("form", ["merged", "peft"])
def test_bfloat16_agrees_as_far_as_it_computes(form, between, tmp_path):
    """Folding rounds every task's change, which is the full-rank noise an adapter leaves out."""
    run = Run(tmp_path, Lora(rank=2, between_tasks=between), dtype="bfloat16", lr=3e-2)
    done = export(run.path, form, tmp_path / form)
    if form == "merged":
        model = AutoModelForCausalLM.from_pretrained(tmp_path / form)
        assert model.dtype == torch.bfloat16
        got = logits(model)
    else:
        assert set(done.ranks.values()) <= {1, 2, 3, 4}
        got = run.on_base(tmp_path / form)
    moved = (run.start - run.logits).abs().max()
    assert (got - run.logits).abs().max() < 0.05 * run.logits.abs().max() < moved
    assert done.tolerance < 0.06 * run.logits.abs().max()


def test_layers_of_unequal_rank_keep_a_scale_of_one(tmp_path):
    run = Run(tmp_path, Lora(rank=9), targets="v_proj|mlp")
    done = export(run.path, "peft", tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert set(done.ranks.values()) == {16, 18}  # v is 16 wide
    assert settings["rank_pattern"] == settings["alpha_pattern"] != {}
    assert settings["r"] == settings["lora_alpha"]
    assert (run.on_base(tmp_path / "adapter") - run.logits).abs().max() < 1e-5


def test_the_adapter_names_its_base(run, tmp_path):
    export(run.path, "peft", tmp_path / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert (logits(model) - run.logits).abs().max() < 1e-5


def test_the_run_is_left_as_it_was(run, tmp_path):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for form in exporting.FORMATS:
        export(run.path, form, tmp_path / form)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_full_rank_is_refused_and_merged_offered(tmp_path):
    run = Run(tmp_path, Full())
    with pytest.raises(UserError, match=r"not of low rank \(.*: 32 of 32\).*use --format merged"):
        export(run.path, "peft", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


class Louder(AdaptedLinear):
    """A layer whose output is more than a weight's: it grows with its own size."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + self.gain * y * y.norm(dim=-1, keepdim=True)

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> Louder:
        return cls(base)

    def change(self) -> Tensor:
        return torch.zeros(weight_shape(self.base))


class Honest(Louder):
    """The same layer, which says so itself."""

    def not_a_weight(self) -> str:
        return "its output grows with its own size"


@dataclass
class Wrapping(Strategy):
    layer: type[Louder] = Louder

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        freeze(model)
        for name in task.targets:
            if not adapted(model).get(name):
                replace(model, name, self.layer(model.get_submodule(name)))
        for layer in adapted(model).values():
            layer.gain.requires_grad_(True)
        return model


@pytest.mark.parametrize("form", ["merged", "peft"])
@pytest.mark.parametrize(
    ("layer", "reason"), [(Louder, r"its output is [\d.]+% off"), (Honest, "grows with")]
)
def test_a_wrapper_that_stays_is_refused_by_both(layer, reason, form, tmp_path):
    run = Run(tmp_path, Wrapping(layer), targets="v_proj")
    with pytest.raises(UserError, match=f"v_proj is a {layer.__name__}.*{reason}.*neither"):
        export(run.path, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@dataclass
class WithNorms(Lora):
    """Trains the norms beside the factors."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        model = super().begin_task(model, task)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or "norm" in name)
        return model


def test_a_change_beside_the_weights_is_refused_and_merged_holds_it(tmp_path):
    run = Run(tmp_path, WithNorms(rank=2))
    with pytest.raises(UserError, match=r"changed model.*norm.*use --format merged"):
        export(run.path, "peft", tmp_path / "adapter")
    export(run.path, "merged", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(model) - run.logits).abs().max() < 1e-5


def test_an_adapter_that_leaves_out_too_much_is_refused(run, tmp_path, monkeypatch):
    def fewer(kept: exporting.Kept, name: str) -> Factors:
        found = all_of(kept, name)
        return Factors(found.up[:, :1], found.down[:1])

    all_of = exporting._factors
    monkeypatch.setattr(exporting, "_factors", fewer)
    with pytest.raises(UserError, match=r"would be off by .*allows .*use --format merged"):
        export(run.path, "peft", tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_nothing_learned_is_no_adapter(tmp_path):
    run = Run(tmp_path, Lora(rank=2), lr=0.0)
    with pytest.raises(UserError, match=r"changed no weight.*use --format merged"):
        export(run.path, "peft", tmp_path / "adapter")


def test_another_base_or_other_weights_are_refused(tmp_path):
    run = Run(tmp_path, Lora(rank=2))
    kept = run.path / "weights" / "2-fold.safetensors"
    tensors = load_file(kept)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, kept)
    with pytest.raises(UserError, match="not those that its last row was scored with"):
        export(run.path, "merged", tmp_path / "out")
    kept.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        export(run.path, "merged", tmp_path / "out")
    toy_runs.save_toy_model(run.model, "gpt2")
    with pytest.raises(UserError, match=r"not the one that the run in .* started from"):
        export(run.path, "merged", tmp_path / "out")


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    sentence = result.stderr.strip()
    assert sentence.startswith("clbench: ")
    assert "\n" not in sentence
    return sentence


def test_bad_input_is_one_sentence(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "record.json").write_bytes((run.path / "record.json").read_bytes())
    for status in ("partial", "diverged"):
        record = Record.load(run.path).replace(status=status)
        (tmp_path / status).mkdir()
        record.save(tmp_path / status)
    here = str(run.path)
    assert "did you mean peft?" in refusal(here, "--format", "pft")
    assert "merged, peft" in refusal(here, "--format", "gguf")
    assert "there is no" in refusal(str(tmp_path / "none"), "--format", "merged")
    assert "there is no" in refusal(str(tmp_path / "empty"), "--format", "merged")
    assert "is partial" in refusal(str(tmp_path / "partial"), "--format", "merged")
    assert "is diverged" in refusal(str(tmp_path / "diverged"), "--format", "merged")
    assert "without its weights" in refusal(str(tmp_path / "alone"), "--format", "peft")
    for taken in ("full", "file"):
        place = str(tmp_path / taken)
        assert f"{place} is there already" in refusal(here, "--format", "merged", "--out", place)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"


def test_from_the_stream_to_the_adapter(tmp_path, monkeypatch):
    """The whole way: run, export both ways from the command line, load, begin again."""
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    model = toy_runs.save_toy_model(tmp_path / "model")
    few = EvalConfig.of({"samples": 1, "rank_items": 0, "schedule": "ends"})
    config = toy_runs.toy_config(
        model, params={"lora-null": {"rank": 2}}, eval=few, tasks=("math", "if")
    )
    experiment.run(config, out=tmp_path / "run")
    for form in ("merged", "peft"):
        result = CliRunner().invoke(main, ["export", str(tmp_path / "run"), "--format", form])
        assert result.exit_code == 0, result.output
        assert str(tmp_path / "run" / "export" / form) in result.stdout
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export" / "merged")
    base = AutoModelForCausalLM.from_pretrained(model)
    start = logits(base)
    adapter = PeftModel.from_pretrained(base, tmp_path / "run" / "export" / "peft")
    assert (logits(merged) - logits(adapter)).abs().max() < 1e-5
    assert (logits(merged) - start).abs().max() > 1e-3
    again = ["export", str(tmp_path / "run" / "record.json"), "--format", "peft", "--json"]
    result = CliRunner().invoke(main, [*again, "--out", str(tmp_path / "new" / "adapter")])
    assert json.loads(result.stdout)["path"] == str(tmp_path / "new" / "adapter")
