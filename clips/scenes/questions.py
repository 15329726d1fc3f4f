"""Questions about a scene, with answers that follow from its ground truth.

A *pair* is one fact as two questions, one with the answer yes and one with no, as in MME; POPE uses one side of such
pairs. *Open* questions have one-word answers, as in GQA; *word* questions are about signs, as in TextVQA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from clips.scenes.backgrounds import all_backgrounds
from clips.scenes.colors import OBJECT_COLORS
from clips.scenes.phrases import (
    NUMBERS,
    OPPOSITE,
    RELATIONS,
    ObjectGroup,
    SceneDescription,
    group_relation,
    with_article,
)
from clips.scenes.rng import DeterministicRng
from clips.scenes.sprites import ObjectClass
from clips.scenes.world import MAX_OBJECTS, box_center

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""The instruction that lmms-eval appends to the questions of POPE, MME, GQA and TextVQA."""
ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
"""lmms-eval's prompt for NoCaps."""

_MIN_OFFSET = 128  # from the center
_ASK_TOTAL = 250  # per mille of scenes; the question fits every image and would dominate the others
_CATEGORY_QUESTIONS = {
    "animal": ("Is there an animal in this image?", "What animal is in the image?"),
    "food": ("Is there something to eat in this image?", "What food is in the image?"),
    "vehicle": ("Is there a vehicle in this image?", "What vehicle is in the image?"),
    "plant": ("Is there a plant in this image?", "What plant is in the image?"),
    "building": ("Is there a building in this image?", "What building is in the image?"),
    "instrument": ("Is there something to make music with in this image?", "What instrument is in the image?"),
    "clothing": ("Is there a piece of clothing in this image?", "What piece of clothing is in the image?"),
    "toy": ("Is there a toy in this image?", "What toy is in the image?"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class YesNoPair:
    """A fact as a question with the answer yes, and as one with no. ``category`` is MME's."""

    category: str
    yes: str
    no: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question with a short answer."""

    text: str
    answer: str


def existence_question(kind: ObjectClass) -> str:
    """Return POPE's question."""
    return f"Is there {with_article(kind.name)} in the image?"


def yes_no_pairs(described: SceneDescription, rng: DeterministicRng) -> list[YesNoPair]:
    """Return all MME-like pairs of the scene, one or a few per category, in random order."""
    makers = (_existence, _count, _position, _relations, _color, _background, _sign, _commonsense)
    return rng.shuffled([pair for maker in makers for pair in maker(described, rng)])


def _existence(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    absent = described.absent
    text = "Is there {} in this image?"
    for group in described.groups:
        yes, no = with_article(group.kind.name), with_article(rng.choice(absent).name)
        yield YesNoPair(category="existence", yes=text.format(yes), no=text.format(no))


def _count(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    total = len(described.scene.objects)
    other = rng.choice([n for n in (total - 2, total - 1, total + 1, total + 2) if 1 <= n <= MAX_OBJECTS])
    yield YesNoPair(category="count", yes=_count_question(total), no=_count_question(other))
    for group in described.groups:
        if group.count > 1:
            text = f"Are there {{}} {group.kind.plural} in this image?"
            wrong = NUMBERS[5 - group.count]  # two to three
            yield YesNoPair(category="count", yes=text.format(NUMBERS[group.count]), no=text.format(wrong))


def _count_question(count: int) -> str:
    start, noun = ("Is there only", "object") if count == 1 else ("Are there", "objects")
    return f"{start} {NUMBERS[count]} {noun} in this image?"


def _position(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for group in described.groups:
        side = _side(group)
        if side:
            text = f"Is {group.the()} on the {{}} side of this image?"
            yield YesNoPair(category="position", yes=text.format(side), no=text.format(OPPOSITE[side]))


def _side(group: ObjectGroup) -> str | None:
    """Return left or right, for a single object that is clearly off center."""
    offset = box_center(group.boxes[0])[0] - 512
    if group.count > 1 or abs(offset) < _MIN_OFFSET:
        return None
    return "left" if offset < 0 else "right"


def _relations(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for first in described.groups:
        for second in described.groups:
            found = group_relation(first, second) if first is not second else None
            if found:
                text = f"Is {first.the()} {{}} {second.the()}?"
                yield YesNoPair(
                    category="position", yes=text.format(RELATIONS[found]), no=text.format(RELATIONS[OPPOSITE[found]])
                )


def _color(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for group in described.groups:
        if group.painted and group.count == 1:
            wrong = rng.choice([color for color in OBJECT_COLORS if color != group.color])
            text = rng.choice((f"Is {group.the()} {{}}?", f"Is the color of {group.the()} {{}}?"))
            yield YesNoPair(category="color", yes=text.format(group.color), no=text.format(wrong))


def _background(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    own = described.background
    others = [other for other in all_backgrounds() if other.style == own.style and other.name != own.name]
    if own.style == "plain":
        text = "Is the background of this image {}?"
        yield YesNoPair(category="scene", yes=text.format(own.color), no=text.format(rng.choice(others).color))
    elif own.style == "landscape":
        text = "Does this image show {}?"
        yield YesNoPair(
            category="scene", yes=text.format(own.description), no=text.format(rng.choice(others).description)
        )


def _sign(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    if described.scene.sign:
        word = described.scene.sign.word
        wrong = rng.choice([other for other in described.world.words if other != word])
        text = 'Is the word on the sign "{}"?'
        yield YesNoPair(category="OCR", yes=text.format(word.lower()), no=text.format(wrong.lower()))


def _commonsense(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    categories = {group.kind.category for group in described.groups}
    possible = {kind.category for kind in described.world.object_classes}
    present = [name for name in _CATEGORY_QUESTIONS if name in categories]
    missing = [name for name in _CATEGORY_QUESTIONS if name in possible - categories]
    if present and missing:
        yield YesNoPair(
            category="commonsense_reasoning",
            yes=_CATEGORY_QUESTIONS[rng.choice(present)][0],
            no=_CATEGORY_QUESTIONS[rng.choice(missing)][0],
        )


def open_questions(described: SceneDescription, rng: DeterministicRng) -> list[Question]:
    """Return all questions with a one-word answer other than yes and no, in random order."""
    makers = (_ask_color, _ask_count, _ask_side, _ask_neighbor, _ask_category, _ask_background)
    questions = [question for maker in makers for question in maker(described)]
    if not questions or rng.chance(_ASK_TOTAL):
        total = NUMBERS[len(described.scene.objects)]
        questions.append(Question(text="How many objects are there in the image?", answer=total))
    return rng.shuffled(questions)


def caption_answerable_questions(described: SceneDescription) -> list[Question]:
    """Return the open questions that a caption with all names and colors answers, including the sign's words."""
    makers = (_ask_color, _ask_count, _ask_category, _ask_background, sign_questions)
    return [question for maker in makers for question in maker(described)]


def _ask_color(described: SceneDescription) -> Iterator[Question]:
    for group in described.groups:
        if group.painted and group.color:
            verb = "is" if group.count == 1 else "are"
            yield Question(text=f"What color {verb} the {group.noun}?", answer=group.color)


def _ask_count(described: SceneDescription) -> Iterator[Question]:
    for group in described.groups:
        if group.count > 1:
            yield Question(text=f"How many {group.kind.plural} are there?", answer=NUMBERS[group.count])


def _ask_side(described: SceneDescription) -> Iterator[Question]:
    for group in described.groups:
        side = _side(group)
        if side:
            yield Question(text=f"On which side of the image is {group.the()}, left or right?", answer=side)


def _ask_neighbor(described: SceneDescription) -> Iterator[Question]:
    """Ask for the object on one side of another, if exactly one class is there and its name is one word."""
    for anchor in described.groups:
        found: dict[str, list[ObjectGroup]] = {}
        for other in described.groups:
            where = group_relation(other, anchor) if other is not anchor else None
            if where:
                found.setdefault(where, []).append(other)
        for where, groups in found.items():
            if len(groups) == 1 and " " not in groups[0].noun:
                yield Question(text=f"What is {RELATIONS[where]} {anchor.the()}?", answer=groups[0].noun)


def _ask_category(described: SceneDescription) -> Iterator[Question]:
    for category, (_, text) in _CATEGORY_QUESTIONS.items():
        members = [group for group in described.groups if group.kind.category == category]
        if len(members) == 1 and members[0].count == 1 and " " not in members[0].noun:
            yield Question(text=text, answer=members[0].noun)


def _ask_background(described: SceneDescription) -> Iterator[Question]:
    color = described.background.color
    if color and " " not in color:
        yield Question(text="What is the color of the background?", answer=color)


def sign_questions(described: SceneDescription) -> list[Question]:
    """Ask about the sign, if there is one; answers in lower case, as TextVQA's annotators give them."""
    if described.scene.sign is None:
        return []
    word = described.scene.sign.word.lower()
    return [
        Question(text="what word is written on the sign?", answer=word),
        Question(text="what does the sign say?", answer=word),
    ]
