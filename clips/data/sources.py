"""Images with captions by index, for training: `clips.loader.sampler` determines their order.

A format with random access has a source of its own (shards, tables); of all others the captions are listed in memory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.identity import file_hash
from clips.data.formats import FORMATS, DatasetSpec, read_dataset
from clips.data.formats.dataset_format import captions_by_image, captions_of
from clips.data.formats.source import Record, Sample, Source, SourceConfig
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage, image_bytes
from clips.errors import UserError, unknown_name_error

__all__ = ["Record", "Sample", "Source", "SourceConfig", "open_source"]

_LISTED_WEB = ("random_sentence", "first_sentence")
_LISTED_SYNTHETIC = ("other_sentences", "all_sentences")


def open_source(config: SourceConfig, facts: Any = None) -> Source:
    """The source of ``config``, with its first samples checked; with the `Source.facts` of a process that has done so.

    Raises:
        UserError: a file is missing or invalid, or none of the first samples has the fields in ``config``.
    """
    kind: Any = FORMATS[config.format].source or ListedCaptions
    source: Source = kind(config) if facts is None else kind(config, facts)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source


class ListedCaptions(Source):
    """The paths and sentences of all images of a format that lists captions, in memory."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        if config.web_caption not in _LISTED_WEB:
            raise unknown_name_error(config.web_caption, _LISTED_WEB, f"'web_caption' of a {config.format} data source")
        synthetic = f"'synthetic_caption' of a {config.format} data source"
        for name in config.synthetics:
            if name not in _LISTED_SYNTHETIC:
                raise unknown_name_error(name, _LISTED_SYNTHETIC, synthetic)
        if len(config.synthetics) > 1:
            raise UserError(f"{synthetic}: expected one of {', '.join(_LISTED_SYNTHETIC)}")
        takes = FORMATS[config.format].takes
        taken: dict[str, Any] = {name: getattr(config, name) for name in ("split", "image_root") if name in takes}
        dataset = read_dataset(DatasetSpec(path=config.path, format=config.format, **taken), "captions")
        self.samples: list[tuple[FileImage, list[str]]] = []
        self.invalid: dict[int, str] = {}  # sample → why it has no sentences
        for image, captions in captions_by_image(dataset.records):
            if not any(captions):  # COCO has images without captions
                continue
            if not isinstance(image, FileImage):
                raise UserError(
                    f"{image}: expected a file of the image alone, as clips train lists the images of data "
                    f"source's 'format' {config.format}"
                )
            sentences, reason = list[str](), "no sentences"
            try:
                sentences = [text.strip() for text in captions_of(captions)]
            except InvalidSampleError as error:
                reason = str(error)
            if not sentences:
                self.invalid[len(self.samples)] = reason
            self.samples.append((image, sentences))
        # one sentence is the web caption, and training says that there are no others
        if "other_sentences" in config.synthetics and all(len(sentences) < 2 for _, sentences in self.samples):
            self.config = dataclasses.replace(config, synthetic_caption=None)
        self.blocks = [len(self.samples)]
        tried = [image for image, _ in self.samples[:20]]
        if tried and not any(image.exists() for image in tried):
            where = f"{tried[0].root}: expected the images there (data source's 'image_root')"
            raise UserError(f"{where}; none of the first {len(tried)} exists, such as {tried[0].reference}")

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.samples[index][0].name

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        captions, image = self.captions(index, rng), self.samples[index][0]
        return Sample(image_bytes(image.reference, image.root), *captions)

    def captions(self, index: int, rng: np.random.Generator) -> tuple[str, str]:
        """See `Source`."""
        _, sentences = self.samples[index]
        if index in self.invalid:
            raise InvalidSampleError(self.invalid[index])
        web = int(rng.integers(len(sentences))) if self.config.web_caption == "random_sentence" else 0
        others = [
            f"{sentence.rstrip(' .!')}."  # so that it is a sentence when a caption is cut into sub-captions
            for number, sentence in enumerate(sentences)
            if number != web or "all_sentences" in self.config.synthetics
        ]
        return sentences[web], " ".join(others) if self.config.synthetics else ""

    def record(self, index: int) -> Record:
        """See `Source`; with random_sentence the web caption is the list of all sentences."""
        image, sentences = self.samples[index]
        web = sentences if self.config.web_caption == "random_sentence" else sentences[0]
        fields = {"file": image.name, "sentences": sentences, self.config.web_caption: web}
        return Record(f"{index:09d}", fields, reference=image.name)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        path = Path(self.config.path)
        described = {"path": str(path), "split": self.config.split, "samples": len(self)}
        return described | ({"hash": file_hash(path)} if path.is_file() else {})
