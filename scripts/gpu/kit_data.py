"""Pack the data of the GPU kit: a part of ``shared`` with its layout, as one compressed archive.

    python scripts/gpu/kit_data.py --shared ../shared --photos 1500 --out build/gpu-kit/data.tar.gz

Real photos with captions (Flickr8k, a sixth of them for validation), photos with questions, long captions, web photos
and captions, a pretrained trunk, and a tokenizer without its LLM: speed does not depend on an LLM's weights.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUESTIONED, DESCRIBED = 150, 110  # photos for the mix of scripts/bench/bridge_step.py
WHOLE = (
    "data/capsfusion_5k.jsonl",
    "data/cc12m_32.tar",
    "models/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors",
    "models/stories15M/config.json",
    "models/stories15M/tokenizer.json",
    "models/stories15M/tokenizer_config.json",
)
Member = tuple[str, bytes | Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--photos", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tarfile.open(args.out, "w:gz", dereference=True) as archive:
        for name, content in members(args.shared, args.photos):
            if isinstance(content, Path):
                archive.add(content, name, recursive=False)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def members(shared: Path, photos: int) -> Iterator[Member]:
    """Names in the archive with their content."""
    yield from flickr(shared, {"train": photos - photos // 6, "val": photos // 6})
    yield from questions(shared / "data/cocoqa")
    yield from descriptions(shared / "data/coco_long")
    for name in WHOLE:
        yield name, shared / name


def flickr(shared: Path, counts: dict[str, int]) -> Iterator[Member]:
    """The first photos of each split in the Karpathy layout."""
    folder = "data/flickr8k"
    content = json.loads((shared / folder / "dataset_flickr8k.json").read_text(encoding="utf-8"))
    rows = [row for split, count in counts.items() for row in of_split(content["images"], split)[:count]]
    yield f"{folder}/dataset_flickr8k.json", json.dumps({**content, "images": rows}).encode()
    for row in rows:
        name = f"{folder}/images/{row['filename']}"
        yield name, shared / name


def of_split(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split]


def questions(folder: Path) -> Iterator[Member]:
    """The first photos with all questions about them."""
    rows = json_lines(folder / "questions.jsonl")
    photos = [name for name in dict.fromkeys(row["image"] for row in rows) if (folder / "images" / name).is_file()]
    chosen = set(photos[:QUESTIONED])
    yield "data/cocoqa/questions.jsonl", as_lines([row for row in rows if row["image"] in chosen])
    for name in sorted(chosen):
        yield f"data/cocoqa/images/{name}", folder / "images" / name


def descriptions(folder: Path) -> Iterator[Member]:
    """The first photos with their long captions."""
    inside = [row for row in json_lines(folder / "captions.jsonl") if row["image"].startswith("images/")]
    yield "data/coco_long/captions.jsonl", as_lines(inside[:DESCRIBED])
    for row in inside[:DESCRIBED]:
        yield f"data/coco_long/{row['image']}", folder / row["image"]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


if __name__ == "__main__":
    main()
