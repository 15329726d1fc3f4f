"""Images with phrases and the bounding boxes of the named objects: JSON lines, or shards of the suite's scenes."""

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
from clips.errors import UserError
from clips.text_files import parse_object, read_json_lines

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchmarks.tasks.run_config import BenchmarkConfig

Box = tuple[float, float, float, float]
_SCENE_SIDE = 1024  # `clips.scenes` gives boxes in 1/1024 of the image size


@dataclass(frozen=True)
class Phrase:
    """One phrase about one image.

    Args:
        image: the image's reference.
        text: the phrase.
        box: left, top, width and height of the named object, in pixels or as ratios of the image size.
        normalized: whether the box is in ratios.
    """

    image: str
    text: str
    box: Box
    normalized: bool

    def within(self, width: int, height: int) -> Box:
        """Left, top, right and bottom of the box in an image of that size, as ratios of the image size.

        Raises:
            UserError: the box is not inside the image.
        """
        sides = (1.0, 1.0) if self.normalized else (float(width), float(height))
        left, top, wide, tall = self.box
        found = (left / sides[0], top / sides[1], (left + wide) / sides[0], (top + tall) / sides[1])
        if not (0 <= found[0] < found[2] <= 1.001 and 0 <= found[1] < found[3] <= 1.001):
            raise UserError(f"{self.image}: box: {list(self.box)} is not inside this image of {width}x{height}")
        return found


@dataclass(frozen=True)
class PhraseSet:
    """Phrases, grouped by image.

    Args:
        root: the directory of the images.
        phrases: (P,) the phrases in order.
        source: the file or directory that was read, for messages.
        available: number of images without ``limit``.
    """

    root: Path
    phrases: tuple[Phrase, ...]
    source: str
    available: int

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """The distinct images in order."""
        return tuple(dict.fromkeys(phrase.image for phrase in self.phrases))

    def open(self, image: str) -> Image:
        """An image as RGB. Raises UserError if it is missing or broken."""
        return FileImage(self.root, image).open()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over images, phrases and boxes."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(hashlib.sha256(FileImage(self.root, image).read()).digest())
        phrases = [[phrase.image, phrase.text, phrase.box] for phrase in self.phrases]
        digest.update(json.dumps(phrases, ensure_ascii=False).encode())
        return digest.hexdigest()


def load_benchmark_phrases(config: BenchmarkConfig) -> PhraseSet:
    """The phrases of a benchmark about its first ``limit`` images.

    Raises:
        UserError: missing or malformed, or no phrases.
    """
    return _load(config.data, config.image_root, config.limit, file_stamps(Path(config.data)))


@functools.lru_cache(maxsize=2)
def _load(data: str, images: str | None, limit: int | None, _stamp: object) -> PhraseSet:
    path = Path(data)
    shards = path.is_dir()
    root = path if shards else Path(images or path.parent)
    found = list(_scene_phrases(path) if shards else _read_lines(path))
    images_found = list(dict.fromkeys(phrase.image for phrase in found))
    selected = set(images_found[:limit])
    phrases = tuple(sorted((each for each in found if each.image in selected), key=lambda each: each.image))
    if not phrases:
        raise UserError(f"{data}: expected phrases with boxes, found none (JSON lines, or shards of `clips scenes`)")
    return PhraseSet(root, phrases, data, len(images_found))


def _read_lines(path: Path) -> Iterator[Phrase]:
    for number, row in read_json_lines(path, texts=("image", "phrase"), others=("box",)):
        box = row["box"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
            raise UserError(f"{path} line {number}: box: expected left, top, width and height, got {box!r:.80}")
        left, top, width, height = map(float, box)
        yield Phrase(row["image"], row["phrase"], (left, top, width, height), normalized=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_scenes(root: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The image (``SHARD/NAME.png``) and the objects of each scene in shards of ``clips scenes``."""
    from clips.data.tar_index import index_tar

    for shard in sorted(root.glob("*.tar")):
        index = index_tar(shard)
        for member in index.members:
            stem, _, suffix = member.rpartition(".")
            if suffix != "json" or f"{stem}.png" not in index.members:
                continue
            scene = parse_object(index.read(member), f"{shard}/{member}").get("scene")
            yield f"{shard.name}/{stem}.png", scene.get("objects", []) if isinstance(scene, dict) else []


def _scene_phrases(root: Path) -> Iterator[Phrase]:
    """The objects of each scene that color (if any) and class distinguish from its other objects."""
    for image, objects in read_scenes(root):
        texts = [" ".join(filter(None, (each.get("color"), each["kind"]))) for each in objects]
        counts = Counter(name for each, text in zip(objects, texts, strict=True) for name in {text, each["kind"]})
        for each, text in zip(objects, texts, strict=True):
            if counts[text] == 1:
                left, top, width, height = (length / _SCENE_SIDE for length in each["box"])
                yield Phrase(image, text, (left, top, width, height), normalized=True)
