"""OpenAI's chat API and the page, as a Starlette application.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clips.core.artifact import log_info
from clips.errors import UserError
from llava_bridge.inference.streaming import ContextLengthError, StreamedAnswer
from llava_bridge.serving.middleware import RequestGuardMiddleware
from llava_bridge.serving.request import RequestError, parse_request
from llava_bridge.serving.worker import GenerationWorker

MAX_REQUEST_BYTES = 64 * 2**20
"""Maximum request size; a photo of 20 megapixels has about 10 MB, 14 in base64."""
REQUEST_TIMEOUT = 120.0
"""Seconds within which a request must arrive."""
PAGE_FILE = Path(__file__).with_name("page.html")
T = TypeVar("T")


class Server:
    """Answers requests with one model.

    Args:
        worker: runs the model.
        name: the model's name in the API.
        max_new_tokens: maximum length of an answer if a request sets none.
        greeting: lines to print at startup.
        root: the model's hash, by which clients distinguish models of one name.
    """

    def __init__(
        self,
        worker: GenerationWorker,
        name: str,
        max_new_tokens: int,
        greeting: Sequence[str] = (),
        root: str | None = None,
    ) -> None:
        self.worker, self.name, self.max_new_tokens, self.greeting = worker, name, max_new_tokens, greeting
        self.root = root
        self.started = int(time.time())

    def app(self, hosts: Sequence[str] = ("*",)) -> Starlette:
        """Return the application.

        Args:
            hosts: host names by which it may be addressed, any by default; see :class:`RequestGuardMiddleware`.
        """
        routes = [
            Route("/", self.page),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        handlers: Any = dict.fromkeys((RequestError, UserError, HTTPException, Exception), _handle_error)
        middleware = [Middleware(RequestGuardMiddleware, hosts=hosts, seconds_to_wait=self.worker.seconds_to_wait)]
        return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for line in self.greeting:
            log_info(line)
        yield
        self.worker.close()

    async def page(self, request: Request) -> Response:
        """``GET /``: the page, which may run its own script and connect only to this server."""
        html = PAGE_FILE.read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": _content_security_policy(html)})

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._description())

    async def complete(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await _read_body(request)
        chat = await asyncio.to_thread(parse_request, body, self.max_new_tokens)
        self._check_model(chat.model)
        started, pieces = time.monotonic(), self.worker.stream(chat)
        header = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        if chat.stream:
            first = await _unless_disconnected(request, anext(pieces))  # so that the status reports errors
            events = _events(header, first, pieces, usage=chat.usage, started=started)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        answer = await _unless_disconnected(request, _last(pieces))
        _log(answer, started)
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        return JSONResponse({**header, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)})

    def _description(self) -> dict[str, Any]:
        found = {"id": self.name, "object": "model", "created": self.started, "owned_by": "llava-bridge"}
        return found if self.root is None else {**found, "root": self.root}

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            line = f"model: there is no '{name}' here; expected '{self.name}'"
            raise RequestError(line, param="model", code="model_not_found", status=404)


async def _read_body(request: Request) -> bytes:
    """Read the JSON of a request; browsers send its content type to other sites only with their permission."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(f"content-type: expected application/json, got '{content_type}'", status=415)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            async for chunk in request.stream():  # to its end, because clients read the response only then
                size += len(chunk)
                if size <= MAX_REQUEST_BYTES:
                    body += chunk
    except TimeoutError:
        raise RequestError(f"the body: expected it within {REQUEST_TIMEOUT:g} seconds", status=408) from None
    if size > MAX_REQUEST_BYTES:
        raise RequestError(
            f"the body: expected at most {MAX_REQUEST_BYTES // 2**20} MB, got {size / 2**20:.1f}", status=413
        )
    return bytes(body)


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``; cancel it when the client disconnects.

    Raises:
        HTTPException: the client has disconnected; 499 is nginx's status for that, and is not sent.
    """
    result, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({result, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            log_info("a client disconnected before its answer")
            raise HTTPException(499, "the client has disconnected")
        return result.result()
    finally:
        result.cancel()
        disconnect.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _last(pieces: AsyncGenerator[str | StreamedAnswer, None]) -> StreamedAnswer:
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, StreamedAnswer):
                return piece
    raise AssertionError("a stream ends with the full answer")


async def _events(
    header: dict[str, Any],
    first: str | StreamedAnswer,
    pieces: AsyncGenerator[str | StreamedAnswer, None],
    *,
    usage: bool,
    started: float,
) -> AsyncGenerator[str, None]:
    """A stream's server-sent events."""

    def event(delta: dict[str, Any] | None, **more: Any) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}]
        counts = {"usage": None} if usage else {}
        chunk = {**header, "object": "chat.completion.chunk", "choices": choices, **counts, **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    completed = False
    try:
        async with contextlib.aclosing(pieces):
            yield event({"role": "assistant", "content": ""})
            piece = first
            while isinstance(piece, str):
                yield event({"content": piece})
                piece = await anext(pieces)
            _log(piece, started)
            yield event({}, finish=piece.finish)
            if usage:
                yield event(None, usage=_usage(piece))
        yield "data: [DONE]\n\n"
        completed = True
    except (RequestError, UserError) as error:  # the status has already been sent
        yield f"data: {json.dumps(_error_response(error)[1])}\n\n"
        completed = True
    finally:
        if not completed:
            log_info("a client disconnected during its answer")


def _usage(answer: StreamedAnswer) -> dict[str, int]:
    total = answer.prompt_tokens + answer.new_tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.new_tokens, "total_tokens": total}


def _log(answer: StreamedAnswer, started: float) -> None:
    seconds = time.monotonic() - started
    log_info(f"answered: {answer.prompt_tokens} + {answer.new_tokens} tokens, {answer.finish}, {seconds:.1f} s")


async def _handle_error(request: Request, error: Exception) -> Response:
    status, content = _error_response(error)
    return JSONResponse(content, status_code=status, headers=getattr(error, "headers", None))


def _error_response(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and OpenAI's error JSON."""
    param, code, status = None, None, 500
    message = "the server failed"
    if isinstance(error, RequestError):
        message, param, code, status = str(error), error.param, error.code, error.status
    elif isinstance(error, UserError):
        message, status = str(error), 400
        param, code = "messages", "context_length_exceeded" if isinstance(error, ContextLengthError) else None
    elif isinstance(error, HTTPException):
        message, status = error.detail, error.status_code
    error_type = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def _content_security_policy(html: str) -> str:
    """Return a content security policy that allows only the page's own scripts."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; script-src {sources}"
    )
