"""Times reading, templating and tokenizing rows of MetaMathQA's shape, and their leak check.

$ python benchmarks/training_data.py [--rows 100000] [--json benchmarks/results/training_data.json]

Each measurement has a process of its own: memory counts from after the imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clbench import data, leak, preparation, provenance, tokens
from clbench.dataset import DataSet, Source, Template
from clbench.digests import digest
from clbench.hub import Hub
from clbench.rows import Rows
from clbench.task import Task

NUM_WORDS = 20_000
VOCABULARY = 32_000
MAX_LENGTH = 512
PROBES, EVALS = 30_000, 8
TEMPLATE = Template(
    prompt=(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{query}\n\n### Response: Let's think step by "
        "step."
    ),
    answer=" {response}",
    request="{query}",
)


class Writer:
    """Writes text with the word frequencies of language: rank r in proportion to 1 / r."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        syllables = [a + b + c for a in "bdklmnprstv" for b in "aeiou" for c in ("", "n", "r", "s")]
        parts = np.random.default_rng(0).choice(syllables, (NUM_WORDS, 3))
        sizes = np.random.default_rng(1).integers(1, 4, NUM_WORDS)
        self.words = np.array(["".join(p[:n]) for p, n in zip(parts, sizes, strict=True)])
        self.words[5::9] = [str(n) for n in range(len(self.words[5::9]))]  # numbers, as in sums
        shares = 1 / (np.arange(NUM_WORDS) + 2)
        self.shares = np.cumsum(shares / shares.sum())

    def text(self, num_words: int) -> str:
        """Return some words."""
        at = np.searchsorted(self.shares, self.draw.random(num_words))
        return " ".join(self.words[np.minimum(at, NUM_WORDS - 1)])

    def row(self) -> dict[str, str]:
        """Return a record with MetaMathQA's columns, about 1,000 characters long."""
        query = self.text(int(self.draw.integers(20, 75))) + "?"
        lines = [self.text(int(self.draw.integers(10, 30))) for _ in range(7)]
        response = "\n".join(lines) + f"\nThe answer is: {self.draw.integers(1000)}"
        kind = "GSM_Rephrased"
        return {"query": query, "response": response, "type": kind, "original_question": query}


def write_inputs(place: Path, num_rows: int) -> None:
    """Write the rows as one JSON list, as MetaMathQA is published, and a tokenizer."""
    writer = Writer(2)
    rows = [writer.row() for _ in range(num_rows)]
    (place / "rows.json").write_text(json.dumps(rows))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((row["query"] + row["response"] for row in rows[:5000]), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(place / "tokenizer")


def source_of(place: Path) -> Source:
    """Return the rows as a source."""
    return Source(DataSet(str(place / "rows.json"), place="file"), TEMPLATE)


def load_tokens(place: Path) -> dict[str, Any]:
    """Get the examples as a run does: from the cache, else by reading and tokenizing."""
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    rows = Rows(Task("math", source_of(place), evals=()), Hub())
    folder = place / "tokens" / digest({"rows": rows.identity, "max_length": MAX_LENGTH})
    found = tokens.load(folder, "math")
    cached = found is not None
    if found is None:
        found = data.encode(rows, tokenizer, "math", MAX_LENGTH, folder)
    sample = [len(found[at].ids) for at in range(0, len(found), 1000)]
    return {
        "cached": cached,
        "examples": len(found),
        "too_long": found.facts["num_too_long"],
        "tokens_per_example": found.num_tokens / len(found),
        "labels": found.num_labels,
        "sampled": sum(sample),
    }


def check_leaks(place: Path) -> dict[str, Any]:
    """Look for 30,000 questions of 8 evals in the rows, none of which holds one on purpose."""
    writer = Writer(3)
    sizes = (8, 12, 30, 60)
    probes = {
        f"eval{e}": {
            str(i): leak.Probe(writer.text(sizes[i % 4]), (writer.text(2),))
            for i in range(PROBES // EVALS)
        }
        for e in range(EVALS)
    }
    rows = Rows(Task("math", source_of(place), evals=()), Hub())

    def documents() -> Iterator[leak.Document]:
        return ([row.request, row.answer] for row in rows)

    some = [len(leak.tokenize(" ".join(fields))) for fields in islice(documents(), 500)]
    began = time.perf_counter(), time.process_time()
    found = leak.Index(probes).scan(documents(), remove=True)
    return {
        "scan_seconds": time.perf_counter() - began[0],
        "scan_cpu_seconds": time.process_time() - began[1],
        "probes": PROBES,
        "words_per_row": sum(some) / len(some),
        "removed": len(found["removed"]),
    }


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "cold": load_tokens,
    "warm": load_tokens,
    "leak": check_leaks,
}


def measure(step: str, place: Path) -> dict[str, Any]:
    """Carry out one step in this process."""
    preparation.quiet_libraries()
    before = psutil.Process().memory_info().rss
    began = time.perf_counter(), time.process_time()
    found = STEPS[step](place)
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    peak = peak_bytes() - before
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes_above_imports": peak, **found}


def peak_bytes() -> int:
    """Return the peak resident set of this program; `getrusage` counts its parent's as well."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.step, options.place)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_inputs(place, options.rows)
        size = (place / "rows.json").stat().st_size
        found: dict[str, Any] = {"rows": options.rows, "file_bytes": size}
        found |= {"hardware": provenance.hardware(), "packages": provenance.versions()}
        environment = os.environ | {"HF_DATASETS_CACHE": str(place / "datasets")}
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--place", str(place)]
            load = os.getloadavg()[0]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[step] = json.loads(done.stdout.splitlines()[-1]) | {"load_before": load}
            print(step, json.dumps(found[step]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
