"""The messages of a conversation, parsed from the two formats that datasets use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clips.data.formats.dataset_format import IMAGE, Turn

CONVERSATION_KEYS = ("messages", "conversations")
"""The column names that datasets use for a conversation."""
IMAGE_KEYS = ("images", "image")
"""The column names that datasets use for its images."""
EXPECTED_FORMAT = (
    "messages or conversations of from (human, gpt or system) and value, or of role (user, assistant or system) and "
    "content, which is text or a list of parts of type text or image"
)

_ROLES: dict[str, Any] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def text(value: Any) -> str:
    """``value``, checked to be a string. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {json.dumps(value, default=repr)}")
    return value


def parse_messages(messages: Any) -> list[Turn]:
    """The messages of a conversation in either format: from and value (LLaVA's) or role and content (transformers').

    Args:
        messages: a list of messages; or, as ``datasets`` stores sequences of objects, an object of lists.

    Raises:
        Exception: of any type, for neither format; the caller adds the location and `EXPECTED_FORMAT`.
    """
    if isinstance(messages, Mapping):
        messages = [dict(zip(messages, values, strict=True)) for values in zip(*messages.values(), strict=True)]
    if isinstance(messages, str):
        raise TypeError(f"expected a list of messages, got the string {messages[:40]!r}")
    return [_turn(message) for message in messages]


def _turn(message: Mapping[str, Any]) -> Turn:
    role, content = ("from", "value") if message.get("from") is not None else ("role", "content")
    return Turn(_ROLES[message[role]], _join_parts(message[content]))


def _join_parts(parts: Any) -> str:
    """Content as text, as the chat template writes it at inference."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        return text(parts)
    pieces = []
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"a part of type {part['type']!r}")
        pieces.append(f"{IMAGE}\n" if part["type"] == "image" else text(part["text"]))
    return "".join(pieces)


def drop_before_first_user_turn(turns: list[Turn]) -> list[Turn]:
    """Drop messages before the user's first one, except system messages.

    LLaVA's training drops them too (``preprocess_v1`` in ``train.py``): ShareGPT's conversations are split into pieces,
    some of which begin with an answer.
    """
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [turn for index, turn in enumerate(turns) if index >= first or turn.role == "system"]


def place_images(turns: list[Turn], count: int) -> list[Turn]:
    """Put ``count`` placeholders before the user's first message if the conversation has none."""
    if not count or any(IMAGE in turn.content for turn in turns):
        return turns
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns
    with_images = Turn("user", f"{IMAGE}\n" * count + turns[first].content)
    return [*turns[:first], with_images, *turns[first + 1 :]]


def place_image_first(turns: list[Turn]) -> list[Turn]:
    """Move the placeholder of a user message with one image to a line before the text.

    LLaVA's data have it before or after the text; its training (``preprocess_multimodal`` in ``train.py``) moves it.
    """
    return [_image_first(turn) if turn.role == "user" and turn.content.count(IMAGE) == 1 else turn for turn in turns]


def _image_first(turn: Turn) -> Turn:
    content = turn.content.replace(IMAGE, "").strip()
    return Turn(turn.role, f"{IMAGE}\n{content}" if content else IMAGE)
