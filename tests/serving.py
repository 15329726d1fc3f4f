"""A folder behind HTTP on this machine."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]


def serve(kind: type[Quiet], folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """``folder`` behind HTTP on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder))) as found:
        found.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def address(server: http.server.ThreadingHTTPServer, name: str = "shard-{00000..00002}.tar") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"
