"""A folder, and an application, behind HTTP on this machine."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


def serve_app(app: Any) -> Iterator[str]:
    """The address of an ASGI application that uvicorn runs in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
