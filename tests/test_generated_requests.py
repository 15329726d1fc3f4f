"""Random malformed requests to ``llava-bridge serve``: each is rejected with a sentence that names the field."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_world import make_llava
from generators import explore, sizes
from hypothesis import strategies as st
from image_files import image_files
from PIL import Image

from clips.core.chat_client import data_url
from llava_bridge.inference.serve_command import make_app

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
RED = data_url(Image.new("RGB", (8, 6), "red"), "PNG")
VALID: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": RED}}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
    ],
    "max_tokens": 1,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 3,
    "stream": False,
    "n": 1,
}
_LETTERS = st.text(st.characters(codec="utf-8"), max_size=20)
_ANY: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _LETTERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_LETTERS, inner, max_size=3),
    max_leaves=5,
)


def _not(*kinds: type) -> Any:
    """JSON values of other types; a bool is no number, and null stands for a field that is absent."""
    return _ANY.filter(lambda value: value is not None and type(value) not in kinds)


def _numbers(least: float, most: float) -> Any:
    outside = st.integers().filter(lambda value: not least <= value <= most)
    return outside | st.floats().filter(lambda value: not least <= value <= most)


_SURROGATE = st.builds(lambda text, code: text + chr(code), _LETTERS, st.integers(0xD800, 0xDFFF))
_TEXT, _IMAGE = {"type": "text", "text": "?"}, VALID["messages"][1]["content"][0]
WRONG: dict[tuple[str | int, ...], tuple[str, Any]] = {
    ("model",): ("model", _not(str) | _LETTERS.filter(lambda text: text != "tiny") | _SURROGATE),
    ("messages",): ("messages", st.none() | _not(list) | st.just([]) | st.just(VALID["messages"][:3])),
    ("messages", 0): ("messages[1]", _not(dict)),
    ("messages", 1, "role"): ("messages[2]", _ANY.filter(lambda role: role not in ("system", "user", "assistant"))),
    ("messages", 2, "content"): ("messages[3].content", st.just([_IMAGE]) | st.just("a <image>") | st.just(" ")),
    ("messages", 3, "content"): ("messages[4].content", st.none() | _not(str, list) | _SURROGATE | st.just([])),
    ("messages", 1, "content", 0): ("messages[2].content", _not(dict) | st.just({"type": "input_audio", "data": "x"})),
    ("messages", 1, "content", 0, "image_url"): ("messages[2].content[1]", st.none() | _not(dict) | st.just({})),
    ("messages", 1, "content", 0, "image_url", "url"): (
        "messages[2].content[1].image_url",
        _not(str)
        | _SURROGATE
        | _LETTERS.map(lambda text: f"data:image/png;base64,{text}")
        | st.integers(0, len(RED) // 2).map(lambda length: RED[:length])
        | st.sampled_from(["/dev/zero", "/nothing", "a" * 5000, "\0", ".", "http://127.0.0.1:9/x.png", "file:///x"]),
    ),
    ("messages", 1, "content", 1): (
        "messages[2].content",
        st.just(_TEXT | {"text": "<image>"}) | st.just(_IMAGE | _TEXT),
    ),
    ("max_tokens",): ("max_tokens", _numbers(1, 1500) | _not(int)),
    ("max_completion_tokens",): ("max_completion_tokens", _numbers(1, 1500) | _not(int)),
    ("temperature",): ("temperature", _numbers(0, 2) | _not(int, float)),
    ("top_p",): ("top_p", _numbers(5e-324, 1) | _not(int, float)),
    ("seed",): ("seed", _numbers(-(2**63), 2**63 - 1) | _not(int)),
    ("stream",): ("stream", _not(bool)),
    ("n",): ("n", _numbers(1, 1) | _not(int)),
    ("stop",): ("stop", _not()),
    ("logprobs",): ("logprobs", _not(bool) | st.just(True)),
    ("presence_penalty",): ("presence_penalty", _numbers(0, 0) | _not(int, float)),
    ("tools",): ("tools", _not()),
    ("generation_config",): ("generation_config", _not()),
}


@pytest.fixture(scope="module")
def http(bridge_encoder: Path, bridge_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client in this process, which raises what the server would answer with 500."""
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    folder = make_llava(tmp_path_factory.mktemp("served") / "tiny", bridge_encoder, bridge_llm)
    with TestClient(make_app(str(folder)), "http://localhost") as client:
        yield client


def post(http: Any, body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})


@sizes
def test_a_malformed_request_is_rejected_by_the_name_of_its_field(http: Any, examples: int) -> None:
    assert post(http, VALID).status_code == 200

    def check(data: st.DataObject) -> None:
        body = copy.deepcopy(VALID)
        *path, last = data.draw(st.sampled_from(sorted(WRONG, key=str)))
        field, values = WRONG[*path, last]
        holder: Any = body
        for part in path:
            holder = holder[part]
        way = data.draw(st.sampled_from(["wrong", "wrong", "wrong", "extra"]))
        if way == "extra" and isinstance(holder, dict):
            last = data.draw(_LETTERS.filter(lambda name: name.isidentifier()).map(lambda name: f"{name}_x"))
            field, values = str(last), _ANY
        holder[last] = data.draw(values)
        answer = post(http, body)
        assert answer.status_code == 400, (last, holder[last], answer.text)
        said = answer.json()["error"]["message"]
        assert field in said, said
        assert "\n" not in said
        assert len(said) < 1000

    explore(check, examples)


@sizes
def test_a_body_that_is_no_json_object_is_rejected(http: Any, examples: int) -> None:
    def check(data: st.DataObject) -> None:
        body = data.draw(st.binary(max_size=30) | _not(dict).map(lambda value: json.dumps(value).encode()))
        assert post(http, body).status_code == 400, body

    explore(check, examples)


@pytest.mark.parametrize("field", ["messages", "messages.role", "messages.content", "content.type", "image_url.url"])
def test_a_missing_field_is_named(http: Any, field: str) -> None:
    body = copy.deepcopy(VALID)
    holders = {"messages": body, "messages.": body["messages"][1], "content.": body["messages"][1]["content"][0]}
    holders["image_url."] = body["messages"][1]["content"][0]["image_url"]
    before, dot, name = field.rpartition(".")
    del holders[before + dot or "messages"][name]
    answer = post(http, body)
    assert answer.status_code == 400
    assert name in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "route",
    ["reset", "load_model", "v1/completions", "v1/responses", "v1/systemone", "v1/audio/transcriptions", "docs"],
)
def test_routes_that_no_page_names_are_closed(http: Any, route: str) -> None:
    for method in ("GET", "POST"):
        assert http.request(method, f"/{route}", json=VALID).status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405
    assert post(http, VALID).status_code == 200


@sizes
def test_an_image_is_read_or_named(http: Any, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.cli.serving.chat_completion.ChatCompletionHandler._non_streaming", _nothing)

    def check(data: st.DataObject) -> None:
        file, body = data.draw(image_files()), copy.deepcopy(VALID)
        url = "data:image/any;base64," + base64.b64encode(file.content).decode()
        body["messages"][1]["content"][0]["image_url"]["url"] = url
        answer = post(http, body)
        if file.shown is None:
            assert answer.status_code == 400
            assert "messages[2].content[1].image_url.url: not an 8-bit image" in answer.json()["error"]["message"]
        else:
            assert answer.status_code == 200, answer.text

    explore(check, examples)


async def _nothing(*_: Any, **__: Any) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({})
