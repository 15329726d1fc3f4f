"""Rows of conversations with one more key, of any name and value: it is respected, or the row is invalid, or the key is
counted and named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clips_world
import generators
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from clips.data.formats.dataset_format import Conversation
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.data.sources import read_conversations

KNOWN = ["system", "image", "images", "loss", "train", "weight", "conversations", "messages", "from", "value", "id"]
VALUES = [False, True, 0, 1, 0.5, 2, "no", "", None, "a.png", "b.png", ["a.png"], ["b.png"], [], {"a": 1}, "Be brief."]


@st.composite
def keys(draw: Any) -> str:
    """A key that is read, or one of its misspellings, or any other."""
    key = draw(st.sampled_from([*KNOWN, "source", "model", "reasoning_content", "tool_calls", "eoc"]))
    place = draw(st.integers(0, len(key) - 1))
    return draw(
        st.sampled_from(
            [key, key, key[:place] + key[place + 1 :], key[: place + 1] + key[place:], key.title(), key + "_"]
        )
    )


def outcome(row: dict[str, Any], key: str, value: Any, place: str, sample: Conversation) -> str:
    """What the reader made of the key: one of the words that `expected` allows."""
    answers = [turn for turn in sample.turns if turn.role == "assistant"]
    if sample.fault:
        return "invalid" if key in sample.fault or key in ("from", "value") else "invalid without a name"
    if (f"messages.{key}" if place == "message" else key) in sample.unread:
        return "named"
    if key == "system" and [turn.content for turn in sample.turns if turn.role == "system"] == [value]:
        return "respected"
    if key in ("image", "images") and [image.name for image in sample.images] == (
        value if isinstance(value, list) else [value]
    ):
        return "respected"
    if place == "message" and key in ("loss", "train", "weight") and value in (0, 1):
        return "respected" if answers[-1].trained == bool(value) else "ignored"
    if place == "row" and key in ("loss", "train", "weight") and value in (True, 1):
        return "respected"
    if key in ("id", "conversations", "messages", "from", "value", "role", "content"):
        return "known"
    return "ignored"


@generators.sizes
def test_no_key_of_a_row_is_ignored(examples: int, tmp_path: Path) -> None:
    def check(data: st.DataObject) -> None:
        key, value, place = (
            data.draw(keys()),
            data.draw(st.sampled_from(VALUES)),
            data.draw(st.sampled_from(["row", "message"])),
        )
        form = data.draw(st.sampled_from(["llava", "conversations", "parquet", "webdataset"]))
        question, answer = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}
        row: dict[str, Any] = {"id": "x", "image": "a.png", "conversations": [question, answer]}
        if place == "message":
            answer[key] = value
        else:
            row[key] = value
        path = tmp_path / ("talk." + {"parquet": "parquet", "webdataset": "tar"}.get(form, "json"))
        other = {"id": "y", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I"}]}
        if form == "parquet":
            columns = ("image", "images", "conversations", "messages")  # of all rows
            if place == "message" or not isinstance(value, str | bool) or key in columns:
                return
            second = other if key == "id" and isinstance(value, str) else {**other, key: None}  # of one type
            pq.write_table(pa.Table.from_pylist([row, second]), path)
        elif form == "webdataset":
            if key in ("image", "images"):
                return  # its images are members, whatever their names in the row
            first = {"json": json.dumps(row).encode(), "png": clips_world.draw_image(0)}
            clips_world.write_shard(path, {"x": first, "y": {"json": json.dumps(other).encode()}})
        else:
            path.write_text(json.dumps([row, other]))
        config = ConversationSourceConfig(path=str(path), format="conversations" if form == "parquet" else form)
        samples = read_conversations(config)
        found = outcome(row, key, value, place, samples[0])
        if value is None or value in ("", [], {}):
            return  # it says nothing
        assert found in ("named", "invalid", "respected", "known"), (found, row, samples[0])
        assert not samples[1].fault
        if found == "named":
            assert (f"messages.{key}" if place == "message" else key) in samples.describe_unread()

    generators.explore(check, examples)
