"""Validate a request for a chat completion: convert OpenAI's JSON to messages, images and decoding settings.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from clips.data.images import MAX_PIXELS, BadImageError, decode_image
from clips.jsontext import safe_json_loads
from llava_bridge.conversation import IMAGE
from llava_bridge.inference.generate import prepend_image_tokens
from llava_bridge.inference.streaming import GenerationParams

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_READ = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
_READ |= {"temperature", "top_p", "seed", "stop"}
# These do not affect the answer.
_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
_WITHOUT_EFFECT |= {"parallel_tool_calls", "tool_choice"}
# Other fields change the answer; they are accepted with a value that changes nothing (null, 0, false, empty).
_NEUTRAL: Mapping[str, Any] = {"n": 1, "response_format": {"type": "text"}, "modalities": ["text"]}
_MOST_STOPS, _LONGEST_STOP = 16, 1000  # each is searched for after each token
_MOST_PICTURES = 64
_NO_IMAGE = "< image>"
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


class RequestError(Exception):
    """An invalid request.

    Args:
        message: one line with the expected value.
        param: the invalid field.
        code: OpenAI's error code, if there is one.
        status: HTTP status.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A validated request.

    Args:
        model: its name; None if the request has none.
        messages: in the format of the bridge's chat, each image an ``<image>`` before its message's text.
        pictures: the images of all messages, in order.
        decoding: decoding settings.
        stream: send the answer while it is generated.
        usage: send token counts at the end of a stream.
    """

    model: str | None
    messages: list[dict[str, str]]
    pictures: list[Image.Image]
    decoding: GenerationParams
    stream: bool
    usage: bool


def parse_request(body: bytes, max_new_tokens: int) -> ChatRequest:
    """Validate and decode a request.

    Args:
        body: its JSON.
        max_new_tokens: if it does not limit the length of the answer.

    Raises:
        RequestError: it is not valid in OpenAI's API, or uses an unsupported feature.
    """
    try:
        given = safe_json_loads(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON ({error})") from None
    if not isinstance(given, dict):
        raise RequestError("the body: expected a JSON object")
    _refuse_unsupported(given)
    messages, images = _conversation(given.get("messages"))
    options = _field(given, "stream_options", dict, "an object") or {}
    return ChatRequest(
        model=_field(given, "model", str, "a name"),
        messages=messages,
        pictures=images,
        decoding=_decoding(given, max_new_tokens),
        stream=bool(_field(given, "stream", bool, "true or false")),
        usage=bool(options.get("include_usage")),
    )


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _READ or name in _WITHOUT_EFFECT or not value or value == _NEUTRAL.get(name):
            continue
        told = " ".join(name.split())[:60]
        raise RequestError(f"{told}: this server does not support it", param=told, code="unsupported_parameter")


def _decoding(given: Mapping[str, Any], max_new_tokens: int) -> GenerationParams:
    longest = "max_completion_tokens" if given.get("max_completion_tokens") is not None else "max_tokens"
    limit = _number(given, longest, 1, math.inf, whole=True)
    seed = _number(given, "seed", -(2**63), 2**63 - 1, whole=True)
    stop = given.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise RequestError("stop: expected a string or a list of strings", param="stop")
    if len(stops) > _MOST_STOPS or max(map(len, stops), default=0) > _LONGEST_STOP:
        raise RequestError(f"stop: expected at most {_MOST_STOPS} texts of {_LONGEST_STOP} characters", param="stop")
    return GenerationParams(
        max_new_tokens=int(limit) if limit is not None else max_new_tokens,
        temperature=_number(given, "temperature", 0, 2),
        top_p=_number(given, "top_p", 0, 1),
        seed=int(seed) if seed is not None else None,
        stop=stops,
    )


def _number(given: Mapping[str, Any], name: str, least: float, most: float, *, whole: bool = False) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "an integer" if whole else "a number"
        span = f"from {least} to {most}" if most < 2**32 else f"of {least} or more"
        raise RequestError(f"{name}: expected {kind} {span}, got {json.dumps(value)}", param=name)
    return value


def _field(given: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    value = given.get(name)
    if value is not None and not isinstance(value, kind):
        raise RequestError(f"{name}: expected {what}", param=name)
    return value


def _conversation(given: Any) -> tuple[list[dict[str, str]], list[Image.Image]]:
    if not isinstance(given, list) or not given:
        raise RequestError("messages: expected a list of messages", param="messages")
    messages: list[dict[str, str]] = []
    images: list[Image.Image] = []
    for number, message in enumerate(given):
        place = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{place}.role: expected one of {', '.join(_ROLES)}", param=f"{place}.role")
        earlier = len(images)
        text = _content(message.get("content"), f"{place}.content", images if role == "user" else None)
        said = text.replace(IMAGE, _NO_IMAGE)  # an image is a part of its own; text never contains one
        messages.append({"role": _ROLES[role], "content": prepend_image_tokens(said, images[earlier:])})
    if messages[-1]["role"] != "user":
        raise RequestError("messages: expected the last one to be the user's", param="messages")
    return messages, images


def _content(content: Any, place: str, pictures: list[Image.Image] | None) -> str:
    """Return the text of a message, its parts as paragraphs; its images are appended to ``pictures``, if allowed."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(f"{place}: expected a string or a list of parts", param=place)
    texts: list[str] = []
    for number, part in enumerate(content):
        at = f"{place}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and pictures is not None:
            pictures.append(_picture(part.get("image_url"), f"{at}.image_url"))
            _check_size(pictures)
        else:
            parts = "text, or image_url in the user's messages" if kind != "text" else "its text"
            raise RequestError(f"{at}: expected {parts}", param=at)
    return "\n".join(texts)


def _check_size(pictures: list[Image.Image]) -> None:
    """Reject more images than one request may hold in memory; small files may be large images."""
    if len(pictures) > _MOST_PICTURES or sum(image.width * image.height for image in pictures) > MAX_PIXELS:
        line = f"expected at most {_MOST_PICTURES} images, of {MAX_PIXELS / 1e6:g} megapixels together"
        raise RequestError(f"messages: {line}", param="messages", status=413)


def _picture(given: Any, place: str) -> Image.Image:
    """Decode the image in a data: URL; no URL or local file is ever fetched."""
    url = given.get("url") if isinstance(given, dict) else None
    place = f"{place}.url"
    if not isinstance(url, str):
        raise RequestError(f"{place}: expected a data: URL", param=place)
    head = _DATA_URL.match(url[:200])
    if head is None:
        line = "this server fetches nothing; expected the image itself as data:image/jpeg;base64,…"
        raise RequestError(f"{place}: {line}", param=place, code="invalid_image_url")
    try:
        return decode_image(base64.b64decode("".join(url[head.end() :].split()), validate=True))
    except binascii.Error as error:
        raise RequestError(f"{place}: not base64 ({error})", param=place, code="invalid_base64") from None
    except BadImageError as error:
        raise RequestError(f"{place}: {error}", param=place, code="invalid_image_format") from None
