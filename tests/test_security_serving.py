"""What the server rejects, and what it never reveals; the model is a stand-in."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from llava_bridge.inference.streaming import StreamedAnswer
from llava_bridge.serving import app as serving
from llava_bridge.serving import middleware, serve_command
from llava_bridge.serving import request as asked
from llava_bridge.serving.serve_command import ServeConfig

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


class Played:
    """A worker without a model; it answers when ``going`` is set."""

    def __init__(self) -> None:
        self.going, self.begun = asyncio.Event(), 0
        self.going.set()

    async def stream(self, asked: Any) -> AsyncIterator[Any]:
        self.begun += 1
        await self.going.wait()
        if asked.messages[-1]["content"] == "fail":
            raise RuntimeError("/root/secret/path.py does not work")
        yield StreamedAnswer(text="yes", prompt_tokens=3, new_tokens=1, finish="stop")

    def seconds_to_wait(self) -> float:
        return 6.2

    def close(self) -> None:
        pass


def site(worker: Played, base: str = "http://localhost:8000") -> httpx.AsyncClient:
    """A client of the application as `serve` makes it for this machine alone."""
    server = serving.Server(worker, "mine", 7)  # type: ignore[arg-type]
    app = server.app(serve_command._host_names(ServeConfig(model="d")))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base)


def ask(body: Any = None, **options: Any) -> httpx.Response:
    """The answer to one request."""

    async def asking() -> httpx.Response:
        async with site(Played()) as client:
            if isinstance(body, bytes):
                return await client.post(CHAT, content=body, headers=JSON | options.get("headers", {}))
            return await client.request(options.pop("method", "POST"), options.pop("path", CHAT), json=body, **options)

    return asyncio.run(asking())


def said(text: str = "hello") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def draw_image(*sizes: tuple[int, int]) -> dict[str, Any]:
    parts = []
    for size in sizes:
        stream = io.BytesIO()
        Image.new("1", size).save(stream, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": parts}]}


def test_by_default_only_this_machine_is_answered() -> None:
    assert ServeConfig(model="d").host == "127.0.0.1"
    assert serve_command._host_names(ServeConfig(model="d")) == ["localhost"]
    wide = serve_command._host_names(ServeConfig(model="d", host="0.0.0.0", allowed_hosts=("llava.example.org",)))
    assert {"localhost", "llava.example.org", "0.0.0.0"} < set(wide)
    assert "*" not in wide
    own, others = ("127.0.0.1", "::1", "localhost"), ("0.0.0.0", "::", "192.168.1.2", "example.org")
    assert all(map(serve_command._is_loopback, own))
    assert not any(map(serve_command._is_loopback, others))


def test_it_must_be_called_by_a_name_of_its_own() -> None:
    own = ("localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.7:8000", "LOCALHOST")
    others = ("rebound.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "")
    for hosts, status in ((own, 200), (others, 400)):
        for host in hosts:
            assert ask(said(), headers={"host": host}).status_code == status, host


@pytest.mark.parametrize("path", ["/", "/v1/models", CHAT])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9000"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_pages_of_other_sites_are_rejected(path: str, headers: dict[str, str]) -> None:
    answer = ask(said(), headers=headers, path=path, method="POST" if path == CHAT else "GET")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert answer.json()["error"]["message"].startswith(next(iter(headers)))


def test_its_own_page_links_and_programs_are_answered() -> None:
    own = {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert ask(said(), headers=own).json()["choices"][0]["message"]["content"] == "yes"
    assert ask(said()).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert ask(path="/", method="GET", headers=link).status_code == 200
    assert ask(path=CHAT, method="OPTIONS", headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/../../etc/passwd", "/v1/models/..%2f..%2fetc"])
def test_every_answer_says_what_a_browser_may_not_do(path: str) -> None:
    answer = ask(path=path, method="GET")
    for name, value in middleware._HEADERS.items():
        assert answer.headers[name] == value
    assert "server" not in answer.headers
    if path == "/":
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2]
        assert "http" not in policy
    elif path != "/v1/models":
        assert answer.status_code == 404


def test_a_failure_tells_nothing_of_this_machine() -> None:
    answer = ask(said("fail"))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server failed"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"messages":' * 50_000,
        b"\xff\xfe\x00",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"",
        b"null",
        b'{"messages": [{"role": {}, "content": 1}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b'{"max_tokens": 1e400, "messages": [{"role": "user", "content": "a"}]}',
    ],
    ids=range(9),
)
def test_a_broken_body_is_the_clients_fault(body: bytes) -> None:
    answer = ask(body)
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) < 300


def test_half_characters_are_answered() -> None:
    assert ask(b'{"messages": [{"role": "user", "content": "a \\ud800 b"}]}').status_code == 200
    refused = ask(b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}')
    assert refused.status_code == 404


def test_the_images_of_a_request_have_a_common_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MAX_PIXELS", 10_000)
    assert ask(draw_image((70, 70), (70, 70))).status_code == 200
    answer = ask(draw_image((70, 70), (70, 70), (70, 70)))
    assert answer.status_code == 413
    assert "0.01 megapixels together" in answer.json()["error"]["message"]
    assert ask(draw_image(*[(1, 1)] * 65)).status_code == 413
    assert ask({**said(), "stop": ["a"] * 17}).status_code == 400
    assert ask({**said(), "stop": "a" * 1001}).status_code == 400


def test_a_body_must_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_TIMEOUT", 0.05)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async def asking() -> httpx.Response:
        async with site(Played()) as client:
            return await client.post(CHAT, content=slowly(), headers=JSON)

    answer = asyncio.run(asking())
    assert answer.status_code == 408
    assert "within 0.05 seconds" in answer.json()["error"]["message"]


def test_the_queue_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_CONCURRENT_REQUESTS", 2)

    async def asking() -> tuple[list[int], httpx.Response, httpx.Response]:
        worker = Played()
        worker.going.clear()
        async with site(worker) as client:
            waiting = [asyncio.create_task(client.post(CHAT, json=said())) for _ in range(2)]
            while worker.begun < 2:
                await asyncio.sleep(0.01)
            refused = await asyncio.wait_for(client.post(CHAT, json=said()), 20)
            page = await client.get("/")
            worker.going.set()
            answers = [answer.status_code for answer in await asyncio.gather(*waiting)]
            answers.append((await client.post(CHAT, json=said())).status_code)
            return answers, refused, page

    answers, refused, page = asyncio.run(asking())
    assert answers == [200] * 3
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert page.status_code == 200


def test_a_client_may_not_ask_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_REQUESTS_PER_MINUTE", 3)
    monkeypatch.setattr(middleware, "_MAX_CLIENTS", 2)
    now = 100.0
    monkeypatch.setattr(middleware.time, "monotonic", lambda: now)
    watch = middleware.RequestGuardMiddleware(lambda *_: None, ["*"], lambda: 1.0)  # type: ignore[arg-type, return-value]

    def early(client: str) -> float:
        return watch._rate_limit_seconds({"client": (client, 1)})

    assert [early("a") for _ in range(3)] == [0, 0, 0]
    now += 20
    assert early("a") == 40  # until the first is a minute old
    assert early("b") == 0
    now += 41
    assert early("a") == 0
    assert early("c") == 0
    assert len(watch.times) == 2
