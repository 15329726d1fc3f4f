"""The side of the hub that takes uploads, as far as huggingface_hub asks it: repositories, checks, one commit.

``folder``/ORG/NAME/… is what was pushed, ``seen`` what was asked: (method, path, authorization). A repository is
private where it holds a file ``.private``. Files go in the commit itself, none by LFS.
"""

from __future__ import annotations

import base64
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "d" * 40


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    seen: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        self._note()
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", self._path()):
            root = self.folder / found[1]
            if not root.is_dir():
                return self._reply(404, {}, {"X-Error-Code": "RepoNotFound"})
            private = (root / ".private").is_file()
            files = [{"rfilename": path.relative_to(root).as_posix()} for path in root.rglob("*") if path.is_file()]
            return self._reply(200, {"id": found[1], "sha": COMMIT, "siblings": files, "private": private, "tags": []})
        return self._reply(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._note()
        path = self._path()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._reply(200, {"errors": [], "warnings": []})
        if re.fullmatch(r"/api/(?:models|datasets)/[^/]+/[^/]+/preupload/main", path):
            files = json.loads(body)["files"]
            answer = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._reply(200, {"files": answer})
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self._reply(404, {})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        root = self.folder / name
        if root.is_dir():
            return self._reply(409, {"error": "exists", "url": name})
        root.mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            (root / ".private").touch()
        return self._reply(200, {"url": f"{self._address()}/{name}", "name": name})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                target = self.folder / name / line["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(line["value"]["content"]))
        url = f"{self._address()}/{name}/commit/{COMMIT}"
        return self._reply(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _note(self) -> None:
        self.seen.append((self.command, self._path(), self.headers.get("Authorization")))

    def _reply(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...
