"""What a record shows of its prompts: whose definition asks, in which words, wrapped or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaltoys import choice_eval, facts_eval
from test_chat import chat_tokenizer, scorer
from toy_runs import save_toy_model, toy_config

from clbench import preparation, recording
from clbench.chat import Chat
from clbench.digests import digest
from clbench.excerpts import MOST_KEPT, cut, excerpt
from clbench.report.data import data
from clbench.results import Record


def test_a_long_text_loses_its_middle_and_keeps_its_digest() -> None:
    text = "begin " + "x" * MOST_KEPT + " end"
    kept = excerpt(text)
    assert kept["text"].startswith("begin xx")
    assert kept["text"].endswith("xx end")
    assert len(kept["text"]) < len(text) == kept["characters"]
    assert kept["digest"] == digest(text)
    assert cut("whole", 5) == "whole"


def record_of(model: Path, chat: Chat | None, **config: Any) -> Record:
    """Return a record that is begun, with the evals as a scorer describes them."""
    record = recording.new_record(preparation.prepare(toy_config(model, **config)))
    return record.replace(evals=scorer(chat, facts_eval(), choice_eval()).describe())


def test_the_prompt_is_shown_as_the_chat_template_wraps_it(tmp_path: Path) -> None:
    model, chat = save_toy_model(tmp_path / "model"), Chat(chat_tokenizer())
    plain, wrapped = record_of(model, None), record_of(model, chat, chat_template=True)
    assert "chat template" not in data(plain)
    assert 'eval toy_facts: clbench\'s, version 1, zero-shot, prompt "red:"' in data(plain)
    said = data(wrapped)
    assert "prompts and answers are wrapped by the model's chat template" in said
    asked = json.dumps("<|start|>user\nred:")[:-1]
    assert f"eval toy_facts: clbench's, version 1, zero-shot, prompt {asked}" in said.replace(
        "<bos>", ""
    )


def test_what_is_shown_decides_no_comparison_and_older_records_are_read(tmp_path: Path) -> None:
    record = record_of(save_toy_model(tmp_path / "model"), None)
    blocks = {name: block.model_dump(mode="json") for name, block in record.evals.items()}
    older = {
        name: {key: value for key, value in block.items() if key != "asked_as"}
        for name, block in blocks.items()
    }
    before = record.replace(evals=older)
    assert before.comparison_key() == record.comparison_key()
    assert "eval toy_facts:" not in data(before)
    older["toy_facts"] |= {"definition": "nq_open", "prompt": "Q: {{question}}?\nA:"}
    older["toy_choice"] |= {"definition": "own", "prompt": "prompt"}
    said = data(record.replace(evals=older))
    assert "eval toy_facts: lm-eval's nq_open, version 1, zero-shot, template \"Q: {{" in said
    assert "eval toy_choice: clbench's, version 1, zero-shot\n" in said
