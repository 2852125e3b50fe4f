"""The streams: each a file beside this one, named like the stream."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
CURLORA_3 = FOLDER / "curlora-3.toml"
I_LORA_8 = FOLDER / "i-lora-8.toml"
LONG_CL = FOLDER / "long-cl.toml"
MATH_CODE_IF = FOLDER / "math-code-if.toml"
SECURA_16 = FOLDER / "secura-16.toml"
SECURA_MCQ = FOLDER / "secura-mcq.toml"
SECURA_QA = FOLDER / "secura-qa.toml"
STANDARD_CL = FOLDER / "standard-cl.toml"
TRACE = FOLDER / "trace.toml"
