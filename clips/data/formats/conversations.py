"""Conversations about images: their messages, LLaVA's JSON, and COCO-QA.

The text is read eagerly; images are read lazily.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from clips.data.formats.conversation_table import convert_or_read
from clips.data.formats.dataset_format import IMAGE, Conversation, Dataset, Location, Turn
from clips.data.lazy_images import FileImage, LazyImage
from clips.errors import UserError, unknown_name_error
from clips.model.loading import library_errors_as_user_errors
from clips.text_files import read_json_lines, read_json_list

CONVERSATION_KEYS = ("messages", "conversations", "texts")
"""The column names that datasets use for a conversation."""
EXPECTED_FORMAT = (
    "messages or conversations of from (human, gpt or system) and value, or of role (user, assistant or system) and "
    "content, which is text or a list of parts of type text or image; or texts of user and assistant"
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
    """The messages of a conversation: from and value (LLaVA's), role and content (transformers'), or pairs of user and
    assistant (FineVision's).

    Args:
        messages: a list of messages; or, as ``datasets`` stores sequences of objects, an object of lists.

    Raises:
        Exception: of any type, for none of them; the caller adds the location and `EXPECTED_FORMAT`.
    """
    if isinstance(messages, Mapping):
        messages = [dict(zip(messages, values, strict=True)) for values in zip(*messages.values(), strict=True)]
    if isinstance(messages, str):
        raise TypeError(f"expected a list of messages, got the string {messages[:40]!r}")
    return [turn for message in messages for turn in _turns(message)]


def _turns(message: Mapping[str, Any]) -> list[Turn]:
    if message.get("user") is not None:
        return [Turn("user", text(message["user"])), Turn("assistant", text(message["assistant"]))]
    role, content = ("from", "value") if message.get("from") is not None else ("role", "content")
    if message[role] not in _ROLES:
        raise ValueError(f"a message of the role {message[role]!r}")
    said = message[content]
    return [Turn(_ROLES[message[role]], said if isinstance(said, str) else _join_parts(said))]


def _join_parts(parts: Any) -> str:
    """Content as text, as the chat template writes it at inference."""
    if not isinstance(parts, Sequence):
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
    return [turn for turn in turns[:first] if turn.role == "system"] + turns[first:]


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
    moved = list(turns)
    for index, turn in enumerate(turns):
        if IMAGE in turn.content and turn.role == "user" and turn.content.count(IMAGE) == 1:
            content = turn.content.replace(IMAGE, "").strip()
            moved[index] = Turn(turn.role, f"{IMAGE}\n{content}" if content else IMAGE)
    return moved


SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Prompt suffix for questions with a one-word answer, the same as in lmms-eval's tasks."""
_HELD_OUT_ONE_IN = 5


def is_held_out(name: str) -> bool:
    """Whether the image with this file name belongs to COCO-QA's held-out fifth, which no training uses.

    Training and benchmark share this rule. It depends on the name alone: all questions about one image are in one
    split, and adding images moves none.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def is_llava(location: Location) -> bool:
    """``[{"conversations"}]``."""
    first = location.json[0] if isinstance(location.json, list) and location.json else None
    return isinstance(first, dict) and "conversations" in first


def read_llava(location: Location) -> Dataset[Conversation]:
    """LLaVA's JSON list: id, image or images (a reference, a list of them, or none), conversations (from, value)."""
    path, root = location.path, location.image_root()
    if path.suffix.lower() in _OTHER_FILES:
        raise UserError(f"{path}: expected LLaVA's JSON list; {_OTHER_FILES[path.suffix.lower()]}")
    expected = "expected conversations with from (human, gpt or system) and value, and image as a reference or a list"

    def read(prefix: str, root: Path) -> Iterator[Conversation]:
        try:
            for number, row in enumerate(read_json_list(path)):
                name = f"{prefix}{row.get('id', number) if isinstance(row, dict) else number}"
                yield read_record(name, expected, _parse_llava, row, root)
        except UserError as error:
            hint = f"; {_JSON_LINES} from a file that ends in .jsonl" if "Extra data" in str(error) else ""
            raise UserError(f"{error}{hint}") from None

    return Dataset(records=convert_or_read(path, "llava", root, read))


_JSON_LINES = "format conversations reads JSON lines"
_SOURCES = "LLaVA-NeXT's YAML lists sources: state each json_path in it as a source of its own"
_OTHER_FILES = {".jsonl": _JSON_LINES, ".jsonlines": _JSON_LINES, ".yaml": _SOURCES, ".yml": _SOURCES}


def _parse_llava(row: Mapping[str, Any], root: Path) -> tuple[list[LazyImage], list[Turn]]:
    reject_video(row)
    if "conversations" not in row:
        raise UserError(f"expected conversations, found {', '.join(row)}; format conversations also reads messages")
    image = row.get("image") or row.get("images")
    references = [] if image is None else [image] if isinstance(image, str) else image
    images: list[LazyImage] = [FileImage(root, text(each)) for each in references if each not in (None, "")]
    return images, place_image_first(drop_before_first_user_turn(parse_messages(row["conversations"])))


def reject_video(row: Mapping[str, Any]) -> None:
    """Raise UserError for a row with a video, whose frames no reader reads."""
    if key := next((key for key in ("video", "videos") if row.get(key)), None):
        raise UserError(f"{key}: expected images, got a video")


Parts = ParamSpec("Parts")


def read_record(
    name: str,
    expected: str,
    parse: Callable[Parts, tuple[Sequence[LazyImage], Sequence[Turn]]],
    *arguments: Parts.args,
    **options: Parts.kwargs,
) -> Conversation:
    """The conversation of images and turns that ``parse`` returns; one with a fault if it raises, see ``expected``."""
    try:
        with library_errors_as_user_errors(expected):
            return Conversation(name, *parse(*arguments, **options))
    except UserError as error:
        return Conversation(name, [], [], str(error))


def read_cocoqa(location: Location) -> Dataset[Conversation]:
    """Questions with one-word answers (COCO-QA), all questions about an image in one conversation."""
    path, root = location.file("questions.jsonl"), location.image_root("images")
    split = location.spec.split
    held_out = {"train": {False}, "held_out": {True}, "all": {False, True}}
    if split not in held_out:
        raise unknown_name_error(split, held_out, "split of cocoqa")
    conversations: dict[str, list[Turn]] = {}
    for _, row in read_json_lines(path, texts=("image", "question", "answer")):
        if is_held_out(row["image"]) in held_out[split]:
            turns = conversations.setdefault(row["image"], [])
            placeholder = "" if turns else f"{IMAGE}\n"
            turns.append(Turn("user", f"{placeholder}{row['question']}\n{SHORT_ANSWER}"))
            turns.append(Turn("assistant", row["answer"]))
    records = [Conversation(name, [FileImage(root, name)], turns) for name, turns in conversations.items()]
    return Dataset(records=records, split=split)
