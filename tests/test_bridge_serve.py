"""``llava-bridge serve`` speaks OpenAI's chat API, as OpenAI's own client does."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bridge_world import run_cli, save
from PIL import Image
from serving import serve_app

from clips.errors import UserError
from llava_bridge.inference import generate
from llava_bridge.serving import worker
from llava_bridge.serving.serve_command import ServeConfig, run_serve

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def data_url(color: str = "red", kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (40, 24), color).save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def asked(text: str = "What color is it?", url: str | None = None) -> list[Any]:
    picture = {"type": "image_url", "image_url": {"url": url or data_url()}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, picture]}]


@pytest.fixture(scope="module")
def llava(bridge_llava: Path) -> tuple[Any, Any]:
    return generate.load_llava(bridge_llava)


@pytest.fixture(scope="module")
def address(llava: tuple[Any, Any]) -> Iterator[str]:
    from llava_bridge.serving.app import Server

    yield from serve_app(Server(worker.GenerationWorker(*llava), "tiny", max_new_tokens=7).app(["127.0.0.1"]))


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, messages: list[Any] | None = None, **settings: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages or asked(), **settings)


def test_an_answer_is_that_of_the_bridge(client: openai.OpenAI, llava: tuple[Any, Any]) -> None:
    made = complete(client, max_tokens=9)
    (expected,) = generate.answer(*llava, [Image.new("RGB", (40, 24), "red")], ["What color is it?"], 9)
    assert made.choices[0].message.content == expected
    assert made.choices[0].finish_reason == "length"
    assert made.usage.completion_tokens == 9
    assert made.usage.prompt_tokens == made.usage.total_tokens - 9 > 16
    assert complete(client).usage.completion_tokens == 7
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "llava-bridge"
    openai.types.chat.ChatCompletion.model_validate(made.model_dump(), strict=True)


def test_a_conversation_with_two_images(client: openai.OpenAI, llava: tuple[Any, Any]) -> None:
    """Words are never an image: those of a question about LLaVA's own prompts, for instance, in what anybody says."""
    talk = [
        {"role": "system", "content": "No <image>."},
        *asked("What does <image> mean?"),
        {"role": "assistant", "content": "An <image>."},
        *asked("Second?", data_url("blue", "WEBP")),
    ]
    pictures = [[Image.new("RGB", (40, 24), color) for color in ("red", "blue")]]
    said = ["No < image>.", "<image>\nWhat does < image> mean?", "An < image>.", "<image>\nSecond?"]
    flat = [{"role": message["role"], "content": words} for message, words in zip(talk, said, strict=True)]
    (expected,) = generate.answer_conversations(*llava, pictures, [flat], max_new_tokens=7)
    assert complete(client, talk).choices[0].message.content == expected
    text = [{"role": "user", "content": "What does <image> mean?"}]
    (expected,) = generate.answer(*llava, [None], ["What does < image> mean?"], 7)
    assert complete(client, text).choices[0].message.content == expected
    tokenizer = llava[1].tokenizer
    assert tokenizer.convert_tokens_to_ids("<image>") not in tokenizer("< image>")["input_ids"]


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=12)
    chunks = list(complete(client, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    texts = [delta.content for delta in deltas if delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(texts) > 1
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in complete(client, stream=True))


def test_decoding_settings_reach_the_model(client: openai.OpenAI) -> None:
    whole = complete(client).choices[0].message.content

    def text(**settings: Any) -> str:
        return complete(client, **settings).choices[0].message.content

    assert text(temperature=0, n=1, presence_penalty=0, user="me", logprobs=False) == whole
    assert text(temperature=2, seed=1) == text(temperature=2, seed=1) != text(temperature=2, seed=2)
    assert text(temperature=2, seed=1, top_p=1e-6) == whole
    cut = next(start for start in range(1, len(whole) - 1) if whole.find(whole[start : start + 2]) == start)
    stopped = complete(client, stop=[whole[cut : cut + 2], "zzz"])
    assert stopped.choices[0].message.content == whole[:cut].rstrip()
    assert stopped.choices[0].finish_reason == "stop"
    assert complete(client, max_completion_tokens=3).usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"messages": asked(url="http://127.0.0.1/a.png")}, "messages[0].content[1].image_url.url", "fetches nothing"),
        ({"messages": asked(url="https://example.org/a.png")}, "messages[0].content[1].image_url.url", "data:image"),
        ({"messages": asked(url="file:///etc/passwd")}, "messages[0].content[1].image_url.url", "fetches nothing"),
        ({"messages": asked(url="/etc/passwd")}, "messages[0].content[1].image_url.url", "fetches nothing"),
        ({"messages": asked(url="data:image/png;base64,!!")}, "messages[0].content[1].image_url.url", "not base64"),
        ({"messages": asked(url="data:;base64,AAAA")}, "messages[0].content[1].image_url.url", "undecodable image"),
        ({"messages": []}, "messages", "expected a list of messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "expected one of system, developer"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]", "image_url"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "the last one to be the user's"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages", "the LLM's context of 128"),
        ({"temperature": 3}, "temperature", "expected a number from 0 to 2, got 3"),
        ({"max_tokens": 0}, "max_tokens", "expected an integer of 1 or more, got 0"),
        ({"max_tokens": True}, "max_tokens", "expected an integer"),
        ({"stop": [1]}, "stop", "a string or a list"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"n": 2}, "n", "does not support"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support"),
        ({"model": "gpt"}, "model", "expected 'tiny'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_error_has_the_form_of_openai(address, change, param, message, stream):
    body = {"model": "tiny", "messages": asked(), "stream": stream, "max_tokens": 2, **change}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]


def test_mistakes_of_another_kind(address: str, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{address}/v1/chat/completions"
    assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415  # a form elsewhere
    assert httpx.get(url).json()["error"]["message"] == "Method Not Allowed"
    assert httpx.get(f"{address}/v1/nothing").status_code == 404
    assert httpx.get(f"{address}/v1/models", headers={"host": "rebound.example"}).status_code == 400
    monkeypatch.setattr("llava_bridge.serving.app.MAX_REQUEST_BYTES", 100)
    with pytest.raises(openai.APIStatusError, match="at most") as caught:
        complete(client)
    assert caught.value.status_code == 413


def test_a_failure_of_the_server_is_reported(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def replies(model: Any, processor: Any, prompts: Any) -> None:
        for prompt in prompts:
            prompt.on_text("It is")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(worker, "generate_answers", replies)
    with pytest.raises(openai.InternalServerError, match="its terminal shows the error"):
        complete(client)
    stream = complete(client, stream=True)
    with pytest.raises(openai.APIError, match="its terminal shows the error"):
        assert [chunk.choices[0].delta.content for chunk in stream] == ["", "It is"]


def slowed(monkeypatch: pytest.MonkeyPatch, llava: tuple[Any, Any], seconds: float) -> list[float]:
    """Make each token take so long; the times at which they were begun."""
    times: list[float] = []

    def forward(states: Any) -> Any:
        times.append(time.monotonic())
        time.sleep(seconds)
        return real(states)

    real = llava[0].lm_head.forward
    monkeypatch.setattr(llava[0].lm_head, "forward", forward)
    return times


def batches(monkeypatch: pytest.MonkeyPatch, most: int = 100) -> list[int]:
    """The sizes of the batches that are answered; more than ``most`` at once are too much for the memory."""
    sizes: list[int] = []
    real = worker.generate_answers

    def replies(model: Any, processor: Any, prompts: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise RuntimeError("out of memory")
        return real(model, processor, prompts)

    monkeypatch.setattr(worker, "generate_answers", replies)
    return sizes


QUESTIONS: list[dict[str, Any]] = [
    {"messages": asked("What color is it?"), "max_tokens": 9},
    {"messages": asked("And a longer question, please?", data_url("blue")), "max_tokens": 4, "stream": True},
    {"messages": [{"role": "user", "content": "Nothing to see?"}], "max_tokens": 12},
    {"messages": asked("?", data_url("green")), "max_tokens": 9, "temperature": 0},
    {"messages": asked("?", data_url("green")), "max_tokens": 9, "temperature": 1.5, "seed": 3},
    {"messages": [{"role": "user", "content": "word " * 300}]},
    {"messages": asked("What color is it?"), "max_tokens": 9, "stop": ["e", "o"]},
]


def outcome(address: str, body: dict[str, Any]) -> Any:
    """Everything that an answer says but its name and time."""
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    if body.get("stream"):
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [event["choices"][0] for event in events]
        return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]
    if answer.status_code != 200:
        return answer.status_code, answer.json()
    return answer.json()["choices"], answer.json()["usage"]


@pytest.mark.parametrize("most", [100, 1], ids=["together", "too much memory"])
def test_requests_that_wait_are_answered_together_each_as_if_it_were_alone(address, llava, monkeypatch, most):
    alone = [outcome(address, body) for body in QUESTIONS]
    sizes, times = batches(monkeypatch, most), slowed(monkeypatch, llava, 0.02)
    with ThreadPoolExecutor(len(QUESTIONS) + 1) as pool:
        first = pool.submit(outcome, address, {"messages": asked(), "max_tokens": 60})
        while not times:
            time.sleep(0.01)
        together = list(pool.map(lambda body: outcome(address, body), QUESTIONS))
        first.result()
    assert together == alone
    assert sizes[0] == 1
    answered = sizes.count(1) if most == 1 else sum(sizes)
    assert answered == len(QUESTIONS)  # with the first, without the one that is too long
    assert max(sizes) > (1 if most == 1 else 2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_ends_its_answer(address, llava, monkeypatch, stream):
    times = slowed(monkeypatch, llava, 0.05)
    body = {"messages": asked(), "max_tokens": 90, "stream": stream}
    with httpx.Client(timeout=0.6 if not stream else 10) as leaving:
        if stream:
            with leaving.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
                assert json.loads(next(answer.iter_lines()).removeprefix("data: "))["choices"]
        else:
            with pytest.raises(httpx.ReadTimeout):
                leaving.post(f"{address}/v1/chat/completions", json=body)
    after = httpx.post(f"{address}/v1/chat/completions", json={**body, "max_tokens": 1, "stream": False}, timeout=30)
    assert after.json()["usage"]["completion_tokens"] == 1
    assert 1 < len(times) < 60  # of 91


def test_a_client_that_goes_away_while_it_waits_is_never_answered(address, llava, monkeypatch):
    times = slowed(monkeypatch, llava, 0.02)
    body = {"messages": asked(), "max_tokens": 50}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=30)
        while not times:
            time.sleep(0.01)
        for stream in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/chat/completions", json={**body, "stream": stream}, timeout=0.2)
        assert first.result().json()["usage"]["completion_tokens"] == 50
    httpx.post(f"{address}/v1/chat/completions", json={**body, "max_tokens": 1}, timeout=30)
    assert len(times) == 51


def test_the_command_complains_in_one_line(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = address.rpartition(":")[2]
    (tmp_path / "config.json").write_text('{"model_type": "llava", "text_config": {}}')
    (tmp_path / "model.safetensors").touch()
    status, _, told = run_cli("serve", str(tmp_path), "--port", port)
    assert status == 2
    taken = f"llava-bridge: host, port: cannot listen at 127.0.0.1:{port} (Address already in use); expected a free"
    assert told.startswith(taken)
    with pytest.raises(UserError, match="no such directory"):
        run_serve(ServeConfig(model="nowhere", port=0))
    with pytest.raises(UserError, match="port: expected 0 to 65535"):
        ServeConfig(model="d", port=70000)
    monkeypatch.delitem(sys.modules, "llava_bridge.serving.app")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(UserError, match=r"^serve needs starlette\S*: pip install 'clips-suite\[serve\]'$"):
        run_serve(ServeConfig(model=str(tmp_path)))


def test_nothing_is_downloaded_before_the_port_is_bound(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match="cannot listen at"):
        run_serve(ServeConfig(model="org/llava", port=int(address.rpartition(":")[2])))
    assert asked == []
    with pytest.raises(UserError, match="org/llava is not a directory; org/llava: cannot be downloaded from the Hub"):
        run_serve(ServeConfig(model="org/llava", port=0))
    assert asked == ["org/llava"]


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(llava: tuple[Any, Any], tmp_path: Path) -> None:
    save(tmp_path / "mine", *llava)
    words = [sys.executable, "-m", "llava_bridge", "serve", str(tmp_path / "mine"), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            greeting = process.stderr.readline()
            found = re.fullmatch(r"mine: page (http://127.0.0.1:\d+)/, API \1/v1; Ctrl-C ends\n", greeting)
            assert found, greeting
            page = httpx.get(found[1])
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert httpx.get(f"{found[1]}/v1/models").json()["data"][0]["id"] == "mine"
            body = {"messages": asked(), "stream": True}
            with httpx.stream("POST", f"{found[1]}/v1/chat/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
