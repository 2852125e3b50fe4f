"""The recipe of tiny: seeded, resumable at a checkpoint, and honest about changed recipes."""

import json

import pytest
import torch
from clbench_tasks.tiny import pretrain
from clbench_tasks.tiny.muon import orthogonalize
from clbench_tasks.tiny.vocabulary import train_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = pretrain.Recipe(
    steps=6, batch=2, window=32, warmup=2, width=32, inner=64, layers=1, heads=2
)


@pytest.fixture(autouse=True)
def few_documents(monkeypatch):
    monkeypatch.setattr(pretrain, "SAMPLE", 3000)
    monkeypatch.setattr(pretrain, "PART", 200)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    pretrain.train(SMALL, whole, "cpu", every=2)
    save = pretrain.save_checkpoint

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(SMALL, broken, "cpu", every=2)
    monkeypatch.setattr(pretrain, "save_checkpoint", save)
    pretrain.train(SMALL, broken, "cpu", every=2)
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_written_folder_loads_and_says_how_it_was_made(tmp_path):
    pretrain.train(SMALL, tmp_path, "cpu", every=6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert log["recipe"]["steps"] == log["steps"][-1]["step"] == 6
    assert sum(log["tokens"].values()) == 6 * 2 * 33


def test_rows_begin_with_a_document():
    tokenizer = train_tokenizer(["Q: a", "one two three"] * 20)
    rows, _ = pretrain.pack(SMALL, tokenizer)
    assert rows.shape == (12, 33)
    again, _ = pretrain.pack(SMALL, tokenizer)
    assert (rows == again).all()


def test_the_rate_rises_stays_and_falls_to_zero():
    recipe = pretrain.Recipe(steps=1000)
    rates = [pretrain.rate(recipe, step) for step in range(1000)]
    assert max(rates) == 1.0
    assert rates[:100] == sorted(rates[:100])
    assert set(rates[100:750]) == {1.0}
    assert rates[750:] == sorted(rates[750:], reverse=True)
    assert rates[-1] < 0.005


def test_only_the_end_may_move_and_only_before_the_cool_down():
    from dataclasses import asdict, replace

    longer = replace(SMALL, steps=12)
    pretrain.check_same(longer, asdict(SMALL), start=4)
    with pytest.raises(SystemExit, match="another recipe"):
        pretrain.check_same(longer, asdict(SMALL), start=5)
    with pytest.raises(SystemExit, match="another recipe"):
        pretrain.check_same(replace(SMALL, lr=1.0), asdict(SMALL), start=2)


@pytest.mark.parametrize("text", ["Q: 12+34=46?\nA: ü 漢\n", "    return x[::-1]", '{"a": "b, c"}'])
def test_tokenizer_is_lossless_and_splits_digits(text):
    tokenizer = train_tokenizer(["Q: what is 12?", "a b c", "12 34 56"] * 50)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert not any(sum(c.isdigit() for c in token) > 1 for token in tokens)


def test_orthogonalized_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    for shaped in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalize(shaped))
        assert values.min() > 0.3
        assert values.max() < 1.5
