"""``llava-bridge chat``: answers come as they are written; a slip does not end the talk."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bridge_world import run_cli
from PIL import Image

from clips.errors import UserError
from clips.safe_text import strip_control_chars
from llava_bridge import load_llava
from llava_bridge.inference import chat_command, generate
from llava_bridge.inference.chat_command import ChatConfig, run_chat
from llava_bridge.model.build import make_conversation_encoder


@pytest.fixture
def image_path(tmp_path: Path) -> str:
    Image.new("RGB", (40, 24), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


UNTRAINED = "the projector is untrained, so that answers do not describe the image"


def typed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def test_the_conversation_is_remembered_and_an_error_does_not_end_it(bridge_llava, image_path, capsys, monkeypatch):
    slips = [b"an <image> that is not there", b"much too long " * 100, "Welche Gr\u00f6\u00dfe?".encode("latin-1")]
    typed(monkeypatch, b"\n".join([b"What color?", *slips, b"Sure?", b"", b"never asked", b""]))
    run_chat(ChatConfig(model=str(bridge_llava), image=image_path, max_new_tokens=5))
    model, processor = load_llava(bridge_llava)
    talk: list[dict[str, Any]] = []
    answers = []
    for question in ("<image>\nWhat color?", "Sure?"):
        talk.append({"role": "user", "content": question})
        pictures = [[Image.open(image_path)]]
        answers += generate.answer_conversations(model, processor, pictures, [talk], max_new_tokens=5)
        talk.append({"role": "assistant", "content": answers[-1]})
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{strip_control_chars(text)}\n" for text in answers)
    marks, long, coded = captured.err.splitlines()
    assert marks == "a prompt has 1 images but not as many <image> tokens"
    assert "expected fewer than the LLM's context of 128" in long
    assert coded == "the question: expected UTF-8, got the byte 0xf6 in b'Welche Gr\\xf6\\xdfe?\\n'"


def force(monkeypatch: pytest.MonkeyPatch, directory: Path, text: str, *, interrupted: bool = False) -> None:
    """Make the LLaVA write ``text`` to any prompt, and its end; or Ctrl-C is pressed there."""
    model, processor = load_llava(directory)
    end = None if interrupted else processor.tokenizer.eos_token_id
    tokens = itertools.cycle([*processor.tokenizer(text, add_special_tokens=False)["input_ids"], end])

    def head(states: torch.Tensor) -> torch.Tensor:
        if (token := next(tokens)) is None:
            raise KeyboardInterrupt
        return torch.nn.functional.one_hot(torch.tensor([[token]]), model.lm_head.out_features).float()

    monkeypatch.setattr(model.lm_head, "forward", head)
    monkeypatch.setattr(generate, "load_llava", lambda _: (model, processor))


def test_an_answer_is_printed_while_it_is_written(bridge_llava, monkeypatch):
    force(monkeypatch, bridge_llava, " a red shape \u00e9  color \n")
    pieces: list[str] = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=pieces.append, flush=lambda: None))
    run_chat(ChatConfig(model=str(bridge_llava), prompt="What?"))
    assert "".join(pieces) == "a red shape \u00e9  color\n"
    assert len(pieces) > 9
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert not any(piece.endswith(" ") for piece in pieces)  # it might be the last


def test_an_empty_answer_and_an_untrained_projector_are_stated(bridge_llava, tmp_path, capsys, monkeypatch):
    swapped = shutil.copytree(bridge_llava, tmp_path / "swapped")
    (swapped / "manifest.json").write_text('{"projector": "untrained"}')
    force(monkeypatch, swapped, "")
    run_chat(ChatConfig(model=str(swapped), prompt="What?"))
    assert capsys.readouterr() == ("\n", f"{swapped}: {UNTRAINED}\n(the model answered nothing)\n")


def test_one_process_of_a_launcher_says_that_the_projector_is_untrained(bridge_llava, tmp_path, capsys, monkeypatch):
    swapped = shutil.copytree(bridge_llava, tmp_path / "swapped")
    (swapped / "manifest.json").write_text('{"projector": "untrained"}')
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        load_llava(swapped, device="cpu")
    assert capsys.readouterr().err.count(UNTRAINED) == 1


def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_conversation(bridge_llava, capsys, monkeypatch):
    force(monkeypatch, bridge_llava, "It is a", interrupted=True)
    seen: list[list[Any]] = []
    encode = generate.encode_prompt
    monkeypatch.setattr(
        generate,
        "encode_prompt",
        lambda chat, messages, images: seen.append(messages) or encode(chat, messages, images),
    )

    def ask() -> str:
        if len(seen) == 2:
            raise KeyboardInterrupt
        return "What?"

    monkeypatch.setattr(chat_command, "read_prompt", ask)
    run_chat(ChatConfig(model=str(bridge_llava)))
    assert capsys.readouterr().out == "It is a\nIt is a\n"
    assert [message["content"] for message in seen[1]] == ["What?", "It is a", "What?"]
    with pytest.raises(KeyboardInterrupt):  # a single question: the command is interrupted
        run_chat(ChatConfig(model=str(bridge_llava), prompt="What?"))


def test_an_answer_ends_with_the_context(bridge_llava, capsys):
    run_chat(ChatConfig(model=str(bridge_llava), prompt="word " * 12, max_new_tokens=1000))
    model, processor = load_llava(bridge_llava)
    chat = make_conversation_encoder(model, processor)
    used = len(generate.encode_prompt(chat, [{"role": "user", "content": "word " * 12}], []))
    (expected,) = generate.answer(model, processor, [None], ["word " * 12], max_new_tokens=128 - used)
    assert capsys.readouterr().out == f"{strip_control_chars(expected)}\n"


def test_a_bad_image_is_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name, what in (("none.png", "no such image"), ("text.png", "undecodable image"), ("", "no such image")):
        told = f"llava-bridge: {Path(tmp_path / name)}: {what}\n"
        assert run_cli("chat", "nowhere", "--image", f"{tmp_path}/{name}") == (2, "", told)
    with pytest.raises(UserError, match="no such directory"):
        run_chat(ChatConfig(model=str(tmp_path / "nowhere")))


@pytest.mark.slow
def test_in_a_terminal(bridge_llava: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "llava_bridge", "chat", str(bridge_llava), "--max_new_tokens", "3"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""

    def wait_for(count: int) -> None:
        nonlocal seen
        deadline = time.monotonic() + 120
        while seen.count(b"> ") < count and time.monotonic() < deadline:
            seen += os.read(ours, 4096)

    wait_for(1)
    os.write(ours, b"What?\n")
    wait_for(2)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    if process.poll() is None:  # it came before readline waited for keys, and went unheard: press again
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(ours)
    assert seen.count(b"> ") == 2
    assert b"Traceback" not in seen
