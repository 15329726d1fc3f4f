"""Access checks and rate limits, before any request is read."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_CONCURRENT_REQUESTS = 16
"""Maximum number of requests that are read or wait for the model; further ones get a Retry-After."""
MAX_REQUESTS_PER_MINUTE = 600
"""Requests of one client."""
_MAX_CLIENTS = 1000
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class RequestGuardMiddleware:
    """Pass a request to ``app`` only if it is allowed.

    It must address this server by an IP address or one of its host names, because another site may resolve its own name
    to this address (DNS rebinding). Requests that a browser sends for a page of another site are rejected, even if the
    page cannot read the answer. The number of requests is limited.

    Args:
        app: the application.
        hosts: names of this server besides IP addresses; ``*`` for any.
        seconds_to_wait: estimated seconds until the waiting requests are answered.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], seconds_to_wait: Callable[[], float]) -> None:
        self.app, self.hosts = app, {host.lower() for host in hosts}
        self.seconds_to_wait = seconds_to_wait
        self.num_active = 0
        self.times: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or reject in OpenAI's format."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        rejection = self._rejection(scope)
        if rejection is not None:
            status, message, seconds = rejection
            error_type = "rate_limit_error" if status == 429 else "invalid_request_error"
            content = {"error": {"message": message, "type": error_type, "param": None, "code": None}}
            wait = {"Retry-After": str(max(1, math.ceil(seconds)))} if status == 429 else {}
            await JSONResponse(content, status_code=status, headers=wait | _HEADERS)(scope, receive, send)
            return
        is_post = scope["method"] == "POST"
        self.num_active += is_post
        try:
            await self.app(scope, receive, _with_headers(send))
        finally:
            self.num_active -= is_post

    def _rejection(self, scope: Scope) -> tuple[int, str, float] | None:
        """Return status, reason, and the seconds after which it may be repeated; None for an allowed request."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own_host(host):
            return 400, "host: expected a name or the address of this server", 0
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and origin.lower() not in {f"http://{host}".lower(), f"https://{host}".lower()}:
            return 403, "origin: this server answers only its own page, not those of other sites", 0
        if site not in {"none", "same-origin"} and headers.get("sec-fetch-mode") != "navigate":
            return 403, "sec-fetch-site: this server answers only its own page, not those of other sites", 0
        if seconds := self._rate_limit_seconds(scope):
            return 429, f"expected at most {MAX_REQUESTS_PER_MINUTE} requests a minute", seconds
        if scope["method"] == "POST" and self.num_active >= MAX_CONCURRENT_REQUESTS:
            message = f"{MAX_CONCURRENT_REQUESTS} requests wait for the model already; try again later"
            return 429, message, self.seconds_to_wait()
        return None

    def _is_own_host(self, host: str) -> bool:
        name = _without_port(host).lower()
        if "*" in self.hosts or name in self.hosts:
            return True
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return False

    def _rate_limit_seconds(self, scope: Scope) -> float:
        """Return the seconds for which a client above the rate limit must wait; counts this request."""
        client, now = (scope.get("client") or ("", 0))[0], time.monotonic()
        times = self.times.pop(client, deque())
        self.times[client] = times  # the most recent last
        if len(self.times) > _MAX_CLIENTS:
            del self.times[next(iter(self.times))]
        while times and now - times[0] > 60:
            times.popleft()
        if len(times) >= MAX_REQUESTS_PER_MINUTE:
            return 60 - (now - times[0])
        times.append(now)
        return 0


def _without_port(host: str) -> str:
    """``[::1]:80`` → ``::1``, ``localhost:80`` → ``localhost``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return send_with_headers
