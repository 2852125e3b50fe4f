"""The streams: each a file beside this one, named like the stream."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MATH_CODE_IF = FOLDER / "math-code-if.toml"
SECURA_16 = FOLDER / "secura-16.toml"
SECURA_MCQ = FOLDER / "secura-mcq.toml"
SECURA_QA = FOLDER / "secura-qa.toml"
STANDARD_CL = FOLDER / "standard-cl.toml"
