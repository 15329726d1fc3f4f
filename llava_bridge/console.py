"""``llava-bridge chat``: talk to a LLaVA about a picture in the terminal.

llava-bridge chat runs/demo/llava/clips-s0 --image picture.png
llava-bridge chat runs/demo/llava/clips-s0 --image picture.png --prompt "Is there a dog?"
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from clips.data import open_image
from clips.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a LLaVA about a picture.

    Args:
        directory: the LLaVA directory.
        image: a picture file, or one in a shard (``shard.tar/000000003.png``); without one the talk is about text
            alone.
        prompt: ask this once and print the answer; without it, ask again and again until an empty line.
        max_new_tokens: an answer is cut there.
    """

    directory: str
    image: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")


def chat(config: ChatConfig) -> None:
    """Answer the prompt, or each line that is typed, the talk so far included.

    Raises:
        UserError: no such directory or picture.
    """
    picture = None
    if config.image is not None:
        path = Path(config.image)
        folder = path.parent.parent if path.parent.suffix == ".tar" else path.parent
        picture = open_image(folder, str(path.relative_to(folder)))
    from llava_bridge.inference import answer_conversations, load_llava, with_images

    model, processor = load_llava(config.directory)
    messages: list[dict[str, Any]] = []
    pictures = [] if picture is None else [picture]
    while True:
        prompt = config.prompt if config.prompt is not None else _ask()
        if not prompt:
            return
        text = with_images(prompt, pictures) if not messages else prompt
        messages.append({"role": "user", "content": text})
        (reply,) = answer_conversations(model, processor, [pictures], [messages], max_new_tokens=config.max_new_tokens)
        print(reply, flush=True)
        messages.append({"role": "assistant", "content": reply})
        if config.prompt is not None:
            return


def _ask() -> str:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
