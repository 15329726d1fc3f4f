"""Data sources by name; each is one function from a :class:`DataConfig` to samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from clips.errors import UserError, suggest
from clips.model.loading import refusing
from llava_bridge.data.captions import cocoqa, karpathy
from llava_bridge.data.files import image_root, read_json, read_json_lines, text
from llava_bridge.data.mixture import weighted
from llava_bridge.data.pictures import FilePicture, Picture
from llava_bridge.data.samples import DataConfig, Sample
from llava_bridge.data.shards import webdataset
from llava_bridge.data.tables import read_rows
from llava_bridge.data.turns import EXPECTED, from_first_question, read_turns, with_picture_first, with_pictures_placed

Item = TypeVar("Item")


def read_samples(config: DataConfig, seed: int = 0) -> list[Sample]:
    """The conversations of one source, as often as an epoch has them.

    Args:
        config: the source.
        seed: of the draw where its weight is no whole number.

    Raises:
        UserError: an unknown source, a missing or malformed file, or nothing in it.
    """
    if config.source == "text":
        raise UserError(f"data.source: {config.path} is text, which only the pretrain stage reads")
    if config.source not in SOURCES:
        raise suggest(config.source, {*SOURCES, "text"}, "data source")
    samples = list(itertools.islice(SOURCES[config.source](config), config.limit))
    if not samples:
        raise UserError(f"{config.path}: no samples (source {config.source}, split {config.split})")
    return _mixed(samples, config, seed)


def read_texts(config: DataConfig, seed: int = 0) -> list[str]:
    """The texts of a ``text`` source: JSON lines, each with a "text". As often as an epoch has them.

    Raises:
        UserError: another source, a missing or malformed file, or nothing in it.
    """
    if config.source != "text":
        raise UserError(f"data.source: the pretrain stage expects source 'text', got '{config.source}'")
    texts = []
    for number, row in enumerate(itertools.islice(read_json_lines(Path(config.path)), config.limit), 1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f'{config.path} line {number}: expected an object with a "text"')
        texts.append(row["text"])
    if not texts:
        raise UserError(f"{config.path}: no texts")
    return _mixed(texts, config, seed)


def _mixed(items: list[Item], config: DataConfig, seed: int) -> list[Item]:
    mixed = weighted(items, config.weight, seed)
    if not mixed:
        raise UserError(f"data.weight: {config.weight} of the {len(items)} samples of {config.path} is none of them")
    return mixed


def llava(config: DataConfig) -> Iterator[Sample]:
    """LLaVA's JSON list: id, image (a reference, a list of them, or none), conversations (from, value)."""
    path = Path(config.path)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of samples, got {type(rows).__name__}")
    root = image_root(config, path.parent)
    for number, row in enumerate(rows):
        with refusing(
            f"{path} sample {number}: expected conversations with from (human, gpt or system) and value, "
            "and image as a reference or a list of them"
        ):
            turns = with_picture_first(from_first_question(read_turns(row["conversations"])))
            image = row.get("image")
            references = [] if image is None else [image] if isinstance(image, str) else image
            pictures: list[Picture] = [FilePicture(root, text(one)) for one in references]
        yield Sample(f"{path.name} {row.get('id', number)}", pictures, turns)


def conversations(config: DataConfig) -> Iterator[Sample]:
    """Rows with messages or conversations in either form, and images or image: bytes, paths, or none."""
    for row in read_rows(config):
        with refusing(f"{config.path}: {row.name}: expected {EXPECTED}"):
            turns = read_turns(row.talk)
        yield Sample(row.name, row.pictures, with_pictures_placed(turns, len(row.pictures)))


SOURCES: dict[str, Callable[[DataConfig], Iterator[Sample]]] = {
    "llava": llava,
    "conversations": conversations,
    "webdataset": webdataset,
    "karpathy": karpathy,
    "cocoqa": cocoqa,
}
