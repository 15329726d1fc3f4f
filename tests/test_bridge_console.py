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
from PIL import Image

from clips.errors import UserError
from clips.sanitize import strip_control_chars
from llava_bridge import cli, load_llava
from llava_bridge.inference import chat_command, generate
from llava_bridge.inference import streaming as replying
from llava_bridge.inference.chat_command import ChatConfig, run_chat


@pytest.fixture
def llava(bridge_llava: Path) -> Path:
    return bridge_llava


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (40, 24), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def typed(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    given = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))


def test_the_talk_so_far_is_remembered(
    llava: Path, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "What color?\nSure?\n\nnever asked\n")
    run_chat(ChatConfig(model=str(llava), image=picture, max_new_tokens=5))
    model, processor = load_llava(llava)
    talk: list[dict[str, Any]] = []
    answers = []
    for question in ("<image>\nWhat color?", "Sure?"):
        talk.append({"role": "user", "content": question})
        pictures = [[Image.open(picture)]]
        answers += generate.answer_conversations(model, processor, pictures, [talk], max_new_tokens=5)
        talk.append({"role": "assistant", "content": answers[-1]})
    assert capsys.readouterr().out == "".join(f"{strip_control_chars(text)}\n" for text in answers)


def test_a_slip_does_not_end_the_talk(
    llava: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, f"an <image> that is not there\n{'much too long ' * 100}\nWhat?\n")
    run_chat(ChatConfig(model=str(llava), max_new_tokens=5))
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first == "a prompt has 0 pictures but not as many <image> marks"
    assert "expected fewer than the LLM's context of 128" in second
    model, processor = load_llava(llava)
    (answer,) = generate.answer(model, processor, [None], ["What?"], max_new_tokens=5)
    assert captured.out == f"{strip_control_chars(answer)}\n"


def test_what_is_not_utf_8_is_told_and_the_next_question_answered(
    llava: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "Welche Größe?\n".encode("latin-1") + b"What?\n")
    run_chat(ChatConfig(model=str(llava), max_new_tokens=5))
    captured = capsys.readouterr()
    assert captured.err == "the question: expected UTF-8, got the byte 0xf6 in b'Welche Gr\\xf6\\xdfe?\\n'\n"
    (answer,) = generate.answer(*load_llava(llava), [None], ["What?"], max_new_tokens=5)
    assert captured.out == f"{strip_control_chars(answer)}\n"


def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_talk(
    llava: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []

    def reply(model: Any, processor: Any, pictures: Any, messages: Any, decoding: Any, *, on_text: Any) -> None:
        seen.append(messages)
        on_text("It is a")
        raise KeyboardInterrupt

    def ask() -> str:
        if len(seen) == 2:
            raise KeyboardInterrupt
        return "What?"

    monkeypatch.setattr(replying, "stream_answer", reply)
    monkeypatch.setattr(chat_command, "_ask", ask)
    run_chat(ChatConfig(model=str(llava)))
    assert capsys.readouterr().out == "It is a\nIt is a\n"
    assert [message["content"] for message in seen[1]] == ["What?", "It is a", "What?"]
    with pytest.raises(KeyboardInterrupt):  # a single question: the command is interrupted
        run_chat(ChatConfig(model=str(llava), prompt="What?"))


def test_a_bad_picture_is_one_line_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name, what in (("none.png", "no such picture"), ("text.png", "undecodable picture"), ("", "no such picture")):
        monkeypatch.setattr("sys.argv", ["llava-bridge", "chat", "nowhere", "--image", f"{tmp_path}/{name}"])
        assert cli.main() == 2
        assert capsys.readouterr().err == f"llava-bridge: {Path(tmp_path / name)}: {what}\n"
    with pytest.raises(UserError, match="no such directory"):
        run_chat(ChatConfig(model=str(tmp_path / "nowhere")))


@pytest.mark.slow
def test_in_a_terminal(llava: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "llava_bridge", "chat", str(llava), "--max_new_tokens", "3"]
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
