"""Benchmark data in the layouts of their authors: pairs of captions, long captions, captions in several languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import bench_world as world
from bench_world import write_images

from clips.data import formats

COUNT = 3
TEXTS = ["The first picture. It has a square.", "The second picture.", "The third picture, the last of all."]


def detected(path: Path, kind: formats.Kind = "captions") -> set[str]:
    """The formats of a kind that are found for a path, whatever the order in which they are registered."""
    names = set()
    for order in (formats.FORMATS, dict(reversed(formats.FORMATS.items()))):
        with mock.patch.object(formats, "FORMATS", order):
            names.add(formats.detect(formats.DatasetSpec(path=str(path)), kind))
    return names


def sugarcrepe(root: Path) -> Path:
    world.write_images(root / "images", 2)
    pair = {"caption": "a red one", "negative_caption": "a blue one"}
    world.write_lines(root / "swap_att.json", [{"3": {"filename": "1.png", **pair}}])
    world.write_lines(root / "add_att.json", [{"0": {"filename": "0.png", **pair}, "7": {"filename": "1.png", **pair}}])
    return root


def aro(root: Path, kinds: list[dict[str, Any]]) -> Path:
    world.write_images(root / "images", 2)
    box = {"bbox_x": 4, "bbox_y": 8, "bbox_w": 20, "bbox_h": 30}
    rows = [
        {"image_path": f"{number % 2}.png", "true_caption": "a on b", "false_caption": "b on a", **box, **kind}
        for number, kind in enumerate(kinds)
    ]
    return world.write_lines(root / "visual_genome.json", [rows])


def valse(root: Path) -> Path:
    world.write_images(root / "images", 1)
    world.write_images(root / "images/SWiG", 2)
    pair = {"caption": "there is one", "foil": "there is none", "dataset": "SWiG"}
    rows = {
        "a": {**pair, "image_file": "0.png", "mturk": {"foil": 0, "caption": 3, "other": 0}},
        "b": {**pair, "image_file": "0.png", "mturk": {"foil": 2, "caption": 1, "other": 0}},
        "c": {**pair, "image_file": "1.png"},
    }
    return world.write_lines(root / "existence.json", [rows])


def winoground(root: Path) -> Path:
    """Two cases, of the colors 0 and 1, and 2 and 3."""
    (root / "images").mkdir(parents=True)
    rows = []
    for case, tag in enumerate(("Object", "Relation")):
        row: dict[str, Any] = {"id": case, "collapsed_tag": tag}
        for side, number in enumerate((2 * case, 2 * case + 1)):
            world.draw_image(number).save(root / f"images/ex_{case}_img_{side}.png")
            row |= {f"image_{side}": f"ex_{case}_img_{side}", f"caption_{side}": f"a {world.color(number)} square"}
        rows.append(row)
    world.write_lines(root / "examples.jsonl", rows)
    return root


def urban1k(folder: Path) -> Path:
    write_images(folder / "Urban1k/image", COUNT, ".jpg")
    (folder / "Urban1k/caption").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"Urban1k/caption/{number}.txt").write_text(f"{text}\nA line that nobody measures on.\n")
    return folder / "Urban1k"


def sharegpt4v(folder: Path) -> Path:
    write_images(folder / "data/sam/images", COUNT, ".jpg")
    asked = {"from": "human", "value": "Describe it.\n<image>"}
    rows = []
    for number, text in enumerate(TEXTS):
        said = {"from": "gpt", "value": text.replace(". ", ".\n")}
        rows.append({"id": str(number), "image": f"sam/images/{number}.jpg", "conversations": [asked, said]})
    return world.write_lines(folder / "share-captioner.json", [rows])


def docci(folder: Path) -> Path:
    write_images(folder / "docci/images", COUNT + 1, ".jpg")
    rows = [
        {"example_id": f"x_{number}", "split": split, "image_file": f"{number}.jpg", "description": text}
        for number, (text, split) in enumerate([*[(text, "test") for text in TEXTS], ("More.", "train")])
    ]
    world.write_lines(folder / "docci/docci_descriptions.jsonlines", rows)
    return folder / "docci"


def iiw(folder: Path) -> Path:
    write_images(folder / "IIW-400/images_aar", COUNT, ".jpg")
    rows = [{"IIW": TEXTS[n], "IIW-P5B": "By a machine.", "image/key": str(n), "objects": []} for n in range(COUNT)]
    world.write_lines(folder / "IIW-400/data.jsonl", rows)
    return folder / "IIW-400"


def dci(folder: Path) -> Path:
    root = folder / "densely_captioned_images"
    write_images(root / "photos", COUNT + 1, ".jpg")
    for number in range(COUNT + 1):
        first, _, rest = [*TEXTS, "More. And more."][number].partition(" ")
        row = {"image": f"{number}.jpg", "short_caption": first, "extra_caption": rest, "mask_data": {}}
        world.write_lines(root / f"annotations/{number}.json", [row])
    splits = {"train": ["3.json"], "test": [f"{number}.json" for number in range(COUNT)]}
    (root / "splits.json").write_text(json.dumps(splits))
    return root


LONG = {"urban1k": urban1k, "sharegpt4v": sharegpt4v, "docci": docci, "iiw": iiw, "dci": dci}


CAPTIONS = {"de": [["eins", "eine eins"], ["zwei"], ["drei"]], "en": [["one"], ["two"], ["three"]]}


def xm3600(folder: Path) -> Path:
    write_images(folder / "xm3600/images", COUNT, ".jpg")
    rows = [
        {"image/key": str(number), "image/locale": "de"}
        | {language: {"caption": texts[number], "caption/tokenized": []} for language, texts in CAPTIONS.items()}
        for number in range(COUNT)
    ]
    world.write_lines(folder / "xm3600/captions.jsonl", rows)
    return folder / "xm3600"


def flickr30k_200(folder: Path) -> Path:
    return parallel(folder / "flickr30k-200", "filenames.txt", "{}.txt")


def xtd10(folder: Path) -> Path:
    return parallel(folder / "XTD10", "test_image_names.txt", "test_1kcaptions_{}.txt")


def parallel(folder: Path, index: str, name: str) -> Path:
    write_images(folder / "images", COUNT, ".jpg")
    (folder / index).write_text("".join(f"{number}.jpg\n" for number in range(COUNT)))
    for language, texts in CAPTIONS.items():
        (folder / name.format(language)).write_text("".join(f"{group[0]}\n" for group in texts))
    return folder
