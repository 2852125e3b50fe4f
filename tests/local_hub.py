"""A hub of our own on localhost: the routes that the hub's library asks, over tiny repositories."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
import yaml

TOKEN = "hf_reader"  # whoever sends it has accepted every repository's terms
LARGE = (".parquet", ".safetensors", ".bin", ".gz", ".zst", ".zip", ".model")  # not in git itself

Records = Sequence[Mapping[str, Any]]


def parquet(records: Records, schema: pyarrow.Schema | None = None) -> bytes:
    """Return records as a Parquet file; a schema may say what Python values do not."""
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist([dict(r) for r in records], schema)
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def json_lines(records: Records) -> bytes:
    """Return records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def json_list(records: Records) -> bytes:
    """Return records as one JSON list."""
    return json.dumps(list(records)).encode()


@dataclass
class Repo:
    """One repository: its commits, newest last, each a mapping from path to content.

    `tags` maps names to positions of commits. A gated one gives files to TOKEN only.
    """

    commits: list[Mapping[str, bytes]]
    gated: bool = False
    tags: dict[str, int] = field(default_factory=dict)

    def sha(self, at: int = -1) -> str:
        """Return the id of a commit: a digest of its content and place."""
        at = at % len(self.commits)
        parts = [f"{at}"] + [f"{n}:{etag(n, c)}" for n, c in sorted(self.commits[at].items())]
        return hashlib.sha1("|".join(parts).encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Return the commit of a revision, main, a tag or a commit id, and its files."""
        names = {"main": len(self.commits) - 1} | self.tags
        names |= {self.sha(at): at for at in range(len(self.commits))}
        at = names.get(revision)
        return None if at is None else (self.sha(at), self.commits[at])


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path" holds `where`."""

    where: str
    times: int = 1
    status: int | None = None  # answered in place of everything else
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None  # sent in place of the file
    cut: int | None = None  # bytes after which the connection breaks
    pause: float = 0.0  # seconds between pieces of the file
    stop: bool = False  # the server goes away with the connection


def etag(name: str, content: bytes) -> str:
    """Return what the hub calls a file's content: SHA-256 of a large file, else git's blob id."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class LocalHub:
    """A running server; `repos` maps "models/ID" and "datasets/ID" to repositories."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "METHOD path"
    ranges: list[str] = field(default_factory=list)  # Range headers, in order
    faults: list[Fault] = field(default_factory=list)
    port: int = 0
    up: bool = False

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve; again at the same address after `stop`."""
        hub = self

        class Handler(_Handler):
            local = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port, self.up = self._server.server_port, True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away; connections that are open answer nothing more."""
        if self.up:
            self.up = False
            self._server.shutdown()
            self._server.server_close()

    @property
    def url(self) -> str:
        """Return what HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.port}"

    def fault(self, request: str) -> Fault | None:
        """Return what goes wrong with a request, counting it."""
        for fault in self.faults:
            if fault.where in request and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    local: LocalHub
    protocol_version = "HTTP/1.1"
    fault: Fault | None = None

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        if not self.local.up:
            self.close_connection = True
            return
        self.local.requests.append(f"{self.command} {path}")
        self.fault = self.local.fault(f"{self.command} {path}")
        if self.fault and self.fault.status:
            self._fail(self.fault.status, "", "as asked", headers=self.fault.headers)
            return
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+(?:/(?!revision/|tree/|refs$)[^/]+)?)"
            r"(?:/(revision|tree|paths-info|refs)(?:/([^/]+)(?:/(.*))?)?)?",
            address.path,
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", address.path)
        if api:
            kind, name, verb, revision, inside = _unquoted(api)
            asked = parse_qs(address.query)
            found = self._repo(f"{kind}/{name}", revision or "main")
            if found is not None:
                self._describe(f"{kind}/{name}", found, verb, inside or "", asked, body)
        elif file:
            kind, name, revision, inside = _unquoted(file)
            self._send_file(f"{kind or 'models/'}{name}", revision or "main", inside or "")
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

    def _describe(
        self,
        key: str,
        found: tuple[str, Mapping[str, bytes]],
        verb: str | None,
        inside: str,
        asked: Mapping[str, list[str]],
        body: bytes,
    ) -> None:
        sha, files = found
        if verb == "tree":
            deep = asked.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = _tree(files, inside, deep=deep)
            if inside and not entries:
                self._fail(404, "EntryNotFound", f"no folder {inside}", sha)
            else:
                self._send_json(entries)
        elif verb == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())
            paths = wanted if isinstance(wanted, list) else wanted.get("paths", [])
            everything = _tree(files, "", deep=True)
            self._send_json([entry for entry in everything if entry["path"] in paths])
        elif verb == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": sha}
            self._send_json({"branches": [main], "tags": [], "converts": []})
        else:
            self._send_json(_info(key, sha, files, self.local.repos[key]))

    def _send_file(self, key: str, revision: str, name: str) -> None:
        found = self._repo(key, revision)
        if found is None:
            return
        sha, files = found
        token = self.headers.get("Authorization", "")
        if self.local.repos[key].gated and token != f"Bearer {TOKEN}":
            self._fail(403 if token else 401, "GatedRepo", f"access to {key} is restricted", sha)
            return
        if name not in files:
            self._fail(404, "EntryNotFound", f"no file {name}", sha)
            return
        content, fault = files[name], self.fault or Fault("")
        label = etag(name, content)
        if fault.content is not None:
            content = fault.content
        start, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            self.local.ranges.append(self.headers["Range"])
            start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else end, end)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{label}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self._send_body(content[start:end], fault)

    def _send_body(self, content: bytes, fault: Fault) -> None:
        sent = content if fault.cut is None else content[: fault.cut]
        size = max(1, len(sent) // 4) if fault.pause else max(1, len(sent))
        for at in range(0, len(sent), size):
            time.sleep(fault.pause)
            self.wfile.write(sent[at : at + size])
        if fault.cut is not None:
            self.close_connection = True
        if fault.stop:
            self.local.stop()

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(
        self,
        status: int,
        code: str,
        message: str,
        sha: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if sha is not None:
            self.send_header("X-Repo-Commit", sha)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _unquoted(match: re.Match[str]) -> list[str | None]:
    """Return the parts of an address; a slash inside a revision was quoted until here."""
    return [None if part is None else unquote(part) for part in match.groups()]


def _tree(files: Mapping[str, bytes], inside: str, *, deep: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder, and with `deep` of all below it, as the hub lists them."""
    prefix = f"{inside}/" if inside else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, content in sorted(files.items()):
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts) if deep else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
        if deep or len(parts) == 1:
            size = len(content)
            entries[name] = {"type": "file", "path": name, "oid": etag(name, content), "size": size}
            if name.endswith(LARGE):
                pointer = hashlib.sha1(content).hexdigest()
                lfs = {"oid": etag(name, content), "size": size, "pointerSize": 134}
                entries[name] |= {"oid": pointer, "lfs": lfs}
    return list(entries.values())


def _info(key: str, sha: str, files: Mapping[str, bytes], repo: Repo) -> dict[str, Any]:
    """Return what the hub says of a repository."""
    card = files.get("README.md", b"").decode()
    front = card.split("---")[1] if card.startswith("---") else ""
    return {
        "_id": "0" * 24,
        "id": key.partition("/")[2],
        "sha": sha,
        "private": False,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "cardData": yaml.safe_load(front) or {},
        "siblings": [{"rfilename": name} for name in sorted(files)],
    }
