"""Conversations in every dataset format that ``llava-bridge train`` reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llava_bridge.data import ConversationSourceConfig

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TALKS: list[tuple[list[str], list[tuple[str, str]]]] = [
    (["red", "green"], [("user", "First <image>\nthen <image>\nwhich?"), ("assistant", "both")]),
    (["blue"], [("system", "Be brief."), ("user", "<image>\nColor?"), ("assistant", "blue")]),
    ([], [("user", "What is 1 + 1?"), ("assistant", "2"), ("user", "Sure?"), ("assistant", "yes")]),
    (["green", "red"], [("user", "No marks."), ("assistant", "so they come first")]),
]
"""Images by their colors, and who says what."""
EXPECTED = [*(turns for _, turns in TALKS[:3]), [("user", f"{'<image>' + chr(10)}" * 2 + "No marks."), TALKS[3][1][1]]]
FROM = {"user": "human", "assistant": "gpt", "system": "system"}


def write(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def png(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), RGB[color]).save(stream, "PNG")
    return stream.getvalue()


def as_values(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": FROM[role], "value": said} for role, said in turns]


def as_content(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": said} for role, said in turns]


def as_parts(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Content in parts, with both keys in each, as Arrow stores them; an image part is the mark and its line."""
    messages = []
    for role, said in turns:
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(said.split("<image>\n")):
            parts += [{"type": "image", "text": None}] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
        messages.append({"role": role, "content": parts})
    return messages


def rows(talk: str, form: Callable[..., Any], image: Callable[[str], Any]) -> list[dict[str, Any]]:
    return [{talk: form(turns), "images": [image(color) for color in colors]} for colors, turns in TALKS]


def write_files(folder: Path) -> None:
    for color in RGB:
        (folder / f"{color}.png").write_bytes(png(color))


def json_lines(folder: Path) -> ConversationSourceConfig:
    write_files(folder)
    found = rows("conversations", as_values, lambda color: f"{color}.png")
    found[2].pop("images")
    return ConversationSourceConfig(format="conversations", path=write(folder / "talk.jsonl", found))


def llava_json(folder: Path) -> ConversationSourceConfig:
    write_files(folder)
    found = [
        {"conversations": as_values(turns), "image": [f"{color}.png" for color in colors] or None}
        for colors, turns in [*TALKS[:3], (TALKS[3][0], EXPECTED[3])]  # LLaVA's form has a mark for each image
    ]
    return ConversationSourceConfig(path=write(folder / "talk.json", found))


def parquet_of_structs(folder: Path) -> ConversationSourceConfig:
    found = rows("messages", as_parts, lambda color: {"bytes": png(color), "path": f"{color}.png"})
    pq.write_table(pa.Table.from_pylist(found), folder / "talk.parquet", row_group_size=2)
    return ConversationSourceConfig(format="conversations", path=str(folder / "talk.parquet"))


def parquet_of_bytes(folder: Path) -> ConversationSourceConfig:
    found = rows("conversations", as_values, png)
    pq.write_table(pa.Table.from_pylist(found[:2]), folder / "talk-0.parquet")
    pq.write_table(pa.Table.from_pylist(found[2:]), folder / "talk-1.parquet")
    return ConversationSourceConfig(format="conversations", path=str(folder / "talk-{0..1}.parquet"))


def parquet_of_paths(folder: Path) -> ConversationSourceConfig:
    (folder / "photos").mkdir()
    write_files(folder / "photos")
    found = rows("messages", as_content, lambda color: f"{color}.png")
    pq.write_table(pa.Table.from_pylist(found), folder / "talk.parquet")
    return ConversationSourceConfig(
        format="conversations", path=str(folder / "talk.parquet"), image_root=str(folder / "photos")
    )


def saved_dataset(folder: Path) -> ConversationSourceConfig:
    import datasets

    found = rows("messages", as_parts, lambda color: Image.new("RGB", (6, 4), RGB[color]))
    columns = {name: [row[name] for row in found] for name in found[0]}
    whole = datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
    turned = whole.select([3, 2, 1, 0]).save_to_disk  # with indices, which are resolved when it is saved
    turned(str(folder / "other"))
    splits = datasets.DatasetDict({"train": whole, "test": whole.select([0])})
    splits.save_to_disk(str(folder / "set"))
    return ConversationSourceConfig(format="conversations", path=str(folder / "set"))


def hub_layout(folder: Path) -> ConversationSourceConfig:
    (folder / "hub" / "data").mkdir(parents=True)
    found = pa.Table.from_pylist(rows("messages", as_content, lambda color: {"bytes": png(color), "path": None}))
    for split, table in {"train": found, "test": found.slice(0, 1)}.items():
        pq.write_table(table, folder / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return ConversationSourceConfig(format="conversations", path=str(folder / "hub"))


def shards(folder: Path) -> ConversationSourceConfig:
    (folder / "shards").mkdir()
    for shard, some in enumerate((TALKS[:1], TALKS[1:])):
        with tarfile.open(folder / "shards" / f"{shard}.tar", "w") as tar:
            for number, (colors, turns) in enumerate(some):
                files = {"json": json.dumps({"messages": as_parts(turns)}).encode()}
                files |= {f"{place + 9}.png": png(color) for place, color in enumerate(colors)}  # 9.png before 10.png
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{number:03d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return ConversationSourceConfig(format="webdataset", path=str(folder / "shards"))


def color_of(image: Any) -> str:
    value = image.open().getpixel((2, 2))
    return next(name for name, rgb in RGB.items() if rgb == value)


FORMS = (
    llava_json,
    json_lines,
    parquet_of_structs,
    parquet_of_bytes,
    parquet_of_paths,
    saved_dataset,
    hub_layout,
    shards,
)
