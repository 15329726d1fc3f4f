"""``llava-bridge chat``: answers come as they are written; a slip does not end the talk."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bridge_world import run_cli
from PIL import Image

from clips.errors import UserError
from clips.safe_text import strip_control_chars
from llava_bridge import load_llava
from llava_bridge.inference import chat_command, generate
from llava_bridge.inference import streaming as replying
from llava_bridge.inference.chat_command import ChatConfig, run_chat


@pytest.fixture
def image_path(tmp_path: Path) -> str:
    Image.new("RGB", (40, 24), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


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


def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_conversation(bridge_llava, capsys, monkeypatch):
    seen: list[list[Any]] = []

    def reply(model: Any, processor: Any, pictures: Any, messages: Any, decoding: Any, *, on_text: Any) -> None:
        seen.append(messages)
        on_text("It is a")
        raise KeyboardInterrupt

    def ask() -> str:
        if len(seen) == 2:
            raise KeyboardInterrupt
        return "What?"

    monkeypatch.setattr(replying, "prepare_prompt", reply)
    monkeypatch.setattr(chat_command, "_read_prompt", ask)
    run_chat(ChatConfig(model=str(bridge_llava)))
    assert capsys.readouterr().out == "It is a\nIt is a\n"
    assert [message["content"] for message in seen[1]] == ["What?", "It is a", "What?"]
    with pytest.raises(KeyboardInterrupt):  # a single question: the command is interrupted
        run_chat(ChatConfig(model=str(bridge_llava), prompt="What?"))


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
