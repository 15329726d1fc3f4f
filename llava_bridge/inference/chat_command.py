"""``llava-bridge chat``: a conversation with a LLaVA about an image, in the terminal.

llava-bridge chat runs/demo/llava/clips-tiny-s0 --image image.png
llava-bridge chat runs/demo/llava/clips-tiny-s0 --image image.png --prompt "Is there a dog?"
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

from PIL import Image

from clips.core.artifact import log_info
from clips.errors import UserError, check_at_least
from clips.safe_text import strip_control_chars
from llava_bridge.image_paths import open_image_or_member
from llava_bridge.model.llava_checks import resolve_llava_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Chat with a LLaVA about an image.

    Args:
        model: the LLaVA directory, or ``ORG/NAME`` on the Hub.
        image: an image file, or one in a shard (``shard.tar/000000003.png``); without one the chat has text only.
        prompt: a question to answer once; without it, questions are read until an empty line.
        max_new_tokens: maximum length of an answer.
    """

    model: str
    image: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        check_at_least(1, self, "max_new_tokens")


def run_chat(config: ChatConfig) -> None:
    """Answer the prompt, or each line of input, with the conversation so far.

    Ctrl-C ends an answer; at the prompt it ends the chat, as do an empty line and the end of input.

    Raises:
        UserError: no such directory or image; a prompt that cannot be answered.
    """
    images = [] if config.image is None else [open_image_or_member(config.image)]
    resolve_llava_dir(config.model)  # reported before torch is imported
    from llava_bridge.inference.generate import load_llava

    chat = _Chat(*load_llava(config.model), images, config.max_new_tokens)
    if config.prompt is not None:
        chat.answer(config.prompt)
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                if not (prompt := _read_prompt()):
                    return
                chat.answer(prompt, interruptible=True)
            except UserError as error:  # the next question may succeed
                log_info(str(error))
    log_info("")  # after the terminal's ^C


class _Chat:
    """The conversation so far, about the images."""

    def __init__(self, model: Any, processor: Any, images: list[Image.Image], max_new_tokens: int) -> None:
        self.model, self.processor, self.images = model, processor, images
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, Any]] = []

    def answer(self, prompt: str, *, interruptible: bool = False) -> None:
        """Print the answer to ``prompt`` while it is generated, and append both to the conversation unless it fails."""
        from llava_bridge.inference.generate import prepend_image_tokens
        from llava_bridge.inference.streaming import GenerationParams, generate_answers, prepare_prompt

        text = prompt if self.messages else prepend_image_tokens(prompt, self.images)
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []

        def on_text(piece: str) -> None:
            pieces.append(piece)
            print(strip_control_chars(piece), end="", flush=True)

        params = GenerationParams(max_new_tokens=self.max_new_tokens)
        try:
            prepared = prepare_prompt(self.model, self.processor, self.images, messages, params, on_text=on_text)
            generate_answers(self.model, self.processor, [prepared])
        except KeyboardInterrupt:
            if not interruptible:
                raise
        print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]


def _read_prompt() -> str:
    """The next line, edited with the arrow keys in a terminal; empty at the end of input.

    Raises:
        UserError: it is not UTF-8.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _decode(sys.stdin.buffer.readline())
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it
    try:
        return _decode(input("> ").encode("utf-8", "surrogateescape"))
    except EOFError:
        print()
        return ""


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"the question: expected UTF-8, got the byte {line[error.start]:#04x} in {line!r}") from None
