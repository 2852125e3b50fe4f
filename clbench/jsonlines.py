"""JSON lists as JSON Lines: `datasets` holds a list in memory several times, lines in pieces."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from clbench.digests import digest

PIECE = 2**22  # characters read at a time
HEAD = re.compile(r"\s*\[\s*(?={)")
COMMA = re.compile(r"\s*,\s*(?={)")
END = re.compile(r"\s*]\s*\Z")


def as_lines(path: Path, folder: Path) -> Path:
    """Return a file that is no list of objects; else its copy in `folder`, with one a line.

    The copy is made once for each path, size and time of change. Raises ValueError for what is
    not JSON and OSError where the copy cannot be written, leaving nothing behind.
    """
    with path.open(encoding="utf-8-sig") as file:
        if not HEAD.match(file.read(PIECE)):
            return path
    status = path.stat()
    name = digest([str(path.resolve()), status.st_size, status.st_mtime_ns])
    copy = folder / f"{name}.jsonl"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{name}.{secrets.token_hex(6)}.tmp"
        try:
            with unfinished.open("x", encoding="utf-8") as lines:
                for text in objects(path):  # a text in JSON holds no line end, they are outside
                    lines.write(text.replace("\n", " ") + "\n")
            os.replace(unfinished, copy)
        finally:
            unfinished.unlink(missing_ok=True)
    return copy


def objects(path: Path) -> Iterator[str]:
    """Yield the objects of a list as they are written, a few of them in memory."""
    decoder, start = json.JSONDecoder(), HEAD
    with path.open(encoding="utf-8-sig") as file:
        text, at = "", 0
        while True:
            try:
                found = start.match(text, at)
                if found is None:
                    raise json.JSONDecodeError("expected another object or ]", text, at)
                end = decoder.raw_decode(text, found.end())[1]
                yield text[found.end() : end]
                at, start = end, COMMA
            except json.JSONDecodeError:
                piece = file.read(PIECE)
                if not piece:
                    if start is COMMA and END.match(text, at):
                        return
                    raise
                text, at = text[at:] + piece, 0
