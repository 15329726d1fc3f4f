"""Data sets of captions and of short answers in layouts of their own: Karpathy's JSON, COCO-QA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from clips.errors import UserError, suggest
from clips.model.loading import refusing
from llava_bridge.chat import IMAGE
from llava_bridge.data.files import image_root, read_json, read_json_lines, text
from llava_bridge.data.pictures import FilePicture
from llava_bridge.data.samples import DataConfig, Sample, Turn
from llava_bridge.data.split import is_held_back

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
"""What captions answer; also the words of lmms-eval's captioning tasks."""
SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Follows a question with a one-word answer; also the words of lmms-eval's question tasks."""


def karpathy(config: DataConfig) -> Iterator[Sample]:
    """Captions in Karpathy's JSON layout (Flickr8k, Flickr30K, COCO): one sample per caption."""
    path = Path(config.path)
    if path.is_dir():
        found = sorted(path.glob("dataset_*.json")) or sorted(path.glob("*.json"))
        if len(found) != 1:
            raise UserError(f"{path}: expected one dataset_*.json in Karpathy's layout, found {len(found)}")
        path = found[0]
    root = image_root(config, path.parent / "images")
    data = read_json(path)
    with refusing(f'{path}: expected Karpathy\'s JSON layout, a list "images" of objects with a split'):
        splits = {text(row["split"]) for row in data["images"]}
    if config.split not in splits:
        raise suggest(config.split, splits, f"split of {path}")
    for number, row in enumerate(data["images"]):
        if row["split"] == config.split:
            with refusing(f"{path} image {number}: expected filename and sentences, each with its raw text"):
                reference = str(Path(row.get("filepath", "")) / row["filename"])
                captions = [text(sentence["raw"]).strip() for sentence in row["sentences"][: config.per_image]]
            for caption in captions:
                turns = [Turn("user", f"{IMAGE}\n{CAPTION_PROMPT}"), Turn("assistant", caption)]
                yield Sample(row["filename"], [FilePicture(root, reference)], turns)


def cocoqa(config: DataConfig) -> Iterator[Sample]:
    """Questions with one-word answers (COCO-QA), all questions about a photo in one conversation."""
    path = Path(config.path)
    path = path / "questions.jsonl" if path.is_dir() else path
    root = image_root(config, path.parent / "images")
    keep = _cocoqa_split(config.split)
    photos: dict[str, list[Turn]] = {}
    for number, row in enumerate(read_json_lines(path), 1):
        with refusing(f"{path} line {number}: expected the texts image, question and answer"):
            photo, question, answer = (text(row[key]) for key in ("image", "question", "answer"))
        if keep(photo):
            turns = photos.setdefault(photo, [])
            picture = "" if turns else f"{IMAGE}\n"
            turns.append(Turn("user", f"{picture}{question}\n{SHORT_ANSWER}"))
            turns.append(Turn("assistant", answer))
    for photo, turns in photos.items():
        yield Sample(photo, [FilePicture(root, photo)], turns)


def _cocoqa_split(split: str) -> Callable[[str], bool]:
    rules: dict[str, Callable[[str], bool]] = {
        "train": lambda photo: not is_held_back(photo),
        "held_back": is_held_back,
        "all": lambda photo: True,
    }
    if split not in rules:
        raise suggest(split, rules, "split of cocoqa")
    return rules[split]
