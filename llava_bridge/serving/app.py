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
        worker: the model's.
        name: the model's, in the API.
        max_new_tokens: if a request does not limit the length of the answer.
        greeting: lines to print when it is ready.
    """

    def __init__(self, worker: GenerationWorker, name: str, max_new_tokens: int, greeting: Sequence[str] = ()) -> None:
        self.worker, self.name, self.max_new_tokens, self.greeting = worker, name, max_new_tokens, greeting
        self.started = int(time.time())

    def app(self, hosts: Sequence[str] = ("*",)) -> Starlette:
        """Return the application.

        Args:
            hosts: names by which it may be addressed besides IP addresses, any by default; see `Guard`.
        """
        routes = [
            Route("/", self.page),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        faults: Any = {RequestError: _fault, UserError: _fault, HTTPException: _fault, Exception: _fault}
        middleware = [Middleware(RequestGuardMiddleware, hosts=hosts, seconds_to_wait=self.worker.seconds_to_wait)]
        return Starlette(routes=routes, exception_handlers=faults, middleware=middleware, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for line in self.greeting:
            log_info(line)
        yield
        self.worker.close()

    async def page(self, request: Request) -> Response:
        """``GET /``: the page, which may run its own script and connect only to this server."""
        html = PAGE_FILE.read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": _policy(html)})

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._description())

    async def complete(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await _body(request)
        asked = await asyncio.to_thread(parse_request, body, self.max_new_tokens)
        self._check_model(asked.model)
        began, pieces = time.monotonic(), self.worker.write(asked)
        if asked.stream:
            first = await _unless_gone(request, anext(pieces))  # so that errors are reported by the status
            answer = {"id": _new_id(), "created": int(time.time()), "model": self.name}
            lines = _events(answer, first, pieces, usage=asked.usage, began=began)
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        reply = await _unless_gone(request, _last(pieces))
        _log(reply, began)
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        answer = {"id": _new_id(), "object": "chat.completion", "created": int(time.time()), "model": self.name}
        return JSONResponse({**answer, "choices": [choice], "usage": _usage(reply)})

    def _description(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "llava-bridge"}

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            line = f"model: there is no '{name}' here; expected '{self.name}'"
            raise RequestError(line, param="model", code="model_not_found", status=404)


async def _body(request: Request) -> bytes:
    """Read the JSON of a request. Its content type is required, which other sites cannot send unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"content-type: expected application/json, got '{kind}'", status=415)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            async for chunk in request.stream():  # to its end, because clients listen only then
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


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``; it is cancelled when the client disconnects.

    Raises:
        HTTPException: the client has disconnected; 499 is nginx's status for that, and is not sent.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            log_info("a client went away before its answer")
            raise HTTPException(499, "the client has gone")
        return working.result()
    finally:
        for task in (working, waiting):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _last(pieces: AsyncGenerator[str | StreamedAnswer, None]) -> StreamedAnswer:
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, StreamedAnswer):
                return piece
    raise AssertionError("a worker's last word is the whole")


async def _events(
    answer: dict[str, Any],
    first: str | StreamedAnswer,
    pieces: AsyncGenerator[str | StreamedAnswer, None],
    *,
    usage: bool,
    began: float,
) -> AsyncGenerator[str, None]:
    """A stream's server-sent events."""

    def event(delta: dict[str, Any] | None, **more: Any) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}]
        counts = {"usage": None} if usage else {}
        chunk = {**answer, "object": "chat.completion.chunk", "choices": choices, **counts, **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    ended = False
    try:
        async with contextlib.aclosing(pieces):
            yield event({"role": "assistant", "content": ""})
            async for piece in _with_first(first, pieces):
                if isinstance(piece, StreamedAnswer):
                    _log(piece, began)
                    yield event({}, finish=piece.finish)
                    if usage:
                        yield event(None, usage=_usage(piece))
                else:
                    yield event({"content": piece})
        yield "data: [DONE]\n\n"
        ended = True
    except (RequestError, UserError) as error:  # the status has already been sent
        yield f"data: {json.dumps(_told(error)[1])}\n\n"
        ended = True
    finally:
        if not ended:
            log_info("a client went away during its answer")


async def _with_first(first: T, others: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    if not isinstance(first, StreamedAnswer):
        async for other in others:
            yield other


def _usage(reply: StreamedAnswer) -> dict[str, int]:
    total = reply.prompt_tokens + reply.new_tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.new_tokens, "total_tokens": total}


def _log(reply: StreamedAnswer, began: float) -> None:
    seconds = time.monotonic() - began
    log_info(f"answered: {reply.prompt_tokens} + {reply.new_tokens} tokens, {reply.finish}, {seconds:.1f} s")


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


async def _fault(request: Request, error: Exception) -> Response:
    status, content = _told(error)
    return JSONResponse(content, status_code=status, headers=getattr(error, "headers", None))


def _told(error: Exception) -> tuple[int, dict[str, Any]]:
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
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _policy(html: str) -> str:
    """Return a content security policy that allows only the page's own scripts."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; script-src {sources}"
    )
