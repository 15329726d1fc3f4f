"""What long captions that MLLMs wrote look like, sentence by sentence: the figures that scenes' ``mllm`` captions copy.

    python scripts/measure_long_captions.py path/to/captions.jsonl

Reads JSON lines with ``long_captions`` (each a ``caption``) and ``human_captions``, and prints how long the captions
are, and for each place of a sentence: how many captions reach it, its length, how often it names a thing that people
mention, how much of what people mention it is the first to name, and how much of what it is the first to name nobody
mentions. The last line is a control: the same captions beside another photo's human captions.

What people mention is counted in the words for COCO's objects. That nobody of five mentions a thing does not prove
that it is not there; the rise from the first sentence on is what tells.
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

_PLACES = 6
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
    """The objects that a text names, each by one word."""
    found = set()
    for word in _WORD.findall(text.lower()):
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            name = _SAME.get(form, form)
            if name in _OBJECTS:
                found.add(name)
                break
    return found


@dataclass
class Place:
    """What was counted of all captions' first, second, … sentences."""

    lengths: list[int] = field(default_factory=list)
    names_known: list[bool] = field(default_factory=list)
    newly_mentioned: list[float] = field(default_factory=list)
    named: int = 0
    unconfirmed: int = 0

    def add(self, sentence: str, known: set[str], earlier: set[str]) -> None:
        """Count a sentence beside what people mention and what the sentences before it named."""
        named = objects_in(sentence)
        self.lengths.append(num_tokens(sentence))
        self.names_known.append(bool(named & known))
        self.newly_mentioned.append(len((named - earlier) & known) / len(known))
        self.named += len(named - earlier)
        self.unconfirmed += len(named - earlier - known)


def by_place(photos: list[dict[str, Any]], other: int = 0) -> tuple[list[Place], Place]:
    """The counts of each place and of all together; with ``other``, beside the photo so many further on."""
    places, together = [Place() for _ in range(_PLACES)], Place()
    for index, photo in enumerate(photos):
        known = objects_in(" ".join(photos[(index + other) % len(photos)]["human_captions"]))
        if not known:
            continue
        for caption in texts(photo):
            earlier: set[str] = set()
            for number, sentence in enumerate(sentences(caption)):
                for place in (together, *places[number : number + 1]):
                    place.add(sentence, known, earlier)
                earlier |= objects_in(sentence)
    return places, together


def texts(photo: dict[str, Any]) -> Iterator[str]:
    """A photo's long captions."""
    return (entry["caption"] for entry in photo["long_captions"])


def spread(values: list[int]) -> str:
    """Mean, median and the middle nine tenths."""
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
    places, together = by_place(described)
    _, control = by_place(described, other=1)
    reached = sum(1 for photo in described for _ in texts(photo))
    print(f"\nof {len(described)} photos with human captions, by sentence:")
    print("        | captions | tokens | names people's | new of people's | its new ones nobody's")
    for number, place in enumerate(places, 1):
        print_line(str(number), place, reached)
    print_line("all", together)
    print_line("control", control)


def print_line(label: str, place: Place, reached: int | None = None) -> None:
    """One line of the table."""
    share = f"{len(place.lengths) / reached:8.0%}" if reached else " " * 8
    print(
        f"{label:>7} | {share} | {mean(place.lengths):6.1f} | {mean(place.names_known):14.0%} | "
        f"{mean(place.newly_mentioned):15.1%} | {place.unconfirmed / place.named:.1%} of {place.named}"
    )


if __name__ == "__main__":
    main()
