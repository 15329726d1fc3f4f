"""Training data in formats that list captions: images in a directory with about five human sentences each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clips.core.content import file_hash
from clips.data.formats import FORMATS, DatasetSpec, read_dataset
from clips.data.formats.dataset_format import captions_of
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage, image_bytes
from clips.data.sources.source import Record, Sample, SourceConfig
from clips.errors import UserError, unknown_name_error

WEB = ("random_sentence", "first_sentence")
SYNTHETIC = ("other_sentences", "all_sentences")
_TRIED_IMAGES = 20


class ListedCaptions:
    """The paths and sentences of all images, in memory."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        if config.web_caption not in WEB:
            raise unknown_name_error(config.web_caption, WEB, f"'web_caption' of a {config.format} data source")
        for name in config.synthetics:
            if name not in SYNTHETIC:
                raise unknown_name_error(name, SYNTHETIC, f"'synthetic_caption' of a {config.format} data source")
        if len(config.synthetics) > 1:
            raise UserError(
                f"'synthetic_caption' of a {config.format} data source: expected one of {', '.join(SYNTHETIC)}"
            )
        given = {"split": config.split, "image_root": config.image_root}
        taken: dict[str, Any] = {name: value for name, value in given.items() if name in FORMATS[config.format].takes}
        found = read_dataset(DatasetSpec(path=config.path, format=config.format, **taken), "captions")
        self.samples: list[tuple[FileImage, list[str]]] = []
        self.invalid: dict[int, str] = {}  # sample → why it has no sentences
        for record in found.records:
            if not record.captions:  # COCO has images without captions
                continue
            sentences, reason = list[str](), "no sentences"
            try:
                sentences = [text.strip() for text in captions_of(record.captions)]
            except InvalidSampleError as error:
                reason = str(error)
            for image in record.images:
                if not sentences:
                    self.invalid[len(self.samples)] = reason
                assert isinstance(image, FileImage)
                self.samples.append((image, sentences))
        tried = [image for image, _ in self.samples[:_TRIED_IMAGES]]
        if tried and not any(image.exists() for image in tried):
            where = f"{tried[0].root}: expected the images there (data source's 'image_root')"
            raise UserError(f"{where}; none of the first {len(tried)} exists, such as {tried[0].reference}")

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.samples[index][0].name

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        image, sentences = self.samples[index]
        if index in self.invalid:
            raise InvalidSampleError(self.invalid[index])
        web = int(rng.integers(len(sentences))) if self.config.web_caption == "random_sentence" else 0
        others = [
            f"{sentence.rstrip(' .!')}."  # so that it is a sentence when a caption is cut into sub-captions
            for number, sentence in enumerate(sentences)
            if number != web or "all_sentences" in self.config.synthetics
        ]
        synthetic = " ".join(others) if self.config.synthetics else ""
        return Sample(image_bytes(image.reference, image.root), sentences[web], synthetic)

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
