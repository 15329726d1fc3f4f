"""`llava-bridge data inspect`: what is supervised is marked, faults are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clips.errors import UserError
from clips.typed_data import from_plain
from llava_bridge.data.inspect_command import InspectConversationsConfig, run_inspect


def test_samples_are_printed_as_the_llm_sees_them(bridge_talk, bridge_llm, capsys):
    fields = {"path": str(bridge_talk / "talk.json"), "llm": str(bridge_llm), "image_tokens": 4}
    run_inspect(InspectConversationsConfig(**fields, num_shown=2, num_samples=8))  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert re.search(r"<image> × 4\nWhat color is it\?<\|assistant\|>« red</s>»<\|user\|> Sure\?", printed)
    assert "16 in the source, 8 read, 0 invalid" in printed
    assert "images      8 with 1" in printed
    supervised = re.search(r"supervised  (\d+\.\d)% of them", printed)
    assert supervised
    assert 5 < float(supervised[1]) < 60


def test_unusable_samples_are_counted_and_named(bridge_talk, bridge_llm, tmp_path, capsys):
    rows = json.loads((bridge_talk / "talk.json").read_text())
    rows[0]["image"], rows[3]["image"] = "gone.png", "away.png"
    rows[1]["conversations"] = rows[1]["conversations"][:1]
    rows[2]["conversations"][1]["value"] = "red " * 200
    rows[4]["conversations"][3]["value"] = " \n"
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(rows))
    fields = {"path": str(path), "image_root": str(bridge_talk), "llm": str(bridge_llm), "image_tokens": 4}
    run_inspect(InspectConversationsConfig(**fields, max_length=60))  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert re.search(r"invalid     2 × no such image .*\(talk\.json 0, talk\.json 3\)\n", printed)
    assert "invalid     1 × no answer within 60 tokens (talk.json 1)" in printed
    assert "invalid     1 × an answer is empty (talk.json 4)" in printed
    assert "1 truncated at max_length" in printed
    assert "images      12 with 1" in printed
    path.write_text(json.dumps(rows[:2]))
    with pytest.raises(UserError, match=r"talk\.json: none of 2 samples can be used"):
        run_inspect(InspectConversationsConfig(**fields, max_length=60))  # type: ignore[arg-type]


def test_fields_are_checked(bridge_llm: Path) -> None:
    tiles = "expected a square number whose root divides a tile of 336 pixels, got"
    for count, fit, expected in (
        (0, "squash", "expected an integer of at least 1, got 0"),
        (15, "anyres", tiles),
        (400, "anyres", tiles),
    ):
        with pytest.raises(UserError, match=f"^image_tokens: {expected}"):
            from_plain(
                InspectConversationsConfig,
                {"path": "x", "llm": str(bridge_llm), "image_tokens": count, "image_aspect_ratio": fit},
            )
    with pytest.raises(UserError, match="no such file"):
        run_inspect(InspectConversationsConfig(path="gone.json", llm=str(bridge_llm)))
