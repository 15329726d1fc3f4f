"""Requests to chat servers: many at once, repeated where that helps, sent to other replicas, and one line otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving import DEAD, ChatServer, running

from clips.core import chat_client
from clips.core.chat_client import ChatClient, ChatServerError, check_urls, choices
from clips.errors import UserError


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"content": f"{request['n']}"}, "finish_reason": "stop"}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr(chat_client, "_FIRST_DELAY", 0.01)
    with running(ChatServer(echo)) as found:
        yield found


def test_requests_are_concurrent_up_to_the_limit(server: ChatServer) -> None:
    together = threading.Barrier(256, timeout=60)
    running, most, lock = 0, 0, threading.Lock()

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()  # breaks, and fails the test, if 256 are never there at once
        with lock:
            running -= 1
        return echo(request)

    server.reply = reply
    client = ChatClient(urls=[server.url], key="secret", requests_in_flight=256)
    pending = [client.submit({"n": number}) for number in range(512)]
    assert [choices(future.result(60)) for future in pending] == [[(f"{number}", "stop")] for number in range(512)]
    assert most == 256
    assert {(each["path"], each["key"]) for each in server.asked} == {("/v1/chat/completions", "Bearer secret")}


_BROKEN_OFF = {"choices": [{"message": {"content": "A dog. It"}, "finish_reason": "abort"}]}


@pytest.mark.parametrize("failure", [429, 503, None, _BROKEN_OFF])
def test_a_failed_request_is_repeated_until_it_is_answered(server: ChatServer, failure: Any, capsys) -> None:
    answers = iter([failure, failure, failure])
    server.reply = lambda request: next(answers, echo(request))
    client = ChatClient(urls=[server.url], retry_seconds=30)
    assert choices(client.submit({"n": 7}).result(60)) == [("7", "stop")]
    assert len(server.asked) == 4
    (line,) = capsys.readouterr().err.splitlines()  # although it failed three times
    assert line.startswith(server.url)
    assert line.endswith("; requests are repeated for up to 0.5 minutes")


def test_an_answer_must_be_complete_within_the_timeout(server: ChatServer) -> None:
    """Also if the server sends some bytes now and then, as proxies do to keep a connection."""
    ended = threading.Event()

    def send_spaces(request: dict[str, Any], handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not ended.wait(0.1):
            handler.wfile.write(b" ")

    server.stream = send_spaces
    try:
        with pytest.raises(ChatServerError, match=r"cannot be reached \(timeout\)$"):
            ChatClient(urls=[server.url], timeout=0.5).submit({"n": 0}).result(10)
    finally:
        ended.set()


def test_replicas_of_different_models_are_rejected(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.models = [{"id": "llava", "root": "0123"}, {"id": "other", "root": "/models/a"}]
    with running(ChatServer(echo, [{"id": "llava", "root": "4567"}, {"id": "other", "root": "/mnt/a"}])) as second:
        client = ChatClient(urls=[DEAD, server.url, second.url])
        with pytest.raises(
            UserError, match=r"^endpoint: the replicas have 0123 and 4567 as 'llava'; expected the same"
        ):
            client.find_model("llava")
        assert client.find_model("other")["root"] == "/models/a"
        assert "have /models/a and /mnt/a as 'other'; both must be the same model" in capsys.readouterr().err
        second.models = server.models
        assert client.identify_model("llava") == "llava of a server (0123)"


def test_a_dead_replica_costs_no_delay_and_the_others_share_the_requests(server: ChatServer) -> None:
    client = ChatClient(urls=[DEAD, server.url, f"{server.url}/chat/completions"])
    for replica in range(3):
        assert choices(client.submit({"n": replica}, replica=replica).result(60)) == [(f"{replica}", "stop")]
    assert len(server.asked) == 3
    with pytest.raises(ChatServerError, match=r"^http://host:port/v1 is not a valid URL \(Invalid port: 'port'\)$"):
        ChatClient(urls=["http://host:port/v1"], retry_seconds=600).submit({"n": 0}).result(60)
    dead = ChatClient(urls=[DEAD]).submit({"n": 0})
    with pytest.raises(ChatServerError, match=r"^http://127\.0\.0\.1:9/v1 cannot be reached \(connect\)$"):
        dead.result(60)


def test_a_rejected_request_is_not_repeated(server: ChatServer) -> None:
    client = ChatClient(urls=[server.url], retry_seconds=30)
    server.reply = lambda request: 400
    with pytest.raises(ChatServerError, match=r"answers 400 \(400\)") as raised:
        client.submit({"n": 0}).result(60)
    assert (raised.value.status, len(server.asked)) == (400, 1)
    for broken in (b"<html>", b"[1]"):
        server.reply = lambda request, body=broken: body  # type: ignore[misc]
        with pytest.raises(ChatServerError, match="does not answer as OpenAI's chat API does"):
            client.submit({"n": 0}).result(60)
    with pytest.raises(ChatServerError, match="a reply without choices"):
        choices({"choices": [{"text": "of the older API"}]})


def test_an_unavailable_server_is_given_up_after_the_time_for_retries(server: ChatServer) -> None:
    server.reply = lambda request: 503
    with pytest.raises(ChatServerError, match=r"answers 503") as raised:
        ChatClient(urls=[server.url], retry_seconds=3).submit({"n": 0}).result(60)
    assert raised.value.status == 503
    assert len(server.asked) > 2


def test_an_input_at_which_the_server_fails_is_given_up_while_others_are_answered(server: ChatServer) -> None:
    def reply(request: dict[str, Any]) -> dict[str, Any] | int:
        time.sleep(0.02)
        return 500 if request["n"] == 3 else echo(request)

    server.reply = reply
    client = ChatClient(urls=[server.url, server.url], requests_in_flight=8, retry_seconds=600)
    pending = [client.submit({"n": number}) for number in range(300)]
    with pytest.raises(ChatServerError, match=r"answers 500 \(500\)") as raised:
        pending[3].result(60)
    assert raised.value.by_input
    assert sum(request["n"] == 3 for request in server.asked) >= 2 * 5
    assert all(future.result(60) for number, future in enumerate(pending) if number != 3)
    client = ChatClient(urls=[server.url, DEAD], requests_in_flight=8, retry_seconds=0.5)  # DEAD might answer later
    pending = [client.submit({"n": number}) for number in range(100)]
    with pytest.raises(ChatServerError, match=r"cannot be reached") as raised:
        pending[3].result(60)
    assert not raised.value.by_input

    def fail_later(request: dict[str, Any]) -> dict[str, Any] | int:
        time.sleep(0.05 if request["n"] == 0 else 0.2)
        return 500 if request["n"] else echo(request)

    server.reply = fail_later  # all requests but the first, which is answered before they fail
    client = ChatClient(urls=[server.url], retry_seconds=0.5)
    first, *others = [client.submit({"n": number}) for number in range(20)]
    assert first.result(60)
    for future in others:
        with pytest.raises(ChatServerError, match=r"answers 500") as raised:
            future.result(60)
        assert not raised.value.by_input


def test_half_an_emoji_becomes_a_question_mark(server: ChatServer) -> None:
    server.reply = lambda request: {"choices": [{"message": {"content": "A \ud83d dog \U0001f600"}}]}
    assert choices(ChatClient(urls=[server.url]).submit({"n": 1}).result(60)) == [("A ? dog \U0001f600", None)]


def test_a_choice_without_text_is_an_error() -> None:
    assert choices({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}) == [("", "length")]
    parts = [{"type": "text", "text": "A dog."}]
    with pytest.raises(
        ChatServerError, match=r"as OpenAI's chat API does: \[\{'type': 'text', 'text': 'A dog\.'\}\] is no text"
    ):
        choices({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})


def test_urls_are_checked() -> None:
    check_urls("endpoint", ["http://127.0.0.1:8000/v1", "https://host/v1"])
    with pytest.raises(UserError, match=r"^endpoint: expected a URL such as http://.*, got 'localhost:8000'$"):
        check_urls("endpoint", ["localhost:8000"])
