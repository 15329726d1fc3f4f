"""A folder, and OpenAI's chat API, behind HTTP on this machine."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

DEAD = "http://127.0.0.1:9/v1"  # the discard port, where nothing listens


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


class ChatServer(http.server.ThreadingHTTPServer):
    """OpenAI's chat API: ``reply`` to a request is a body, a status, or None for a connection that breaks.

    Args:
        reply: see above.
        models: the entries of its list of models.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, reply: Callable[[dict[str, Any]], Any], models: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Chat)
        self.reply, self.models = reply, models
        self.stream: Callable[[dict[str, Any], Any], None] | None = None
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Chat(http.server.BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        self._send(200, {"data": self.server.models})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**request, "path": self.path, "key": self.headers.get("Authorization")})
        if self.server.stream is not None:
            with contextlib.suppress(ConnectionError):
                self.server.stream(request, self)
            return
        answer = self.server.reply(request)
        if answer is None:
            self.connection.close()
            return
        self._send(answer if isinstance(answer, int) else 200, answer)

    def _send(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def running(server: ChatServer) -> Iterator[ChatServer]:
    """The server, answering in a thread."""
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def llava_replies(directory: Path) -> Callable[[dict[str, Any]], Any]:
    """The replies of a LLaVA to questions about images; the status 400 if an image cannot be read."""
    import torch
    from PIL import Image, UnidentifiedImageError

    from llava_bridge import answer, load_llava

    loaded, lock = load_llava(directory, "cpu"), threading.Lock()

    def reply(request: dict[str, Any]) -> Any:
        *pictures, question = request["messages"][0]["content"]
        try:
            images = [
                Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
                for part in pictures
            ]
        except UnidentifiedImageError:
            return 400
        sampling = {"do_sample": True, "temperature": request["temperature"]} if request["temperature"] else {}
        with lock:
            torch.manual_seed(request.get("seed", 0))
            (said,) = answer(*loaded, [images], [question["text"]], request["max_tokens"], **sampling)
        counts = {"prompt_tokens": len(question["text"].split()) + 16, "completion_tokens": request["max_tokens"]}
        return {"choices": [{"message": {"content": said}, "finish_reason": "length"}], "usage": counts}

    return reply
