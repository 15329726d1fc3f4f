"""Statistics of the sentences of MLLM captions, which the scenes' ``mllm`` captions reproduce.

    python scripts/measure_long_captions.py path/to/captions.jsonl

Reads JSON lines with ``long_captions`` (each with a ``caption``) and ``human_captions``. Prints the lengths of the
captions, and for the first, second, … sentence: the ratio of captions that have it; its length; how often it names an
object of the human captions; the ratio of the human captions' objects that it names first; and the ratio of objects
that it names first and that no human caption names. The last line is a control with the human captions of another
photo.

Objects are words for COCO's classes. An object that none of five people mentions may still be in the image; only the
increase over the sentences is informative.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from clips.method.caption_strategies import num_tokens, sentences

_SENTENCES = 6
_WORD = re.compile(r"[a-z]+")
_OBJECTS = set(
    _WORD.findall(
        """
        person bicycle car motorcycle airplane bus train truck boat light hydrant sign meter bench bird cat dog horse
        sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee ski snowboard ball kite
        bat glove skateboard surfboard racket bottle glass cup fork knife spoon bowl banana apple sandwich orange
        broccoli carrot pizza donut cake chair couch plant bed table toilet tv laptop mouse remote keyboard phone
        microwave oven toaster sink refrigerator book clock vase scissors dryer toothbrush
        """
    )
)
_PEOPLE = "people man men woman women child children boy girl guy lady kid player skier surfer rider individual"
_SAME = dict.fromkeys(_WORD.findall(_PEOPLE), "person") | {
    **{"bike": "bicycle", "plane": "airplane", "jet": "airplane", "motorbike": "motorcycle", "sofa": "couch"},
    **{"television": "tv", "cellphone": "phone", "fridge": "refrigerator", "wine": "glass", "purse": "handbag"},
    **{"doughnut": "donut", "computer": "laptop", "racquet": "racket", "stove": "oven", "knives": "knife"},
}


def objects_in(text: str) -> set[str]:
    """The objects that a text names."""
    found = set()
    for word in _WORD.findall(text.lower()):
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            name = _SAME.get(form, form)
            if name in _OBJECTS:
                found.add(name)
                break
    return found


@dataclass
class SentenceStats:
    """Statistics of all captions' first, second, … sentences."""

    lengths: list[int] = field(default_factory=list)
    names_known: list[bool] = field(default_factory=list)
    newly_mentioned: list[float] = field(default_factory=list)
    named: int = 0
    unconfirmed: int = 0

    def add(self, sentence: str, known: set[str], earlier: set[str]) -> None:
        """Add a sentence, given the objects of the human captions and those of earlier sentences."""
        named = objects_in(sentence)
        self.lengths.append(num_tokens(sentence))
        self.names_known.append(bool(named & known))
        self.newly_mentioned.append(len((named - earlier) & known) / len(known))
        self.named += len(named - earlier)
        self.unconfirmed += len(named - earlier - known)


def by_position(photos: list[dict[str, Any]], offset: int = 0) -> tuple[list[SentenceStats], SentenceStats]:
    """The statistics by position and in total, with the human captions of the photo ``offset`` positions later."""
    positions, total = [SentenceStats() for _ in range(_SENTENCES)], SentenceStats()
    for index, photo in enumerate(photos):
        known = objects_in(" ".join(photos[(index + offset) % len(photos)]["human_captions"]))
        if not known:
            continue
        for caption in texts(photo):
            earlier: set[str] = set()
            for number, sentence in enumerate(sentences(caption)):
                for stats in (total, *positions[number : number + 1]):
                    stats.add(sentence, known, earlier)
                earlier |= objects_in(sentence)
    return positions, total


def texts(photo: dict[str, Any]) -> Iterator[str]:
    """A photo's long captions."""
    return (entry["caption"] for entry in photo["long_captions"])


def spread(values: list[int]) -> str:
    """Mean, median, 5th and 95th percentile."""
    parts = quantiles(values, n=20)
    return f"mean {mean(values):.1f}, median {median(values):g}, 5–95 % {parts[0]:.0f}–{parts[-1]:.0f}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    photos = [json.loads(line) for line in parser.parse_args().file.read_text(encoding="utf-8").splitlines()]
    captions = [caption for photo in photos for caption in texts(photo)]
    print(f"{len(captions)} long captions of {len(photos)} photos")
    print("tokens:   ", spread([num_tokens(caption) for caption in captions]))
    print("sentences:", spread([len(sentences(caption)) for caption in captions]))
    described = [photo for photo in photos if photo["human_captions"]]
    positions, total = by_position(described)
    _, control = by_position(described, offset=1)
    count = sum(1 for photo in described for _ in texts(photo))
    print(f"\nof {len(described)} photos with human captions, by sentence:")
    print("        | captions | tokens | names human's | first of human's | its first ones unconfirmed")
    for number, stats in enumerate(positions, 1):
        print_line(str(number), stats, count)
    print_line("all", total)
    print_line("control", control)


def print_line(label: str, stats: SentenceStats, count: int | None = None) -> None:
    """Print one line of the table."""
    ratio = f"{len(stats.lengths) / count:8.0%}" if count else " " * 8
    print(
        f"{label:>7} | {ratio} | {mean(stats.lengths):6.1f} | {mean(stats.names_known):13.0%} | "
        f"{mean(stats.newly_mentioned):16.1%} | {stats.unconfirmed / stats.named:.1%} of {stats.named}"
    )


if __name__ == "__main__":
    main()
