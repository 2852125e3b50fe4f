"""A hub of our own on localhost: the routes that the hub's library asks, over tiny repositories."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet

Records = Sequence[Mapping[str, Any]]


def parquet(records: Records) -> bytes:
    """Return records as a Parquet file."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(r) for r in records]), sink)
    return sink.getvalue()


def json_lines(records: Records) -> bytes:
    """Return records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def json_list(records: Records) -> bytes:
    """Return records as one JSON list."""
    return json.dumps(list(records)).encode()


@dataclass
class Repo:
    """One repository: its commits, newest last, each a mapping from path to content."""

    commits: list[Mapping[str, bytes]]
    gated: bool = False

    def sha(self, at: int = -1) -> str:
        """Return the id of a commit: a digest of its content and place."""
        at = at % len(self.commits)
        parts = [f"{at}"] + [f"{n}:{_oid(c)}" for n, c in sorted(self.commits[at].items())]
        return hashlib.sha1("|".join(parts).encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Return the commit of a revision, main or a commit id, and its files."""
        for at in range(len(self.commits)):
            if self.sha(at) == revision:
                return revision, self.commits[at]
        return (self.sha(), self.commits[-1]) if revision == "main" else None


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class LocalHub:
    """A running server; `repos` maps "models/ID" and "datasets/ID" to repositories."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "METHOD path"

    def __enter__(self) -> LocalHub:
        hub = self

        class Handler(_Handler):
            local = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Return what HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    local: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.local.requests.append(f"{self.command} {path}")
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)"
            r"(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?",
            path,
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        if api:
            kind, name, verb, revision, _ = api.groups()
            self._describe(f"{kind}/{name}", verb, revision or "main")
        elif file:
            kind, name, revision, inside = file.groups()
            self._send_file(f"{kind or 'models/'}{name}", revision, inside)
        else:
            self._fail(404, "EntryNotFound", "no such route")

    def _repo(self, key: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        repo = self.local.repos.get(key)
        if repo is None:
            self._fail(404, "RepoNotFound", f"no repository {key}")
            return None
        found = repo.files(revision)
        if found is None:
            self._fail(404, "RevisionNotFound", f"no revision {revision}")
        return found

    def _describe(self, key: str, verb: str | None, revision: str) -> None:
        found = self._repo(key, revision)
        if found is None:
            return
        sha, files = found
        entries = [
            {"type": "file", "path": n, "oid": hashlib.sha1(c).hexdigest(), "size": len(c)}
            | {"lfs": {"oid": _oid(c), "size": len(c), "pointerSize": 134}}
            for n, c in sorted(files.items())
        ]
        if verb in ("tree", "paths-info"):
            self._send_json(entries)
            return
        self._send_json(
            {
                "_id": "0" * 24,
                "id": key.partition("/")[2],
                "sha": sha,
                "private": False,
                "gated": "manual" if self.local.repos[key].gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": name} for name in sorted(files)],
            }
        )

    def _send_file(self, key: str, revision: str, name: str) -> None:
        found = self._repo(key, revision)
        if found is None:
            return
        sha, files = found
        if self.local.repos[key].gated and "Authorization" not in self.headers:
            self._fail(401, "GatedRepo", f"access to {key} is restricted", sha)
            return
        if name not in files:
            self._fail(404, "EntryNotFound", f"no file {name}", sha)
            return
        content = files[name]
        start, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else end, end)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:end])

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str, sha: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if sha is not None:
            self.send_header("X-Repo-Commit", sha)
        self.send_header("Content-Length", "0")
        self.end_headers()
