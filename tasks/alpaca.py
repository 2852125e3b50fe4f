"""The instruction prompt of Stanford Alpaca, in which the published runs train and ask."""

from __future__ import annotations

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
STEP_BY_STEP = PROMPT + " Let's think step by step."  # MetaMath's cue, arXiv 2309.12284
