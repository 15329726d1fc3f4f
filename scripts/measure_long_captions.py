"""What long captions that MLLMs wrote look like, sentence by sentence: the figures that scenes' ``mllm`` captions copy.

    python scripts/measure_long_captions.py path/to/captions.jsonl

Reads JSON lines with ``long_captions`` (each a ``caption``) and ``human_captions``, and prints how long the captions
are, and for each place of a sentence: how many captions reach it, its length, how much of what people mention it
mentions for the first time, and how much of what it names nobody mentions. The last line of the table is a control:
the same captions beside another photo's human captions.

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

from clips.captions import count_tokens, sentences

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
    newly_mentioned: list[float] = field(default_factory=list)
    named: int = 0
    unconfirmed: int = 0

    def add(self, sentence: str, known: set[str], earlier: set[str]) -> None:
        """Count a sentence beside what people mention and what the sentences before it named."""
        named = objects_in(sentence)
        self.lengths.append(count_tokens(sentence))
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
    print("tokens:   ", spread([count_tokens(caption) for caption in captions]))
    print("sentences:", spread([len(sentences(caption)) for caption in captions]))
    described = [photo for photo in photos if photo["human_captions"]]
    places, together = by_place(described)
    print(f"\nof {len(described)} photos with human captions:")
    print("sentence | captions | tokens | of people's objects, new | its new objects that nobody mentions")
    reached = sum(1 for photo in described for _ in texts(photo))
    for number, place in enumerate(places, 1):
        print(
            f"{number:8} | {len(place.lengths) / reached:8.0%} | {mean(place.lengths):6.1f} | "
            f"{mean(place.newly_mentioned):24.1%} | {place.unconfirmed / place.named:.1%} of {place.named}"
        )
    print(f"     all |          |        | {'':24} | {together.unconfirmed / together.named:.1%} of {together.named}")
    _, control = by_place(described, other=1)
    print(f" control |          |        | {'':24} | {control.unconfirmed / control.named:.1%} of {control.named}")


if __name__ == "__main__":
    main()
