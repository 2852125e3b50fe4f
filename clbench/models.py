"""Load a model and its tokenizer, say exactly which they are, and whether they fit."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from clbench.data import eos_id
from clbench.digests import digest
from clbench.errors import UserError, unknown
from clbench.memory import check_memory
from clbench.model_files import ModelFiles, check_weights, locate, read_json
from clbench.repositories import Repositories

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Loaded(NamedTuple):
    """A base model in eval mode with its tokenizer, and what the record says of them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: dict[str, Any]


def load(
    name: str,
    dtype: str,
    device: torch.device,
    revision: str | None = None,
    repositories: Repositories | None = None,
) -> Loaded:
    """Load a causal LM by registered name, directory or hub id; raises UserError.

    Only safetensors are read and no code of a repository is run. "auto" is float32 on CPU and
    bfloat16 elsewhere, whatever the file holds; the attention is the library's default.
    `repositories` are those of a run, where a hub id stays at one commit.
    """
    chosen = choose_dtype(dtype, device)
    files = locate(name, revision, repositories=repositories)
    config = causal_config(files)
    num_bytes = sum(path.stat().st_size for path in check_weights(files))
    stored = DTYPES.get(str(config.dtype).removeprefix("torch."), torch.float32)
    check_memory(name, num_bytes * chosen.itemsize // stored.itemsize, device)
    model: nn.Module = _load_weights(files, config, chosen)
    model.to(device)
    tokenizer = _load_tokenizer(files)
    info = {
        "id": files.id,
        "revision": files.revision,
        "dtype": str(chosen).removeprefix("torch."),
        "parameters": num_parameters(model),
        "weights_digest": weights_digest(model),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "chat_template_digest": chat_template_digest(tokenizer),
        "attention": config._attn_implementation,
        "max_positions": getattr(config, "max_position_embeddings", None),
    }
    return Loaded(cast("PreTrainedModel", model), tokenizer, info)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the weights; raises UserError for an unknown name."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise unknown("dtype", name, ["auto", *DTYPES])
    return DTYPES[name]


def causal_config(files: ModelFiles) -> PreTrainedConfig:
    """Return the configuration of a causal LM; raises UserError for anything else."""
    written = read_json(files.directory / "config.json")
    kind = written.get("model_type")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            files.directory, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"model {files.id!r} is of type {kind!r}, which transformers "
            f"{transformers.__version__} does not know without running the model's own code"
        ) from error
    architectures = written.get("architectures") or []
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if expected is None or (architectures and expected not in architectures):
        raise UserError(
            f"model {files.id!r} is {', '.join(architectures) or kind!r}, not a causal language "
            "model"
        )
    return config


def num_parameters(model: nn.Module) -> int:
    """Return the number of weights, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_digest(model: nn.Module) -> str:
    """Return the hex BLAKE2b-256 over name, dtype, shape and bytes of every state entry.

    Entries go in the order of their names. Equal digests mean equal weights bit for bit,
    wherever the model was loaded from.
    """
    hasher = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0"
        hasher.update(header.encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hasher.update(raw.numpy().data)
    return hasher.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of how text becomes tokens and which of them are special."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    for setting in ("padding", "truncation"):  # of the latest call, not of the tokenizer
        rules.pop(setting, None)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return digest({"rules": rules, "vocabulary": tokenizer.get_vocab(), "special": special})


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the digest of the chat template, None where there is none."""
    template = tokenizer.chat_template
    return None if template is None else digest(template)


def _load_weights(
    files: ModelFiles, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            files.directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file may fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model {files.id!r} cannot be loaded: {reason}") from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise UserError(
            f"model {files.id!r} lacks {len(missing)} of its weights, {missing[0]} the first"
        )
    return model


def _load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            files.directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # a missing file shows as one of many errors
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model {files.id!r} has no usable tokenizer: {reason}") from error
    stop = eos_id(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = stop
    return tokenizer
