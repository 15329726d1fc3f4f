"""``llava-bridge serve``: transformers' own server gives the answers of ``chat``, to OpenAI's own client."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from bridge_world import make_llava, noise, run_cli
from PIL import Image

from clips.core.artifact import directory_hash
from clips.core.chat_client import ChatClient, data_url
from clips.errors import UserError
from llava_bridge.inference import generate
from llava_bridge.inference.serve_command import ServeConfig, make_app, run_serve
from llava_bridge.projectors import ProjectorConfig

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
RED = Image.new("RGB", (40, 24), "red")


def asked(*urls: str, text: str = "What color is it?") -> list[Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def llava(bridge_encoder: Path, bridge_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector that transformers has not."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    return make_llava(folder, bridge_encoder, bridge_llm, projector=ProjectorConfig(type="pixel_shuffle"))


@pytest.fixture(scope="module")
def client(llava: Path) -> Iterator[openai.OpenAI]:
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    with TestClient(make_app(str(llava)), "http://localhost") as http:
        yield openai.OpenAI(base_url="http://localhost/v1", api_key="any", max_retries=0, http_client=http)


def complete(client: openai.OpenAI, messages: list[Any], **settings: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 9, **settings})


@pytest.mark.parametrize("images", [[], [RED], noise((40, 24), (30, 50))], ids=["text", "one", "two"])
def test_an_answer_and_its_stream_are_those_of_chat(client: openai.OpenAI, llava: Path, images: list[Any]) -> None:
    (expected,) = generate.answer(*generate.load_llava(llava), [images], ["What color is it?"], 9)
    messages = asked(*(data_url(image, "PNG") for image in images))
    whole = complete(client, messages)
    assert whole.choices[0].message.content.strip() == expected
    assert whole.usage.completion_tokens == 9
    pieces = [chunk.choices[0].delta.content or "" for chunk in complete(client, messages, stream=True)]
    assert sum(map(bool, pieces)) > 1
    assert "".join(pieces).strip().rstrip("\N{REPLACEMENT CHARACTER}") == expected.rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_conversation_is_that_of_chat(client: openai.OpenAI, llava: Path) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat color is it?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
    ]
    images = [[RED]]
    (expected,) = generate.answer_conversations(*generate.load_llava(llava), images, [talk], max_new_tokens=9)
    served = complete(client, [talk[0], *asked(data_url(RED)), *talk[2:]])
    assert served.choices[0].message.content.strip() == expected


def test_a_temperature_samples_by_its_seed_and_none_is_greedy(client: openai.OpenAI) -> None:
    def text(**settings: Any) -> str:
        return str(complete(client, asked(data_url(RED)), **settings).choices[0].message.content)

    assert text(temperature=2, seed=1) == text(temperature=2, seed=1) != text(temperature=2, seed=2)
    assert text() == text(temperature=0) == text(temperature=2, seed=1, top_p=1e-6)


def test_the_model_is_listed_with_its_hash_and_no_other_is_answered(client: openai.OpenAI, llava: Path) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.owned_by) == ("tiny", "llava-bridge")
    assert listed.root == directory_hash(llava)  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt", messages=asked())
    assert "model: this server has 'tiny', got 'gpt'" in str(caught.value)


def test_a_client_names_files_of_this_machine_and_another_site_reaches_nothing(client, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    named, sent = (complete(client, asked(url)) for url in (str(tmp_path / "red.png"), data_url(RED, "PNG")))
    assert named.choices[0].message.content == sent.choices[0].message.content
    with pytest.raises(openai.BadRequestError):  # a name that another site resolves to this machine
        complete(client, asked(), extra_headers={"host": "rebound.example"})
    with pytest.raises(
        openai.BadRequestError, match="content-type"
    ):  # what a browser sends to another site without asking it
        complete(client, asked(), extra_headers={"content-type": "text/plain"})


def test_the_image_token_in_a_text_is_rejected(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\].content\[2\]: <image> stands for an image"):
        complete(client, asked(data_url(RED), text="Is <image> red?"))


def test_an_answer_may_fill_the_context_and_not_exceed_it(client: openai.OpenAI, llava: Path) -> None:
    context = generate.context_length(generate.load_llava(llava)[0])
    used = complete(client, asked(data_url(RED))).usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match=f"max_tokens: the conversation has {used} tokens.* context"):
        complete(client, asked(data_url(RED)), max_tokens=context - used + 1)
    with pytest.raises(openai.BadRequestError, match=r"messages: the conversation has .*fewer than"):
        complete(client, asked(text="long " * context))
    assert complete(client, asked(data_url(RED)), max_tokens=3).usage.completion_tokens == 3


def test_the_command_complains_in_one_line(bridge_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, told = run_cli("serve", str(bridge_llava), "--port", str(port))
        assert status == 2
        where = (
            f"llava-bridge: port: cannot listen at 127.0.0.1:{port} (Address already in use); expected a free port\n"
        )
        assert told == where
        with pytest.raises(UserError, match="cannot listen at"):  # nothing is downloaded before
            run_serve(ServeConfig(model="org/llava", port=port))
    with pytest.raises(UserError, match="no such directory"):
        run_serve(ServeConfig(model="nowhere", port=0))
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    with pytest.raises(UserError, match=r"^serve needs more packages: pip install 'transformers\[serving\]'$"):
        run_serve(ServeConfig(model=str(bridge_llava), port=0))


@pytest.mark.slow
@pytest.mark.parametrize("work", ["none", "answers", "streams"])
def test_the_command_serves_until_it_is_interrupted(bridge_llava: Path, work: str) -> None:
    pytest.importorskip("fastapi")
    words = [sys.executable, "-m", "llava_bridge", "serve", str(bridge_llava), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            lines = iter(process.stderr.readline, "")
            address = next(found[1] for line in lines if (found := re.match(r"(http://127\.0\.0\.1:\d+/v1) ", line)))
            assert ChatClient(urls=[address]).find_model(bridge_llava.name)["owned_by"] == "llava-bridge"
            body = {"messages": asked(), "max_tokens": 60, "stream": work == "streams"}
            request = urllib.request.Request(f"{address}/chat/completions", json.dumps(body).encode())
            request.add_header("content-type", "application/json")
            ends: queue.Queue[None] = queue.Queue()
            threads = [threading.Thread(target=_ask, args=(request, ends)) for _ in range(0 if work == "none" else 99)]
            for thread in threads:
                thread.start()
            if threads:
                ends.get()  # one is answered, the others wait for their turn
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            for thread in threads:
                thread.join()
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def _ask(request: urllib.request.Request, ends: queue.Queue[None]) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(request) as answer:
        answer.read()
    ends.put(None)
