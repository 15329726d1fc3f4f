"""Data sources by name; each is one function from a :class:`DataConfig` to samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clips.errors import UserError, suggest
from clips.loading import refusing
from llava_bridge.chat import IMAGE
from llava_bridge.data.samples import DataConfig, Sample, Turn
from llava_bridge.data.split import is_held_back

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
"""What captions answer; also the words of lmms-eval's captioning tasks."""
SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Follows a question with a one-word answer; also the words of lmms-eval's question tasks."""

_ROLES: dict[str, Any] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_samples(config: DataConfig) -> list[Sample]:
    """The conversations of one source.

    Raises:
        UserError: an unknown source, a missing or malformed file, or nothing in it.
    """
    if config.source == "text":
        raise UserError(f"data.source: {config.path} is text, which only the pretrain stage reads")
    if config.source not in SOURCES:
        raise suggest(config.source, {*SOURCES, "text"}, "data source")
    samples = [sample for _, sample in zip(_count(config.limit), SOURCES[config.source](config), strict=False)]
    if not samples:
        raise UserError(f"{config.path}: no samples (source {config.source}, split {config.split})")
    return samples


def read_texts(config: DataConfig) -> list[str]:
    """The texts of a ``text`` source: JSON lines, each with a "text".

    Raises:
        UserError: another source, a missing or malformed file, or nothing in it.
    """
    if config.source != "text":
        raise UserError(f"data.source: the pretrain stage expects source 'text', got '{config.source}'")
    texts = []
    for number, (_, row) in enumerate(zip(_count(config.limit), _json_lines(Path(config.path)), strict=False), 1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f'{config.path} line {number}: expected an object with a "text"')
        texts.append(row["text"])
    if not texts:
        raise UserError(f"{config.path}: no texts")
    return texts


def llava(config: DataConfig) -> Iterator[Sample]:
    """LLaVA's JSON list: id, image (a reference, a list of them, or none), conversations (from, value)."""
    path = Path(config.path)
    rows = _json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of samples, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        with refusing(
            f"{path} sample {number}: expected conversations with from (human, gpt or system) and value, "
            "and image as a reference or a list of them"
        ):
            turns = [Turn(_ROLES[turn["from"]], _text(turn["value"])) for turn in row["conversations"]]
            image = row.get("image")
            images = [] if image is None else [image] if isinstance(image, str) else [_text(one) for one in image]
        yield Sample(f"{path.name} {row.get('id', number)}", _root(config, path.parent), images, turns)


def karpathy(config: DataConfig) -> Iterator[Sample]:
    """Captions in Karpathy's JSON layout (Flickr8k, Flickr30K, COCO): one sample per caption."""
    path = Path(config.path)
    if path.is_dir():
        found = sorted(path.glob("dataset_*.json")) or sorted(path.glob("*.json"))
        if len(found) != 1:
            raise UserError(f"{path}: expected one dataset_*.json in Karpathy's layout, found {len(found)}")
        path = found[0]
    root = _root(config, path.parent / "images")
    data = _json(path)
    with refusing(f'{path}: expected Karpathy\'s JSON layout, a list "images" of objects with a split'):
        splits = {_text(row["split"]) for row in data["images"]}
    if config.split not in splits:
        raise suggest(config.split, splits, f"split of {path}")
    for number, row in enumerate(data["images"]):
        if row["split"] == config.split:
            with refusing(f"{path} image {number}: expected filename and sentences, each with its raw text"):
                reference = str(Path(row.get("filepath", "")) / row["filename"])
                captions = [_text(sentence["raw"]).strip() for sentence in row["sentences"][: config.per_image]]
            for caption in captions:
                turns = [Turn("user", f"{IMAGE}\n{CAPTION_PROMPT}"), Turn("assistant", caption)]
                yield Sample(row["filename"], root, [reference], turns)


def cocoqa(config: DataConfig) -> Iterator[Sample]:
    """Questions with one-word answers (COCO-QA), all questions about a photo in one conversation."""
    path = Path(config.path)
    path = path / "questions.jsonl" if path.is_dir() else path
    root = _root(config, path.parent / "images")
    keep = _cocoqa_split(config.split)
    photos: dict[str, list[Turn]] = {}
    for number, row in enumerate(_json_lines(path), 1):
        with refusing(f"{path} line {number}: expected the texts image, question and answer"):
            photo, question, answer = (_text(row[key]) for key in ("image", "question", "answer"))
        if keep(photo):
            turns = photos.setdefault(photo, [])
            picture = "" if turns else f"{IMAGE}\n"
            turns.append(Turn("user", f"{picture}{question}\n{SHORT_ANSWER}"))
            turns.append(Turn("assistant", answer))
    for photo, turns in photos.items():
        yield Sample(photo, root, [photo], turns)


SOURCES: dict[str, Callable[[DataConfig], Iterator[Sample]]] = {
    "llava": llava,
    "karpathy": karpathy,
    "cocoqa": cocoqa,
}


def _cocoqa_split(split: str) -> Callable[[str], bool]:
    rules: dict[str, Callable[[str], bool]] = {
        "train": lambda photo: not is_held_back(photo),
        "held_back": is_held_back,
        "all": lambda photo: True,
    }
    if split not in rules:
        raise suggest(split, rules, "split of cocoqa")
    return rules[split]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {json.dumps(value)}")
    return value


def _root(config: DataConfig, default: Path) -> Path:
    root = default if config.images is None else Path(config.images)
    if not root.is_dir():
        raise UserError(f"data.images: {root} is not a directory")
    return root


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def _json_lines(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None


def _count(limit: int | None) -> Iterator[int]:
    """0, 1, 2 …, ending at ``limit``; zip it first, so that nothing more is read from the source."""
    import itertools

    return iter(itertools.count()) if limit is None else iter(range(limit))
