"""``llava-bridge chat``: a conversation with a LLaVA about an image, in the terminal.

llava-bridge chat runs/demo/llava/clips-tiny-s0 --image image.png
llava-bridge chat runs/demo/llava/clips-tiny-s0 --image image.png --prompt "Is there a dog?"
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from clips.commandline.progress import log_if_slow
from clips.data import open_image
from clips.errors import UserError
from clips.ranges import Positive
from clips.safe_text import log_info, strip_control_chars
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
    max_new_tokens: Positive = 128


def run_chat(config: ChatConfig) -> None:
    """Answer the prompt, or each line of input, with the conversation so far.

    Ctrl-C ends an answer; at the prompt it ends the chat, as do an empty line and the end of input.

    Raises:
        UserError: no such directory or image; a prompt that cannot be answered.
    """
    images = []
    if config.image is not None:
        tar, mark, member = config.image.partition(".tar/")
        file = Path(f"{tar}.tar" if mark else config.image)
        images = [open_image(file.parent, f"{file.name}/{member}" if mark else file.name)]
    resolve_llava_dir(config.model)  # an error is reported before torch is imported
    with log_if_slow(f"reading {config.model}"):
        from llava_bridge.inference.generate import load_llava

        chat = _Chat(*load_llava(config.model), images, config.max_new_tokens)
    if config.prompt is not None:
        chat.answer(config.prompt)
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                if not (prompt := read_prompt()):
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
        from llava_bridge.inference import generate
        from llava_bridge.model.build import make_conversation_encoder

        text = prompt if self.messages else generate.prepend_image_tokens(prompt, self.images)
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = generate.encode_prompt(make_conversation_encoder(self.model, self.processor), messages, self.images)
        context = generate.context_length(self.model)
        if len(ids) >= context:
            raise UserError(
                f"the conversation has {len(ids)} tokens, images included; expected fewer than the LLM's context of "
                f"{context}"
            )
        printer = _Printer(self.processor.tokenizer)
        try:
            self.model.generate(
                **generate.prepare_generate_inputs(self.model, self.processor, [ids], self.images),
                max_new_tokens=min(self.max_new_tokens, context - len(ids)),
                num_beams=1,  # several cannot be printed while they are searched
                streamer=printer,
            )
        except KeyboardInterrupt:
            if not interruptible:
                raise
        else:
            if not printer.text:
                log_info("(the model answered nothing)")
        print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": printer.text}]


class _Printer:
    """Prints an answer without whitespace around it, as ``streamer`` of transformers' ``generate``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.text = tokenizer, ""
        self.tokens: list[int] | None = None  # before the prompt

    def put(self, tokens: Any) -> None:
        """Print what is final: neither an incomplete character nor trailing whitespace is."""
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += tokens.tolist()
        self._print(self._decode().rstrip("\N{REPLACEMENT CHARACTER}").rstrip())

    def end(self) -> None:
        """Print the rest."""
        self._print(self._decode())

    def _decode(self) -> str:
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True)).strip()

    def _print(self, text: str) -> None:
        new = text[len(self.text) :]
        self.text += new
        print(strip_control_chars(new), end="", flush=True)


def read_prompt() -> str:
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
