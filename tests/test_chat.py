"""Chat templates: training asks as scoring asks, nothing twice, and every digest says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_runs
from evaltoys import choice_eval, code_eval, facts_eval
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from toys import toy_model
from transformers import PreTrainedTokenizerFast

from clbench import data, decoding, preparation, recording, registry
from clbench.chat import Chat
from clbench.config import EvalConfig
from clbench.errors import UserError
from clbench.evaluation import Evaluator
from clbench.harness import Harness
from clbench.hub import Hub
from clbench.openanswers import add_drift
from clbench.rows import Rows
from clbench.task import Row

# The shapes of published templates: turns that end with EOS, with another token, with a blank.
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[I] {{ m.content }} [/I]"
    "{% else %} {{ m.content }} <eos>{% endif %}{% endfor %}"
)
THINKING = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}",
)
TEMPLATES = {"chatml": CHATML, "turns": TURNS, "brackets": BRACKETS, "thinking": THINKING}
LEARNED = {  # what stands after the prompt for the answer 4
    "chatml": "4<eos>",
    "turns": "4<end>\n<eos>",
    "brackets": " 4 <eos>",
    "thinking": "<think></think>4<eos>",
}
ROW = Row("1", "Question: 2 + 2?\nAnswer:", " 4", "2 + 2?")


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes that puts BOS in front of what it tokenizes."""
    names = ["<pad>", "<eos>", "<bos>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    rules = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=["<end>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def big_toy() -> Any:
    """Return a random model with a place for every byte and room for a conversation."""
    model = toy_model()
    model.resize_token_embeddings(260)
    model.config.max_position_embeddings = 2048
    return model


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_starts_where_training_does(name: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    chat = Chat(tokenizer)
    [example] = data.encode([ROW], tokenizer, "toy", 200, tmp_path / "t", chat=chat)
    harness = Harness(big_toy(), tokenizer, 4, chat=chat)
    asked = harness.tok_encode(harness.apply_chat_template([{"role": "user", "content": "2 + 2?"}]))
    assert list(example.ids[: len(asked)]) == asked
    assert sum(example.loss_mask) == len(example.ids) - len(asked)
    assert tokenizer.decode(example.ids[len(asked) :]) == LEARNED[name]
    assert example.ids[-1] == tokenizer.eos_token_id
    assert example.loss_mask[-1]
    assert [at for at, token in enumerate(example.ids) if token == 2] == [0]  # one BOS
    assert "Question" not in tokenizer.decode(example.ids)


def test_without_a_template_bos_is_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(None)
    [example] = data.encode([ROW], tokenizer, "toy", 200, tmp_path / "t")
    assert tokenizer.decode(example.ids) == "<bos>Question: 2 + 2?\nAnswer: 4<eos>"
    assert Harness(big_toy(), tokenizer, 4).tok_encode(ROW.prompt) == list(example.ids[:-3])


@pytest.mark.parametrize(
    ("prompt", "answer", "learned"),
    [
        ("Answer:", " Paris", "Paris"),
        ("Answer:", "\n\nParis\n", "Paris\n"),
        ("Code:\n", "    return x\n", "    return x\n"),  # the indentation is no separator
        ("Code:", "\n    return x", "    return x"),
        ("A", "B", "B"),
    ],
)
def test_an_answer_loses_its_separator_alone(prompt: str, answer: str, learned: str) -> None:
    assert Chat(chat_tokenizer()).answer(Row("1", prompt, answer)) == learned


def test_a_tokenizer_without_a_usable_template_is_refused() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        Chat(chat_tokenizer(None))
    with pytest.raises(UserError, match="drops what the assistant says"):
        Chat(chat_tokenizer("{{ messages[0].content }}"))
    with pytest.raises(UserError, match="fails: never"):
        Chat(chat_tokenizer("{{ raise_exception('never') }}"))


def test_a_run_without_a_template_is_refused(tmp_path: Path) -> None:
    model = toy_runs.save_toy_model(tmp_path / "model")
    plan = preparation.prepare(toy_runs.toy_config(model, chat_template=True))
    with pytest.raises(UserError, match="has no chat template; leave --chat-template out"):
        _ = plan.evaluator


def test_today_is_in_no_prompt() -> None:
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + CHATML
    assert Chat(chat_tokenizer(dated)).prompt(ROW).startswith("26 Jul 2024<bos>")


def test_without_a_system_role_its_text_goes_to_the_user() -> None:
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert Chat(chat_tokenizer(TURNS)).render(told).startswith("<bos>user\nBe brief.\n\nHi<end>")
    assert "<|start|>system\nBe brief.<eos>" in Chat(chat_tokenizer()).render(told)


def test_a_turn_may_end_with_another_token_than_eos() -> None:
    assert Chat(chat_tokenizer(TURNS)).end_ids == {3}
    assert Chat(chat_tokenizer()).end_ids == frozenset()
    model, tokenizer = big_toy(), chat_tokenizer()
    settings: dict[str, Any] = {"stops": (), "max_new_tokens": 6}
    [free] = decoding.generate(model, [[5, 6, 7]], tokenizer, **settings)
    [ended] = decoding.generate(model, [[5, 6, 7]], tokenizer, **settings, end_ids={free.ids[2]})
    first = free.ids.index(free.ids[2])
    assert ended.ids == free.ids[: first + 1]
    assert ended.stop_reason == "eos"


def test_few_shots_are_turns_and_probes_are_bare_questions() -> None:
    spec = facts_eval()
    assert isinstance(spec.config, dict)
    spec = dataclasses.replace(
        spec, config={**spec.config, "num_fewshot": 2, "fewshot_split": "test"}
    )
    plans = [scorer(chat, spec).plan("toy_facts") for chat in (None, Chat(chat_tokenizer()))]
    prompt = plans[1].prompts[0]
    assert prompt.count("<|start|>user\n") == 3
    assert prompt.count("<|start|>assistant\n") == 3
    assert prompt.endswith("<|start|>assistant\n")
    assert plans[0].probes() == plans[1].probes()
    assert plans[1].probes()["red"].question == "red:"


def scorer(chat: Chat | None, *specs: Any, **more: Any) -> Evaluator:
    info = {"tokenizer_digest": "toy", "dtype": "float32"}
    tokenizer = chat_tokenizer() if chat is None else chat.tokenizer
    return Evaluator(info, tokenizer, specs, EvalConfig(), chat=chat, **more)


def test_scores_on_and_off_share_neither_digest_nor_cache(tmp_path: Path) -> None:
    plain = scorer(None, facts_eval(), choice_eval(), cache_dir=tmp_path)
    chat = scorer(Chat(chat_tokenizer()), facts_eval(), choice_eval(), cache_dir=tmp_path)
    other = scorer(Chat(chat_tokenizer(TURNS)), facts_eval(), choice_eval(), cache_dir=tmp_path)
    for name in plain.evals:
        digests = {s.plan(name).task_digest for s in (plain, chat, other)}
        templates = [s.describe()[name]["chat_template"] for s in (plain, chat, other)]
        assert len(digests) == 3
        assert templates[0] is None
        assert len(set(templates)) == 3
        same = chat.identity(name, "w") | {"task": plain.identity(name, "w")["task"]}
        assert same != plain.identity(name, "w")
    model = big_toy()
    assert not plain.evaluate(model, ["toy_choice"], "w")["toy_choice"].cached
    assert not chat.evaluate(model, ["toy_choice"], "w")["toy_choice"].cached
    assert chat.evaluate(model, ["toy_choice"], "w")["toy_choice"].cached


def test_a_board_refuses_to_mix_them(tmp_path: Path) -> None:
    model = toy_runs.save_toy_model(tmp_path / "model")
    record = recording.new_record(preparation.prepare(toy_runs.toy_config(model)))
    described = [
        scorer(chat, choice_eval()).describe() for chat in (None, Chat(chat_tokenizer()), None)
    ]
    keys = [record.replace(evals=found).comparison_key() for found in described]
    assert keys[0] == keys[2] != keys[1]


@torch.no_grad()
def test_continuations_follow_the_template_directly() -> None:
    chat = Chat(chat_tokenizer())
    model, seen = big_toy(), []
    spec = dataclasses.replace(facts_eval(), rank_items=2)
    run = scorer(chat, spec, choice_eval())

    class Watching(Harness):
        def alternatives(self, prompt: str, continuations: Any) -> Any:
            seen.extend(continuations)
            return super().alternatives(prompt, continuations)

    harness, plan = Watching(model, chat.tokenizer, 4, chat=chat), run.plan("toy_facts")
    add_drift(harness, plan, [{**item, "score": 1.0, "output": "rose"} for item in plan.blank])
    found = plan.alternatives
    assert "rose" in seen
    assert not any(text.startswith(" ") for text in seen)
    ids = found["red"]
    assert chat.tokenizer.decode(ids.prompt).endswith("<|start|>assistant\n")
    assert chat.tokenizer.decode(ids.continuations[0]) == "rose"
    options = [i.args for i in run.plan("toy_choice").task.instances]
    assert options[0][1] == "rose"


def test_every_eval_runs_with_a_template() -> None:
    found = scorer(Chat(chat_tokenizer()), facts_eval(), choice_eval(), code_eval()).evaluate(
        big_toy()
    )
    assert found["toy_facts"].ceiling == found["toy_choice"].ceiling == 1.0
    assert all(item["lls"] for item in found["toy_choice"].items)
    assert "truncated" not in found["toy_facts"].flags


def test_a_request_is_what_the_eval_wraps_too(tmp_path: Path) -> None:
    """A stream file's task with a prompt for base models and a request for chat models."""
    (tmp_path / "sums.jsonl").write_text(
        "".join(f'{{"q": "What is {n} + 1?", "a": {n + 1}}}\n' for n in range(20))
    )
    text = (
        '[[tasks]]\nname = "sums"\ndata = "sums.jsonl"\nprompt = "### {q}\\n###"\nanswer = " {a}"\n'
    )
    asked = 'request = "{q}"\n[tasks.eval]\nscore = "exact_match"\n'
    (tmp_path / "sums.toml").write_text(text + asked)
    edition = registry.stream(str(tmp_path / "sums.toml")).edition("own")
    task, tokenizer = edition.tasks[0], chat_tokenizer()
    row = next(iter(Rows(task, Hub())))
    chat = Chat(tokenizer)
    prompts = {
        wrap: Evaluator({}, tokenizer, task.evals, EvalConfig(), chat=wrap).plan("sums").prompts
        for wrap in (None, chat)
    }
    assert prompts[None][0] == "### What is 18 + 1?\n###"
    assert prompts[chat][0] == chat.prompt(row).replace("What is 0", "What is 18")
    assert "###" not in prompts[chat][0]
