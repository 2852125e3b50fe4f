"""Models: where they come from, what is refused, and the digests that identify them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import scan_cache_dir
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from clbench import memory, model_files, registry
from clbench.errors import UserError
from clbench.memory import available_memory
from clbench.models import (
    chat_template_digest,
    load,
    num_parameters,
    tokenizer_digest,
    weights_digest,
)

CPU = torch.device("cpu")
WORDS = ["<unk>", "<eos>", *["one", "two", "three", "four", "five", "six"]]


def make_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>")


def llama_config(**fields: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        **fields,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Write a complete tiny model, stored in bfloat16 as most are."""
    torch.manual_seed(0)
    target = tmp_path / "model"
    LlamaForCausalLM(llama_config()).to(torch.bfloat16).save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    return target


def test_load_says_what_it_loaded(directory: Path) -> None:
    model, tokenizer, info = load(str(directory), "auto", CPU)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert info["id"] == str(directory)
    assert info["revision"] is None
    assert info["dtype"] == "float32"
    assert info["parameters"] == sum(p.numel() for p in model.parameters())
    assert info["weights_digest"] == weights_digest(model)
    assert info["chat_template_digest"] is None
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert json.loads(json.dumps(info)) == info


def test_the_dtype_is_the_one_asked_for(directory: Path) -> None:
    model, _, info = load(str(directory), "bfloat16", CPU)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert info["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="unknown dtype 'float99'"):
        load(str(directory), "float99", CPU)


def test_tied_weights_count_once() -> None:
    tied = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
    untied = LlamaForCausalLM(llama_config(tie_word_embeddings=False))
    assert num_parameters(untied) - num_parameters(tied) == len(WORDS) * 8


def test_weights_digest_moves_with_one_bit_and_not_with_the_folder(
    directory: Path, tmp_path: Path
) -> None:
    first = load(str(directory), "auto", CPU)
    moved = shutil.copytree(directory, tmp_path / "elsewhere")
    second = load(str(moved), "auto", CPU)
    assert first.info["weights_digest"] == second.info["weights_digest"]
    weight = second.model.lm_head.weight
    with torch.no_grad():
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(9.0))
    assert weights_digest(second.model) != first.info["weights_digest"]


def test_weights_digest_sees_names_dtypes_and_shapes() -> None:
    class Holder(torch.nn.Module):
        def __init__(self, name: str, value: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)

    zeros = torch.zeros(2, 3)
    variants = [
        Holder("a", zeros),
        Holder("b", zeros),
        Holder("a", zeros.T),
        Holder("a", zeros.int()),
        Holder("a", zeros.bfloat16()),
        Holder("a", torch.tensor(0.0)),
    ]
    assert len({weights_digest(variant) for variant in variants}) == len(variants)
    contiguous = Holder("a", torch.arange(6.0).reshape(2, 3).T.contiguous())
    strided = Holder("a", torch.arange(6.0).reshape(2, 3).T)
    assert weights_digest(contiguous) == weights_digest(strided)


def test_tokenizer_digest_ignores_padding_and_sees_the_vocabulary() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token_id = 1
    before = tokenizer_digest(tokenizer)
    tokenizer(["one", "two three"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == before
    other = make_tokenizer([*WORDS[:-2], *reversed(WORDS[-2:])])
    other.pad_token_id = 1
    assert tokenizer_digest(other) != before


def test_chat_template_digest() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    one = chat_template_digest(tokenizer)
    tokenizer.chat_template = "{{ messages }} "
    assert one is not None
    assert chat_template_digest(tokenizer) not in (one, None)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no model directory '.*/nowhere'"):
        load(str(tmp_path / "nowhere"), "auto", CPU)


def test_a_directory_without_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no model directory: no config\.json"):
        load(str(tmp_path), "auto", CPU)


def test_missing_weights_are_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: model\.safetensors is missing"):
        load(str(directory), "auto", CPU)
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    (directory / parts["a"]).touch()
    with pytest.raises(UserError, match=r"weights: model-00002-of-00002\.safetensors is missing"):
        load(str(directory), "auto", CPU)


def test_sharded_weights_load(directory: Path) -> None:
    model, tokenizer, info = load(str(directory), "auto", CPU)
    shards = directory.with_name("shards")
    model.save_pretrained(shards, max_shard_size="1KB")
    tokenizer.save_pretrained(shards)
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert load(str(shards), "auto", CPU).info["weights_digest"] == info["weights_digest"]


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only as pickle \(pytorch_model\.bin\)"):
        load(str(directory), "auto", CPU)


def test_damaged_and_incomplete_weights_are_refused(directory: Path) -> None:
    LlamaModel(llama_config()).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lacks 1 of its weights, lm_head\.weight"):
        load(str(directory), "auto", CPU)
    (directory / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(directory), "auto", CPU)


def test_what_is_no_causal_model_is_refused(directory: Path) -> None:
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertForMaskedLM(config).save_pretrained(directory)
    with pytest.raises(UserError, match="is 'BertForMaskedLM', not a causal language model"):
        load(str(directory), "auto", CPU)


def test_code_of_the_repository_is_never_run(directory: Path) -> None:
    marker = directory / "ran"
    (directory / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is of type 'evil', which transformers .* does not know"):
        load(str(directory), "auto", CPU)
    assert not marker.exists()


def test_a_missing_tokenizer_is_said(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(UserError, match="has no usable tokenizer"):
        load(str(directory), "auto", CPU)


def test_too_little_memory_is_said_before_loading(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 10)
    with pytest.raises(UserError, match=r"of memory on cpu, and 0\.0 GB are free"):
        load(str(directory), "auto", CPU)


def test_a_container_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    free = available_memory(CPU)
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 500\nactive_file 200\ninactive_file 300\n")
    assert available_memory(CPU) == 2500 < free
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(CPU) > 2500


def test_gpt2_layout_loads(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model, _, info = load(str(tmp_path), "auto", CPU)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert info["max_positions"] == 32


class FakeRegistry:
    """Stands for installed packages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def listing(self, group: str) -> list[registry.Entry]:
        return [registry.Entry("toy", "toy_package:path", "toy-package", "1.2")]

    def load(self, group: str, name: str) -> object:
        return lambda: self.directory


def test_registered_models_load_by_name_and_are_listed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRegistry(directory)
    monkeypatch.setattr(registry, "listing", fake.listing)
    monkeypatch.setattr(registry, "load", fake.load)
    _, _, info = load("toy", "auto", CPU)
    assert (info["id"], info["revision"]) == ("toy", "1.2")
    cache = directory.parent / "hub"
    snapshot = cache / "models--org--cached" / "snapshots" / "c0ffee"
    shutil.copytree(directory, snapshot)
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan_cache_dir(cache))
    listed = model_files.list_models()
    assert [(entry.name, entry.origin) for entry in listed] == [
        ("toy", "toy-package 1.2"),
        ("org/cached", "cache"),
    ]
    assert listed[0].num_bytes == sum(path.stat().st_size for path in directory.iterdir())


def test_a_misspelt_name_gets_a_suggestion(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRegistry(directory)
    monkeypatch.setattr(registry, "listing", fake.listing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="unknown model 'tooy'; did you mean toy"):
        load("tooy", "auto", CPU)
    with pytest.raises(UserError, match=r"'org/name' is neither installed .* nor a directory"):
        load("org/name", "auto", CPU)
