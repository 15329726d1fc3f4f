"""Pictures with phrases and the box of what each phrase names: JSON lines, or shards of the suite's scenes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tasks.data.caption_sets import file_stamps
from clips.data.lazy_images import FileImage
from clips.data.text_files import parse_object, read_json_lines
from clips.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchmarks.tasks.run_config import BenchmarkConfig

Box = tuple[float, float, float, float]
_SCENE_SIDE = 1024  # `clips.scenes` gives boxes in 1/1024 of the side


@dataclass(frozen=True)
class Phrase:
    """One phrase about one picture.

    Args:
        image: the picture's reference.
        text: the phrase.
        box: left, top, width and height of what it names, in pixels, or as shares of the sides.
        shares: whether the box is in shares.
    """

    image: str
    text: str
    box: Box
    shares: bool

    def within(self, width: int, height: int) -> Box:
        """Left, top, right and bottom of the box in a picture of that size, in shares of its sides.

        Raises:
            UserError: the box is not inside the picture.
        """
        sides = (1.0, 1.0) if self.shares else (float(width), float(height))
        left, top, wide, tall = self.box
        found = (left / sides[0], top / sides[1], (left + wide) / sides[0], (top + tall) / sides[1])
        if not (0 <= found[0] < found[2] <= 1.001 and 0 <= found[1] < found[3] <= 1.001):
            raise UserError(f"{self.image}: box: {list(self.box)} is not inside this picture of {width}x{height}")
        return found


@dataclass(frozen=True)
class PhraseSet:
    """Phrases, those of a picture side by side.

    Args:
        root: where the images lie.
        phrases: (P,) in order.
        source: the file or directory that was read, for messages.
        available: pictures that there are without ``limit``.
    """

    root: Path
    phrases: tuple[Phrase, ...]
    source: str
    available: int

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """The pictures, each once, in order."""
        return tuple(dict.fromkeys(phrase.image for phrase in self.phrases))

    def open(self, image: str) -> Image:
        """A picture as RGB. Raises UserError naming one that is missing or broken."""
        return FileImage(self.root, image).open()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over pictures, phrases and boxes."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(hashlib.sha256(FileImage(self.root, image).read()).digest())
        asked = [[phrase.image, phrase.text, phrase.box] for phrase in self.phrases]
        digest.update(json.dumps(asked, ensure_ascii=False).encode())
        return digest.hexdigest()


def load_benchmark_phrases(config: BenchmarkConfig) -> PhraseSet:
    """The phrases of a benchmark, of its first ``limit`` pictures.

    Raises:
        UserError: missing or malformed, or no phrase in it.
    """
    return _load(config.data, config.image_root, config.limit, file_stamps(Path(config.data)))


@functools.lru_cache(maxsize=2)
def _load(data: str, images: str | None, limit: int | None, _stamp: object) -> PhraseSet:
    path = Path(data)
    shards = path.is_dir()
    root = path if shards else Path(images or path.parent)
    found = list(_of_scenes(path) if shards else _of_lines(path))
    there = list(dict.fromkeys(phrase.image for phrase in found))
    kept = set(there[:limit])
    phrases = tuple(sorted((each for each in found if each.image in kept), key=lambda each: each.image))
    if not phrases:
        raise UserError(f"{data}: expected phrases with boxes, found none (JSON lines, or shards of `clips scenes`)")
    return PhraseSet(root, phrases, data, len(there))


def _of_lines(path: Path) -> Iterator[Phrase]:
    for number, row in read_json_lines(path, texts=("image", "phrase"), others=("box",)):
        box = row["box"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
            raise UserError(f"{path} line {number}: box: expected left, top, width and height, got {box!r:.80}")
        left, top, width, height = map(float, box)
        yield Phrase(row["image"], row["phrase"], (left, top, width, height), shares=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_scenes(root: Path) -> Iterator[Phrase]:
    """The things of each scene that one phrase tells from all others there: color, where it has one, and kind."""
    from clips.data.tar_index import index_tar

    for shard in sorted(root.glob("*.tar")):
        index = index_tar(shard)
        for member in index.members:
            stem, _, suffix = member.rpartition(".")
            if suffix != "json" or f"{stem}.png" not in index.members:
                continue
            scene = parse_object(index.read(member), f"{shard}/{member}").get("scene")
            things = scene.get("objects", []) if isinstance(scene, dict) else []
            texts = [" ".join(filter(None, (thing.get("color"), thing["kind"]))) for thing in things]
            told = Counter(word for thing, text in zip(things, texts, strict=True) for word in {text, thing["kind"]})
            for thing, text in zip(things, texts, strict=True):
                if told[text] == 1:
                    left, top, width, height = (length / _SCENE_SIDE for length in thing["box"])
                    yield Phrase(f"{shard.name}/{stem}.png", text, (left, top, width, height), shares=True)
