"""``llava-bridge chat``: talk to a LLaVA about a picture in the terminal.

llava-bridge chat runs/demo/llava/clips-s0 --image picture.png
llava-bridge chat runs/demo/llava/clips-s0 --image picture.png --prompt "Is there a dog?"
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

from PIL import Image

from clips.core.artifact import log_info
from clips.errors import UserError
from clips.sanitize import strip_control_chars
from llava_bridge.image_paths import open_picture
from llava_bridge.inference.directory import resolve_llava_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a LLaVA about a picture.

    Args:
        model: the LLaVA directory, or ``ORG/NAME`` on the hub.
        image: a picture file, or one in a shard (``shard.tar/000000003.png``); without one the talk is about text
            alone.
        prompt: ask this once and print the answer; without it, ask again and again until an empty line.
        max_new_tokens: an answer is cut there.
    """

    model: str
    image: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")


def run_chat(config: ChatConfig) -> None:
    """Answer the prompt, or each line that is typed, the talk so far included.

    Ctrl-C ends an answer, not the talk; at the prompt it ends the talk, as an empty line and the end of input do.

    Raises:
        UserError: no such directory or picture; a prompt that cannot be answered.
    """
    pictures = [] if config.image is None else [open_picture(config.image)]
    resolve_llava_dir(config.model)  # told before torch is imported
    from llava_bridge.inference.generate import load_llava

    talk = _Talk(*load_llava(config.model), pictures, config.max_new_tokens)
    if config.prompt is not None:
        talk.say(config.prompt)
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                if not (prompt := _ask()):
                    return
                talk.say(prompt, interruptible=True)
            except UserError as error:  # the next question may do
                log_info(str(error))
    log_info("")  # after the terminal's ^C


class _Talk:
    """What was said so far, about the pictures."""

    def __init__(self, model: Any, processor: Any, pictures: list[Image.Image], max_new_tokens: int) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, Any]] = []

    def say(self, prompt: str, *, interruptible: bool = False) -> None:
        """Print the answer to ``prompt`` as it is written, and remember both; what fails is not remembered."""
        from llava_bridge.inference.generate import prepend_image_tokens
        from llava_bridge.inference.streaming import GenerationParams, stream_answer

        asked = {"role": "user", "content": prompt if self.messages else prepend_image_tokens(prompt, self.pictures)}
        pieces: list[str] = []

        def tell(piece: str) -> None:
            pieces.append(piece)
            print(strip_control_chars(piece), end="", flush=True)

        decoding = GenerationParams(max_new_tokens=self.max_new_tokens)
        try:
            stream_answer(self.model, self.processor, self.pictures, [*self.messages, asked], decoding, on_text=tell)
        except KeyboardInterrupt:
            if not interruptible:
                raise
        print(flush=True)
        self.messages += [asked, {"role": "assistant", "content": "".join(pieces)}]


def _ask() -> str:
    """The next line, edited with the arrow keys in a terminal; empty at the end of input.

    Raises:
        UserError: it is not UTF-8.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _text(sys.stdin.buffer.readline()).strip()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it
    try:
        return _text(input("> ").encode("utf-8", "surrogateescape")).strip()
    except EOFError:
        print()
        return ""


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the question: expected UTF-8, got the byte {line[error.start]:#04x} in {line!r}") from None
