"""Pictures with several captions each, from the layouts in which retrieval benchmarks come."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class CaptionSet:
    """Pictures and their captions.

    Args:
        root: what the references are relative to.
        images: (N,) picture references, all different: a file, or ``shard.tar/member``.
        captions: (N,) lists of captions, each at least one.
        source: the file or directory that was read, for messages.
    """

    root: Path
    images: Sequence[str]
    captions: Sequence[Sequence[str]]
    source: str

    def open(self, index: int) -> Image:
        """Picture ``index`` as RGB."""
        from clips.data.images import open_image

        return open_image(self.root, self.images[index])

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over captions and picture contents, the same whatever layout they came in."""
        from clips.data.images import read_reference

        digest = hashlib.sha256()
        for image, captions in zip(self.images, self.captions, strict=True):
            content = hashlib.sha256(read_reference(self.root, image)).hexdigest()
            digest.update(json.dumps([content, *captions], ensure_ascii=False).encode())
        return digest.hexdigest()


def load_caption_set(
    data: str, *, split: str = "test", images: str | None = None, captions_per_image: int = 5, limit: int | None = None
) -> CaptionSet:
    """Read a retrieval data set. A picture that comes several times is one picture with all those captions.

    Args:
        data: a directory of WebDataset shards (``captions`` in each JSON, or CLIP_benchmark's ``.txt`` with one
            caption a line), a Karpathy JSON, or JSON lines of {image, captions}.
        split: of a Karpathy JSON.
        images: folder of the pictures, for JSON and JSON lines.
        captions_per_image: keep the first so many.
        limit: keep the first so many pictures.

    Raises:
        UserError: missing or malformed, an empty split, a picture without captions.
    """
    path = Path(data)
    if not path.exists():
        raise UserError(f"{data}: no such file or directory")
    if path.is_dir():
        root, rows = path, _from_shards(path)
    elif path.suffix == ".jsonl":
        root, rows = Path(images) if images else path.parent, _from_lines(path)
    elif path.suffix == ".json":
        root = Path(images) if images else path.parent / "images"
        rows = _from_karpathy(path, split, root)
    else:
        raise UserError(f"{data}: expected a directory of .tar shards, a .json or a .jsonl file")
    captions: dict[str, list[str]] = {}
    for name, texts in rows:
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{data}: {name}: expected a list of captions, got {texts!r:.80}")
        captions.setdefault(name, []).extend(texts)
    if not captions:
        raise UserError(f"{data}: holds no picture with captions" + (f" in split '{split}'" if path.is_file() else ""))
    names = list(captions)[:limit]
    return CaptionSet(root, names, [captions[name][:captions_per_image] for name in names], data)


def _from_shards(directory: Path) -> Iterator[tuple[str, Any]]:
    from clips.data.tars import index_tar

    shards = sorted(directory.glob("*.tar"))
    if not shards:
        raise UserError(f"{directory}: expected .tar shards, found none")
    for shard in shards:
        index = index_tar(shard)
        for member in index.members:
            stem, dot, suffix = member.rpartition(".")
            if f"{dot}{suffix}".lower() not in _PICTURES:
                continue
            if f"{stem}.json" in index.members:
                content = _parse(index.read(f"{stem}.json"), f"{shard}/{stem}.json")
                texts = content.get("captions")
            elif f"{stem}.txt" in index.members:
                texts = [line for line in index.read(f"{stem}.txt").decode("utf-8", "replace").splitlines() if line]
            else:
                texts = None
            yield f"{shard.name}/{member}", texts


def _from_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for _, row in read_lines(path, texts=("image",), others=("captions",)):
        yield row["image"], row["captions"]


def _from_karpathy(path: Path, split: str, root: Path) -> Iterator[tuple[str, Any]]:
    content = _parse(path.read_bytes(), str(path))
    rows = content.get("images")
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected Karpathy's layout, an object with 'images'")
    try:
        splits = {row["split"] for row in rows}
        if split not in splits:
            raise UserError(f"{path}: has no split '{split}' (it has: {', '.join(sorted(splits))})")
        for row in rows:
            if row["split"] == split:
                folder = row.get("filepath", "")
                name = row["filename"] if (root / row["filename"]).exists() else f"{folder}/{row['filename']}"
                yield name.removeprefix("/"), [sentence["raw"] for sentence in row["sentences"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected Karpathy's layout; a picture lacks {error}") from None


def read_lines(path: Path, *, texts: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON lines file.

    Args:
        path: the file.
        texts: keys that every object must have, with a text that is not empty.
        others: keys that every object must have.

    Raises:
        UserError: naming the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            row = _parse(line, f"{path} line {number}")
            for key in (*texts, *others):
                if key not in row:
                    raise UserError(f"{path} line {number}: expected the key '{key}'")
                if key in texts and not (isinstance(row[key], str) and row[key]):
                    raise UserError(f"{path} line {number}: {key}: expected a text, got {row[key]!r:.80}")
            yield number, row


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object")
    return value
