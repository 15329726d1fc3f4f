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

from clips.data.images import MAX_PIXELS, InvalidImageError, decode_image
from clips.text_files import safe_json_loads
from llava_bridge.conversation import IMAGE
from llava_bridge.inference.generate import prepend_image_tokens
from llava_bridge.inference.streaming import GenerationParams

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SUPPORTED = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
_SUPPORTED |= {"temperature", "top_p", "seed", "stop"}
# Fields that do not affect the answer.
_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
_WITHOUT_EFFECT |= {"parallel_tool_calls", "tool_choice"}
# Other fields change the answer; they are accepted only with a neutral value: null, 0, false, empty, or these.
_NEUTRAL: Mapping[str, Any] = {"n": 1, "response_format": {"type": "text"}, "modalities": ["text"]}
_MAX_STOPS, _MAX_STOP_LENGTH = 16, 1000  # each is searched for after each token
_MAX_IMAGES = 64
_ESCAPED_IMAGE = "< image>"
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
        images: the images of all messages, in order.
        params: generation settings.
        stream: send the answer while it is generated.
        usage: send token counts at the end of a stream.
    """

    model: str | None
    messages: list[dict[str, str]]
    images: list[Image.Image]
    params: GenerationParams
    stream: bool
    usage: bool


def parse_request(body: bytes, max_new_tokens: int) -> ChatRequest:
    """Validate and decode a request.

    Args:
        body: its JSON.
        max_new_tokens: maximum length of the answer if the request sets none.

    Raises:
        RequestError: it is not valid in OpenAI's API, or uses an unsupported feature.
    """
    try:
        fields = safe_json_loads(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise RequestError("the body: expected a JSON object")
    _reject_unsupported(fields)
    messages, images = _parse_messages(fields.get("messages"))
    options = _field(fields, "stream_options", dict, "an object") or {}
    return ChatRequest(
        model=_field(fields, "model", str, "a name"),
        messages=messages,
        images=images,
        params=_parse_params(fields, max_new_tokens),
        stream=bool(_field(fields, "stream", bool, "true or false")),
        usage=bool(options.get("include_usage")),
    )


def _reject_unsupported(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _SUPPORTED or name in _WITHOUT_EFFECT or not value or value == _NEUTRAL.get(name):
            continue
        short = " ".join(name.split())[:60]
        raise RequestError(f"{short}: this server does not support it", param=short, code="unsupported_parameter")


def _parse_params(fields: Mapping[str, Any], max_new_tokens: int) -> GenerationParams:
    limit_field = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
    limit = _number(fields, limit_field, 1, math.inf, integer=True)
    seed = _number(fields, "seed", -(2**63), 2**63 - 1, integer=True)
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise RequestError("stop: expected a string or a list of strings", param="stop")
    if len(stops) > _MAX_STOPS or max(map(len, stops), default=0) > _MAX_STOP_LENGTH:
        raise RequestError(f"stop: expected at most {_MAX_STOPS} texts of {_MAX_STOP_LENGTH} characters", param="stop")
    return GenerationParams(
        max_new_tokens=int(limit) if limit is not None else max_new_tokens,
        temperature=_number(fields, "temperature", 0, 2),
        top_p=_number(fields, "top_p", 0, 1),
        seed=int(seed) if seed is not None else None,
        stop=stops,
    )


def _number(
    fields: Mapping[str, Any], name: str, minimum: float, maximum: float, *, integer: bool = False
) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    types = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, types) or not minimum <= value <= maximum:
        expected = "an integer" if integer else "a number"
        span = f"from {minimum} to {maximum}" if maximum < 2**32 else f"of {minimum} or more"
        raise RequestError(f"{name}: expected {expected} {span}, got {json.dumps(value)}", param=name)
    return value


def _field(fields: Mapping[str, Any], name: str, field_type: type, expected: str) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, field_type):
        raise RequestError(f"{name}: expected {expected}", param=name)
    return value


def _parse_messages(given: Any) -> tuple[list[dict[str, str]], list[Image.Image]]:
    if not isinstance(given, list) or not given:
        raise RequestError("messages: expected a list of messages", param="messages")
    messages: list[dict[str, str]] = []
    images: list[Image.Image] = []
    for number, message in enumerate(given):
        field = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{field}.role: expected one of {', '.join(_ROLES)}", param=f"{field}.role")
        num_before = len(images)
        text = _parse_content(message.get("content"), f"{field}.content", images if role == "user" else None)
        text = text.replace(IMAGE, _ESCAPED_IMAGE)  # only image parts become image tokens
        messages.append({"role": _ROLES[role], "content": prepend_image_tokens(text, images[num_before:])})
    if messages[-1]["role"] != "user":
        raise RequestError("messages: expected the last one to be the user's", param="messages")
    return messages, images


def _parse_content(content: Any, field: str, images: list[Image.Image] | None) -> str:
    """Return the text of a message, its parts as paragraphs; its images are appended to ``images``, if allowed."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(f"{field}: expected a string or a list of parts", param=field)
    texts: list[str] = []
    for number, part in enumerate(content):
        part_field = f"{field}[{number}]"
        part_type = part.get("type") if isinstance(part, dict) else None
        if part_type == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part_type == "image_url" and images is not None:
            images.append(_decode_data_url(part.get("image_url"), f"{part_field}.image_url"))
            _check_size(images)
        else:
            expected = "text, or image_url in the user's messages" if part_type != "text" else "its text"
            raise RequestError(f"{part_field}: expected {expected}", param=part_field)
    return "\n".join(texts)


def _check_size(images: list[Image.Image]) -> None:
    """Reject more images than one request may hold in memory; small files may be large images."""
    if len(images) > _MAX_IMAGES or sum(image.width * image.height for image in images) > MAX_PIXELS:
        expected = f"expected at most {_MAX_IMAGES} images, of {MAX_PIXELS / 1e6:g} megapixels together"
        raise RequestError(f"messages: {expected}", param="messages", status=413)


def _decode_data_url(image_url: Any, field: str) -> Image.Image:
    """Decode the image in a data: URL; other URLs and local files are never read."""
    url = image_url.get("url") if isinstance(image_url, dict) else None
    field = f"{field}.url"
    if not isinstance(url, str):
        raise RequestError(f"{field}: expected a data: URL", param=field)
    header = _DATA_URL.match(url[:200])
    if header is None:
        expected = "this server fetches nothing; expected the image itself as data:image/jpeg;base64,…"
        raise RequestError(f"{field}: {expected}", param=field, code="invalid_image_url")
    try:
        return decode_image(base64.b64decode("".join(url[header.end() :].split()), validate=True))
    except binascii.Error as error:
        raise RequestError(f"{field}: not base64 ({error})", param=field, code="invalid_base64") from None
    except InvalidImageError as error:
        raise RequestError(f"{field}: {error}", param=field, code="invalid_image_format") from None
