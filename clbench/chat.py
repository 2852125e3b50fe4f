"""A tokenizer's chat template around requests and answers, in training as in scoring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from clbench.digests import digest
from clbench.errors import UserError
from clbench.task import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

# Some templates write today's date into every prompt, if they are not given one.
FIXED = {"date_string": "26 Jul 2024"}
ASKED, ANSWERED = "a question", "ANSWER"
SEPARATOR = re.compile(r"\n+| ")


class Chat:
    """What the template writes before a request, after it, and after the answer.

    Raises UserError for a tokenizer without a template, and for a template that fails or drops
    what the assistant says.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "leave --chat-template out"
            )
        self.tokenizer = tokenizer
        try:
            prompt = self.render([_says("user", ASKED)])
            whole = self._apply([_says("user", ASKED), _says("assistant", ANSWERED)])
        except TemplateError as error:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} fails: {error}"
            ) from error
        before, found, after = whole.rpartition(ANSWERED)
        if not found:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} drops what the assistant says"
            )
        self._opening = before.removeprefix(prompt) if before.startswith(prompt) else ""
        self._closing = after.partition(str(tokenizer.eos_token))[0]
        self.digest = digest({"template": tokenizer.chat_template, "rendered": whole})

    @property
    def end_ids(self) -> frozenset[int]:
        """Return the tokens besides EOS that end an answer: the template's end of a turn."""
        ids = self.tokenizer(self._closing.strip(), add_special_tokens=False)["input_ids"]
        return frozenset(ids) if len(ids) == 1 else frozenset()

    def prompt(self, row: Row) -> str:
        """Return what the model reads of a row, up to where its answer begins."""
        return self.render([_says("user", row.request or row.prompt)])

    def answer(self, row: Row) -> str:
        """Return what the model learns to write, EOS left out.

        The separator that an answer has after a prompt without a template is left out: line
        breaks or one blank, if the prompt does not end in one itself.
        """
        text = row.answer
        if not row.prompt[-1:].isspace() and (separator := SEPARATOR.match(text)):
            text = text[separator.end() :]
        return self._opening + text + self._closing

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return messages as text; without a generation prompt the last one is to be continued.

        A template without a system role gets its text in front of the user's first words.
        """
        settings = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self._apply(messages, **settings)
        except TemplateError:
            if messages[0]["role"] != "system" or len(messages) == 1:
                raise
            told, asked = messages[0]["content"], messages[1]["content"]
            return self._apply([_says("user", f"{told}\n\n{asked}"), *messages[2:]], **settings)

    def _apply(self, messages: Sequence[Message], **settings: Any) -> str:
        settings |= {"tokenize": False, **FIXED}
        return str(self.tokenizer.apply_chat_template(list(messages), **settings))


def _says(role: str, content: str) -> Message:
    return {"role": role, "content": content}
