"""Pictures in a folder with about five human sentences each: Karpathy's layout and COCO's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clips.core.artifact import file_hash
from clips.data.sources.base import BadSampleError, Record, Sample, SourceConfig, picture_bytes
from clips.errors import UserError, suggest
from clips.jsontext import parse_json

WEB = ("drawn_sentence", "first_sentence")
SYNTHETIC = ("other_sentences", "all_sentences")


class Karpathy:
    """Karpathy's JSON layout (COCO, Flickr30k, Flickr8k)."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.path = Path(config.path)
        if config.web not in WEB:
            raise suggest(config.web, WEB, f"'web' of a {config.format} data source")
        for name in config.synthetics:
            if name not in SYNTHETIC:
                raise suggest(name, SYNTHETIC, f"'synthetic' of a {config.format} data source")
        if len(config.synthetics) > 1:
            raise UserError(f"'synthetic' of a {config.format} data source: expected one of {', '.join(SYNTHETIC)}")
        self.folder = Path(config.images) if config.images else self.path.parent / "images"
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: expected the folder of pictures (data source's 'images')")
        self.samples = self.read_samples()

    def read_samples(self) -> list[tuple[str, list[str]]]:
        """The (picture's path in the folder, sentences) pairs."""
        return read_karpathy(self.path, self.config.split)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.samples[index][0]

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        file, sentences = self.samples[index]
        if not sentences:
            raise BadSampleError("no sentences")
        web = int(rng.integers(len(sentences))) if self.config.web == "drawn_sentence" else 0
        kept = [
            _as_sentence(sentence)
            for number, sentence in enumerate(sentences)
            if number != web or "all_sentences" in self.config.synthetics
        ]
        synthetic = " ".join(kept) if self.config.synthetics else ""
        return Sample(picture_bytes(file, self.folder), sentences[web], synthetic)

    def record(self, index: int) -> Record:
        """See `Source`; a list of sentences stays one where the web caption is drawn from it."""
        file, sentences = self.samples[index]
        web = sentences if self.config.web == "drawn_sentence" else sentences[0]
        return Record(f"{index:09d}", {"file": file, "sentences": sentences, self.config.web: web}, reference=file)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "path": str(self.path),
            "split": self.config.split,
            "samples": len(self),
            "hash": file_hash(self.path),
        }


class Coco(Karpathy):
    """COCO's own captions_*.json: "images" with id and file_name, "annotations" with image_id and caption."""

    def read_samples(self) -> list[tuple[str, list[str]]]:
        """See `Karpathy`; pictures without captions are left out."""
        content = _json(self.path)
        try:
            files = {image["id"]: str(image["file_name"]) for image in content["images"]}
            if len(files) < len(content["images"]):
                ids = [image["id"] for image in content["images"]]
                twice = next(each for each in ids if ids.count(each) > 1)
                raise UserError(f"{self.path}: images: expected different ids, got {twice!r} twice")
            captions: dict[Any, list[str]] = {}
            for note in content["annotations"]:
                if text := note["caption"].strip():
                    captions.setdefault(note["image_id"], []).append(text)
            return [(files[image], texts) for image, texts in captions.items()]
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f'{self.path}: expected COCO\'s layout: {{"images": [{{"id", "file_name"}}], '
                '"annotations": [{"image_id", "caption"}]}'
            ) from None


def read_karpathy(path: str | Path, split: str) -> list[tuple[str, list[str]]]:
    """The (picture's path in the folder, sentences) pairs of one split of a file of Karpathy's layout.

    Raises:
        UserError: the file is missing or of another layout, or has no such split.
    """
    content = _json(Path(path))
    try:
        images = content["images"]
        splits = {image["split"] for image in images}
        samples = [
            (
                str(Path(image.get("filepath", "")) / image["filename"]),
                [sentence["raw"].strip() for sentence in image["sentences"] if sentence["raw"].strip()],
            )
            for image in images
            if image["split"] == split
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f'{path}: expected Karpathy\'s layout: {{"images": [{{"filename", "split", "sentences": [{{"raw"}}]}}]}}'
        ) from None
    if split not in splits:
        raise suggest(split, splits, f"split of {path}")
    return samples


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def _as_sentence(text: str) -> str:
    """Sentences must be told apart again when a caption is cut into sub-captions."""
    text = text.rstrip(" .!")
    return f"{text}."
