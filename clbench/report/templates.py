"""The words that rows and questions are put in, as a record names them and as a model read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from clbench.excerpts import cut
from clbench.results import Record

Block = Mapping[str, Any]

MOST_SHOWN = 400  # characters of one text; the record keeps more


def templates(record: Record, trained: Mapping[str, Block], evals: Mapping[str, Block]) -> str:
    """Return one line per task and eval, by their roles such as "eval gsm8k"."""
    lines = [*_chat(record), *_trained(trained)]
    for role, block in evals.items():
        said = ", ".join(_eval(block))
        lines += [f"{role}: {said}"] if said else []
    return "\n".join(lines)


def _chat(record: Record) -> Iterator[str]:
    run = cast(Block, (record.config.model_extra or {}).get("run", {}))
    if run.get("chat_template"):
        digest = f" {(record.model.chat_template_digest or '')[:12]}".rstrip()
        yield (
            f"prompts and answers are wrapped by the model's chat template{digest}; those below "
            "are as it wrote them"
        )


def _trained(blocks: Mapping[str, Block]) -> Iterator[str]:
    for role, block in blocks.items():
        if isinstance(block.get("template"), Mapping):
            yield f"{role}: {_texts(block['template'])}"
        elif block.get("template"):
            yield f"{role}: template {block['template']}"
        if "example_row" in block:
            shown = ", ".join(f"{key} {_shown(text)}" for key, text in block["example_row"].items())
            yield f"{role}: its first row has {shown}"


def _eval(block: Block) -> Iterator[str]:
    """Yield whose definition an eval is, how often it shows how, and the words it asks in.

    Records of before these were kept name lm-eval's definition, or say that it is "own"; the words
    of the latter are in none of them.
    """
    asked = block.get("asked_as")
    if asked is not None:
        named = f" {asked['package_version']}'s {asked['name']}"
        yield f"lm-eval{named}" if asked["package"] == "lm-eval" else "clbench's"
    elif "definition" in block:
        own = block["definition"] == "own"
        yield "clbench's" if own else f"lm-eval's {block['definition']}"
    else:
        return
    yield f"version {block['version']}"
    if "shots" in block:
        yield f"{block['shots']}-shot" if block["shots"] else "zero-shot"
    prepare = block.get("prepare")
    template = block.get("prompt") if asked is None else asked["template"]
    if isinstance(prepare, Mapping) and "template" in prepare:
        yield _texts(prepare["template"])
    elif template and (asked is not None or "{{" in template):
        yield f"template {_quoted(template)}"
    if asked is not None:
        yield f"{'first ' if asked['template'] else ''}prompt {_shown(asked['prompt'])}"


def _texts(template: Block) -> str:
    texts = (f"{name} {_quoted(text)}" for name, text in template.items() if text)
    return f"template with {', '.join(texts)}"


def _shown(kept: Block) -> str:
    return _quoted(cut(kept["text"], MOST_SHOWN))


def _quoted(text: object) -> str:
    return json.dumps(text, ensure_ascii=False)
