"""A dataset hub on this machine, as far as huggingface_hub asks it: descriptions, and files with ranges.

    python hub_server.py FOLDER SENT     # prints its address, then serves FOLDER/ORG/NAME/…, appends to SENT

Every repository has one commit. A file named in ``FOLDER/cut`` (a line each: name, number of bytes) is cut off there
once, as by a lost connection.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
LARGE = ".parquet"  # what the hub keeps by its SHA-256


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    sent: Path

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._describe(found[1], found[2] or COMMIT)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+", path):
            return self._list(found[1])
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(self.folder / found[1] / found[3], f"{found[1]}/{found[3]}", body)
        return self._reply(404, b"{}", {}, body)

    def _describe(self, name: str, revision: str) -> None:
        root = self.folder / name
        if not root.is_dir() or revision not in (COMMIT, "main"):
            return self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, True)
        files = []
        for path in sorted(each for each in root.rglob("*") if each.is_file()):
            entry = {"rfilename": path.relative_to(root).as_posix(), "size": path.stat().st_size, "blobId": _blob(path)}
            if path.suffix == LARGE:
                entry["lfs"] = {"sha256": _sha256(path), "size": path.stat().st_size, "pointerSize": 130}
            files.append(entry)
        content = {"id": name, "sha": COMMIT, "siblings": files, "private": False, "gated": False, "tags": []}
        return self._reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, True)

    def _list(self, name: str) -> None:
        files = []
        for path in sorted(each for each in (self.folder / name).rglob("*") if each.is_file()):
            where, size = path.relative_to(self.folder / name).as_posix(), path.stat().st_size
            entry = {"type": "file", "path": where, "size": size, "oid": _blob(path)}
            if path.suffix == LARGE:
                entry["lfs"] = {"oid": _sha256(path), "size": size, "pointerSize": 130}
            files.append(entry)
        return self._reply(200, json.dumps(files).encode(), {"Content-Type": "application/json"}, True)

    def _file(self, path: Path, name: str, body: bool) -> None:
        if not path.is_file():
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        content = path.read_bytes()
        tag = _sha256(path) if path.suffix == LARGE else _blob(path)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        if body:
            with self.sent.open("a") as stream:
                stream.write(f"{name} {first}\n")
        if start:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self._reply(206 if start else 200, content[first:], headers, body, self._cut(name) if body else None)

    def _cut(self, name: str) -> int | None:
        cut = self.folder / "cut"
        known = dict(line.split() for line in cut.read_text().splitlines()) if cut.exists() else {}
        if name not in known:
            return None
        cut.unlink()
        return int(known[name])

    def _reply(self, status: int, content: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


if __name__ == "__main__":
    Hub.folder, Hub.sent = Path(sys.argv[1]), Path(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
