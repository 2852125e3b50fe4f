"""A finished run as a plain model directory, or as one adapter for the model it started from.

Whatever is written has been compared with the run's own last model first: by its weights'
digest, and by its logits.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from clbench import models, registry
from clbench.adapters import (
    AdaptedLinear,
    adapted,
    find_targets,
    is_transposed,
    read_weight,
    replace,
    weight_shape,
)
from clbench.checkpoint import Checkpoints
from clbench.config import RunConfig
from clbench.errors import UserError, unknown
from clbench.linalg import (
    Factors,
    input_factors,
    output_factors,
    seeded_generator,
    spectrum,
    top_eigenvectors,
)
from clbench.model_files import locate
from clbench.preparation import choose_device, quiet_libraries
from clbench.results import Record

# Largest difference of a logit from the run's, as a share of the run's largest logit. In the
# short dtypes the model itself computes no more exactly than that.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
LAYER_TOLERANCE = 1e-3  # of one layer's output, computed in float32
OFFER = "; use --format merged"


class Exported(NamedTuple):
    """What was written, and how far its logits are from the run's."""

    format: str
    path: Path
    difference: float  # largest absolute difference of a logit on random tokens
    tolerance: float  # what that may be, in the dtype of the run
    ranks: dict[str, int]  # of the adapter, by layer; empty for a model


class Written(NamedTuple):
    """A model that stands for what is written: it is compared with the run's before `save`."""

    model: nn.Module
    save: Callable[[Path], None]
    ranks: dict[str, int]


class Kept(NamedTuple):
    """The model that a run ended with, and what it started from."""

    model: PreTrainedModel
    start: dict[str, Tensor]  # the base model's state
    loaded: models.Loaded
    config: RunConfig
    num_tasks: int


def export(run: Path, form: str, out: Path | None = None) -> Exported:
    """Write the model that a run ended with, for use without clbench.

    `form` "merged" is a model directory, with the weights of the last row; "peft" is one LoRA
    adapter, the change of the whole stream, which goes on the model that the run started from.
    `out` is export/<form> in the run directory unless given, and must not hold anything. Raises
    UserError for a run that is not finished, for one that the format cannot hold, with the
    reason, and where the logits come out other than the run's.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    record = Record.load(run)
    run = run if run.is_dir() else run.parent
    place = out or run / "export" / form
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{place} is there already; choose a new directory for --out")
    quiet_libraries()
    kept = _load(run, record)
    _refuse_wrappers(kept.model)
    expected = _logits(kept.model)
    tolerance = TOLERANCE[kept.model.dtype] * expected.abs().max().item()
    written = FORMATS[form](kept)
    difference = (_logits(written.model) - expected).abs().max().item()
    if not difference <= tolerance:
        raise UserError(
            f"as {form}, the logits of {run} would be off by {difference:.1e}, where its dtype "
            f"allows {tolerance:.1e}{OFFER if form != 'merged' else ''}"
        )
    with _whole(place) as folder:
        written.save(folder)
    return Exported(form, place, difference, tolerance, written.ranks)


def _load(run: Path, record: Record) -> Kept:
    """Return the model of the last row; raises UserError unless it is the one that was scored."""
    if record.status in ("partial", "diverged"):
        raise UserError(f"the run in {run} is {record.status}; only a finished one has a result")
    if not (run / "weights").is_dir():
        raise UserError(f"{run} holds a record without its weights; export needs the run itself")
    asked = RunConfig.of(cast(dict[str, Any], (record.config.model_extra or {})["run"]))
    config = asked.model_copy(update={"revision": record.model.revision})  # the commit it was
    loaded = models.load(config.model, record.model.dtype, choose_device("auto"), config.revision)
    if loaded.info["weights_digest"] != record.model.weights_digest:
        raise UserError(
            f"model {config.model!r} is not the one that the run in {run} started from: its "
            "weights differ"
        )
    start = dict(loaded.model.state_dict())
    num_tasks = len(record.matrix.tasks)
    checkpoints = Checkpoints(run / "weights", loaded.model)
    strategy = registry.build_strategy(config.strategy, config.params)  # may bring layer classes
    model = checkpoints.load(f"{num_tasks}-fold", loaded.model, strategy)
    scored = {cell.weights_digest for cell in record.matrix.rows[-1].values()} - {None}
    if scored != {models.weights_digest(model)}:
        raise UserError(f"the weights in {run} are not those that its last row was scored with")
    return Kept(cast(PreTrainedModel, model), start, loaded, config, num_tasks)


def _merged(kept: Kept) -> Written:
    _fold(kept.model)

    def save(folder: Path) -> None:
        kept.model.save_pretrained(folder)
        kept.loaded.tokenizer.save_pretrained(folder)

    return Written(kept.model, save, {})


def _peft(kept: Kept) -> Written:
    targets = find_targets(kept.model)
    factors = {name: found for name in targets if (found := _factors(kept, name)) is not None}
    _fold(kept.model)
    _refuse_other_changes(kept, targets)
    _refuse_full_rank(kept.model, factors)
    kept.model.load_state_dict(kept.start, assign=True)
    cast(Any, kept.model).tie_weights()
    config = _lora_config(kept, factors)
    model = get_peft_model(cast(Any, kept.model), config)
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = _base(kept.config)
    for name, found in factors.items():
        layer = cast(Any, kept.model.get_submodule(name))
        layer.lora_A["default"].weight.data.copy_(found.down)
        layer.lora_B["default"].weight.data.copy_(found.up)

    def save(folder: Path) -> None:
        config.save_pretrained(str(folder))
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
        )

    return Written(model.eval(), save, {n: found.down.shape[0] for n, found in factors.items()})


FORMATS: dict[str, Callable[[Kept], Written]] = {"merged": _merged, "peft": _peft}


def _fold(model: nn.Module) -> None:
    """Round what is still attached into the weights, once.

    A folded layer gets a new tensor: the state that the run started from refers to the old one.
    """
    for name, layer in adapted(model).items():
        layer.base.weight = nn.Parameter(layer.folded(), requires_grad=False)
        replace(model, name, layer.base)


@torch.no_grad()
def _factors(kept: Kept, name: str) -> Factors | None:
    """Return float32 factors of one layer's change, None where there is nothing to hold.

    What a task folded was rounded to the dtype of the weight, and that noise has full rank.
    Singular values are kept above it: independent errors have a spectral norm of about their
    largest row norm plus their largest column norm, and rounding to a relative `eps` has a
    standard deviation of at most eps / sqrt(12).
    """
    layer = kept.model.get_submodule(name)
    weight, start = cast(Tensor, layer.weight), kept.start[f"{name}.weight"]
    change = weight.double() - start.double()
    rounded = weight.dtype if change.any() else torch.float32
    change = change.T if is_transposed(layer) else change  # (out, in)
    if isinstance(layer, AdaptedLinear):
        change = change + layer.change()
    spread = read_weight(layer).double() * torch.finfo(rounded).eps / math.sqrt(12)
    noise = (spread.norm(dim=0).max() + spread.norm(dim=1).max()) * math.sqrt(kept.num_tasks)
    wide = change.shape[0] <= change.shape[1]
    gram = change @ change.T if wide else change.T @ change
    rank = int((spectrum(gram).sqrt() > noise).sum())
    if not rank:
        return None
    split = output_factors if wide else input_factors
    return split(change, top_eigenvectors(gram, rank), 1.0)


def _lora_config(kept: Kept, factors: Mapping[str, Factors]) -> LoraConfig:
    """Return the settings of the adapter: alpha = rank, so that its scale is 1 everywhere."""
    ranks = {name: found.down.shape[0] for name, found in factors.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=common,
        lora_alpha=common,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(factors),
        fan_in_fan_out=any(is_transposed(kept.model.get_submodule(name)) for name in factors),
    )


def _base(config: RunConfig) -> tuple[str, str | None]:
    """Return where PEFT finds the base model: a hub id and its commit, or a directory."""
    files = locate(config.model, config.revision)
    if files.revision == files.directory.name:  # a snapshot in the hub's cache
        return files.id, files.revision
    return str(files.directory.resolve()), None


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    """Return the model's logits on random tokens, (2, 32, vocabulary) float32."""
    embedding = cast(Tensor, cast(Any, model).get_input_embeddings().weight)
    ids = torch.randint(len(embedding), (2, 32), generator=seeded_generator("export"))
    logits: Tensor = model(input_ids=ids.to(embedding.device)).logits
    return logits.float()


@torch.no_grad()
def _refuse_wrappers(model: nn.Module) -> None:
    """Raise UserError for a layer that computes something else than its folded weight does."""
    for name, layer in adapted(model).items():
        lost = layer.not_a_weight()
        off = 0.0 if lost else _fold_error(layer, name)
        if off > LAYER_TOLERANCE:
            lost = f"its output is {off:.1%} off that of the weight it would fold into"
        if lost:
            raise UserError(
                f"{name} is a {type(layer).__name__}, which is more than a weight ({lost}), so "
                f"neither {' nor '.join(FORMATS)} can hold this run"
            )


def _fold_error(layer: AdaptedLinear, name: str) -> float:
    """Return how far folding moves a layer's output on random inputs, relative, in float32."""
    exact = copy.deepcopy(layer).float()
    x = torch.randn(1, 8, weight_shape(layer)[1], generator=seeded_generator("export", name))
    x = x.to(exact.weight.device)
    folded: Tensor = functional_call(exact.base, {"weight": exact.folded()}, (x,))
    return float((exact(x) - folded).norm() / folded.norm())


def _refuse_other_changes(kept: Kept, targets: Collection[str]) -> None:
    """Raise UserError where the run moved something that is not the weight of a linear layer."""
    weights = {f"{name}.weight" for name in targets}
    for name, tensor in kept.model.state_dict().items():
        if name not in weights and not torch.equal(tensor, kept.start[name]):
            raise UserError(f"the run changed {name}, which a LoRA adapter cannot hold{OFFER}")


def _refuse_full_rank(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Raise UserError where factors would hold as many values as the weights they change."""
    if not factors:
        raise UserError(f"the run changed no weight, so there is no adapter to write{OFFER}")
    shapes = {name: weight_shape(model.get_submodule(name)) for name in factors}
    ranks = {name: found.down.shape[0] for name, found in factors.items()}
    if sum(ranks[n] * sum(shapes[n]) for n in factors) < sum(math.prod(s) for s in shapes.values()):
        return
    worst = max(factors, key=lambda name: ranks[name] / min(shapes[name]))
    raise UserError(
        f"the change of the weights is not of low rank ({worst}: {ranks[worst]} of "
        f"{min(shapes[worst])}), so an adapter would be no smaller than they are{OFFER}"
    )


@contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """Give a directory to write, which appears in its place once it is complete."""
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        folder.mkdir()
        yield folder
        folder.rename(place)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {place}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
