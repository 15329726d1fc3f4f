"""Questions about a scene with answers from its ground truth, and conversations of them in LLaVA's format.

A *pair* is one fact as two questions, one with the answer yes and one with no, as in MME; POPE uses one side of such
pairs. *Open* questions have one-word answers, as in GQA; *word* questions are about signs, as in TextVQA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from scene_drawing import OBJECT_COLORS, ObjectClass, all_backgrounds
from scene_rng import DeterministicRng
from scene_texts import (
    NUMBERS,
    OPPOSITE,
    RELATIONS,
    ObjectGroup,
    SceneDescription,
    group_relation,
    plain_caption,
    terse_description,
    with_article,
)
from scene_world import MAX_OBJECTS, box_center

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


@dataclasses.dataclass(frozen=True)
class YesNoPair:
    """A fact as a question with the answer yes, and as one with no. ``category`` is MME's."""

    category: str
    yes: str
    no: str


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with a short answer."""

    text: str
    answer: str


# ---------------------------------------------------------------- yes or no


def existence_question(kind: ObjectClass) -> str:
    """Return POPE's question."""
    return f"Is there {with_article(kind.name)} in the image?"


def yes_no_pairs(described: SceneDescription, rng: DeterministicRng) -> list[YesNoPair]:
    """Return all MME-like pairs of the scene, one or a few per category, in random order."""
    makers = (_exists, _count, _position, _relations, _color, _background, _sign, _commonsense)
    return rng.shuffled([pair for maker in makers for pair in maker(described, rng)])


def _pair(category: str, text: str, yes: object, no: object) -> YesNoPair:
    return YesNoPair(category, text.format(yes), text.format(no))


def _exists(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for group in described.groups:
        names = with_article(group.kind.name), with_article(rng.choice(described.absent).name)
        yield _pair("existence", "Is there {} in this image?", *names)


def _count(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    total = len(described.scene.objects)
    other = rng.choice([n for n in (total - 2, total - 1, total + 1, total + 2) if 1 <= n <= MAX_OBJECTS])
    yield YesNoPair("count", _count_question(total), _count_question(other))
    for group in described.groups:
        if group.count > 1:
            numbers = NUMBERS[group.count], NUMBERS[5 - group.count]  # two and three
            yield _pair("count", f"Are there {{}} {group.kind.plural} in this image?", *numbers)


def _count_question(count: int) -> str:
    start, noun = ("Is there only", "object") if count == 1 else ("Are there", "objects")
    return f"{start} {NUMBERS[count]} {noun} in this image?"


def _position(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for group in described.groups:
        if side := _side(group):
            yield _pair("position", f"Is {group.the()} on the {{}} side of this image?", side, OPPOSITE[side])


def _side(group: ObjectGroup) -> str | None:
    """Return left or right, for a single object that is clearly off center."""
    offset = box_center(group.boxes[0])[0] - 512
    if group.count > 1 or abs(offset) < _MIN_OFFSET:
        return None
    return "left" if offset < 0 else "right"


def _relations(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for first in described.groups:
        for second in described.groups:
            if first is not second and (found := group_relation(first, second)):
                text = f"Is {first.the()} {{}} {second.the()}?"
                yield _pair("position", text, RELATIONS[found], RELATIONS[OPPOSITE[found]])


def _color(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    for group in described.groups:
        if group.painted and group.count == 1:
            wrong = rng.choice([color for color in OBJECT_COLORS if color != group.color])
            text = rng.choice((f"Is {group.the()} {{}}?", f"Is the color of {group.the()} {{}}?"))
            yield _pair("color", text, group.color, wrong)


def _background(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    own = described.background
    others = [other for other in all_backgrounds() if other.style == own.style and other.name != own.name]
    if own.style == "plain":
        yield _pair("scene", "Is the background of this image {}?", own.color, rng.choice(others).color)
    elif own.style == "landscape":
        yield _pair("scene", "Does this image show {}?", own.description, rng.choice(others).description)


def _sign(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    if described.scene.sign:
        word = described.scene.sign.word
        wrong = rng.choice([other for other in described.world.words if other != word])
        yield _pair("OCR", 'Is the word on the sign "{}"?', word.lower(), wrong.lower())


def _commonsense(described: SceneDescription, rng: DeterministicRng) -> Iterator[YesNoPair]:
    categories = {group.kind.category for group in described.groups}
    possible = {kind.category for kind in described.world.object_classes}
    present = [name for name in _CATEGORY_QUESTIONS if name in categories]
    missing = [name for name in _CATEGORY_QUESTIONS if name in possible - categories]
    if present and missing:
        yes, no = (_CATEGORY_QUESTIONS[rng.choice(names)][0] for names in (present, missing))
        yield YesNoPair("commonsense_reasoning", yes, no)


# ---------------------------------------------------------------- other answers


def open_questions(described: SceneDescription, rng: DeterministicRng) -> list[Question]:
    """Return all questions with a one-word answer other than yes and no, in random order."""
    makers = (_ask_color, _ask_count, _ask_side, _ask_neighbor, _ask_category, _ask_background)
    questions = [question for maker in makers for question in maker(described)]
    if not questions or rng.chance(_ASK_TOTAL):
        total = NUMBERS[len(described.scene.objects)]
        questions.append(Question("How many objects are there in the image?", total))
    return rng.shuffled(questions)


def caption_answerable_questions(described: SceneDescription) -> list[Question]:
    """Return the open questions that a caption with all names and colors answers, including the sign's words."""
    makers = (_ask_color, _ask_count, _ask_category, _ask_background, sign_questions)
    return [question for maker in makers for question in maker(described)]


def _ask_color(described: SceneDescription) -> Iterator[Question]:
    for group in described.groups:
        if group.painted and group.color:
            yield Question(f"What color {'is' if group.count == 1 else 'are'} the {group.noun}?", group.color)


def _ask_count(described: SceneDescription) -> Iterator[Question]:
    for group in described.groups:
        if group.count > 1:
            yield Question(f"How many {group.kind.plural} are there?", NUMBERS[group.count])


def _ask_side(described: SceneDescription) -> Iterator[Question]:
    for group in described.groups:
        if side := _side(group):
            yield Question(f"On which side of the image is {group.the()}, left or right?", side)


def _ask_neighbor(described: SceneDescription) -> Iterator[Question]:
    """Ask for the object on one side of another, if exactly one class is there and its name is one word."""
    for anchor in described.groups:
        found: dict[str, list[ObjectGroup]] = {}
        for other in described.groups:
            if other is not anchor and (where := group_relation(other, anchor)):
                found.setdefault(where, []).append(other)
        for where, groups in found.items():
            if len(groups) == 1 and " " not in groups[0].noun:
                yield Question(f"What is {RELATIONS[where]} {anchor.the()}?", groups[0].noun)


def _ask_category(described: SceneDescription) -> Iterator[Question]:
    for category, (_, text) in _CATEGORY_QUESTIONS.items():
        members = [group for group in described.groups if group.kind.category == category]
        if len(members) == 1 and members[0].count == 1 and " " not in members[0].noun:
            yield Question(text, members[0].noun)


def _ask_background(described: SceneDescription) -> Iterator[Question]:
    color = described.background.color
    if color and " " not in color:
        yield Question("What is the color of the background?", color)


def sign_questions(described: SceneDescription) -> list[Question]:
    """Ask about the sign, if there is one; answers in lower case, as TextVQA's annotators give them."""
    if described.scene.sign is None:
        return []
    word = described.scene.sign.word.lower()
    return [Question(f"what {asked}?", word) for asked in ("word is written on the sign", "does the sign say")]


# ---------------------------------------------------------------- conversations in LLaVA's format

TURNS = 7  # at most, in a conversation of questions
_DESCRIBE = (
    "Describe the image briefly.",
    "Describe what the picture shows in one sentence.",
    "What can be seen in this image?",
    "Describe the content of the picture.",
    ONE_SENTENCE,
)
_EXISTENCE_FIRST = 600  # per mille: an earlier question about an object would reveal that it is present
_WEIGHTS = {"existence": 40, "choice": 25, "pair": 12, "open": 23}
_ALIGN_CHOICES = 3
_CAPTION = 200  # per mille of conversations about an image
# Questions of conversations without images, per mille. A choice between two objects has a word of the text as answer,
# and makes a small LLM learn sooner to look words up: yes or no was correct at 0.87 and 0.89 after 800 steps (two
# seeds), without choices at 0.69 after 1000.
_TEXT_CAPTION = 300  # of the conversations: begin with a request for a caption
_WORD = 250  # of the questions: about the word on a sign, if there is one
_CHOICE = 400  # of the rest: between two objects
_ATTRIBUTE = 100  # of the rest: not about the presence of an object
_TERSE = 550  # of the rest and of the choices: short, as "a dog?"


def align_record(described: SceneDescription, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """Return one entry of ``llava_align.json``: which of two objects is present, a few times, then a summary.

    The questions make the projector produce words that the frozen LLM can look up.
    """
    rng = described.scene.rng("align")
    questions = [_choice(described, described.groups, rng)[1] for _ in range(_ALIGN_CHOICES)]
    return _record(key, image, "<image>", [*questions, _description(long_caption, rng)])


def instruct_record(described: SceneDescription, key: str, image: str) -> dict[str, Any]:
    """Return one entry of ``llava_instruct.json``: short questions, or a request for a caption.

    A caption is the only message pair of its conversation, because it would reveal the answers to questions.
    """
    rng = described.scene.rng("instruct")
    caption = Question(ONE_SENTENCE, plain_caption(described, rng))
    questions = [caption] if rng.chance(_CAPTION) else instruct_questions(described, rng)
    return _record(key, image, "<image>", questions or [caption])


def text_record(described: SceneDescription, long_caption: str, key: str) -> dict[str, Any]:
    """Return one entry of ``llava_text.json``, for an LLM without images: a conversation about a short description.

    An LLM that has learned to look up words in a text and to describe it needs only a projector that maps images to
    words. Small LLMs learn it sooner from short questions ("a dog?") than from full sentences, so both occur. Questions
    may repeat, because repeating an answer is the first step of looking up.
    """
    rng = described.scene.rng("text")
    questions = [_text_question(described, rng) for _ in range(TURNS)]
    if rng.chance(_TEXT_CAPTION):
        questions[: (TURNS + 1) // 2] = [_description(long_caption, rng)]
    return _record(key, None, terse_description(described, rng), questions)


def _description(long_caption: str, rng: DeterministicRng) -> Question:
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    return Question(rng.choice(_DESCRIBE), summary)


def _text_question(described: SceneDescription, rng: DeterministicRng) -> Question:
    """Ask which of two objects is present, or whether one is, in short or full form; or ask for other content."""
    words = sign_questions(described)
    if words and rng.chance(_WORD):
        return rng.choice(words)
    if rng.chance(_CHOICE):
        return _choice(described, described.groups, rng)[1]
    attributes = caption_answerable_questions(described)
    if attributes and rng.chance(_ATTRIBUTE):
        return rng.choice(attributes)
    kind, answer = _presence(described, described.groups, 0, rng)
    return Question(f"{with_article(kind.name)}?" if rng.chance(_TERSE) else existence_question(kind), answer)


def instruct_questions(described: SceneDescription, rng: DeterministicRng) -> list[Question]:
    """Return short questions without repetition; yes is as likely as no.

    POPE's questions and choices name an object at most once, so that one does not answer the other.
    """
    pairs, open_ones = yes_no_pairs(described, rng), open_questions(described, rng)
    present = rng.shuffled(described.groups)
    words = sign_questions(described)
    chosen = [rng.choice(words)] if words and rng.chance(700) else []
    for _ in range(4 * TURNS):
        if len(chosen) >= TURNS:
            break
        family, question = rng.weighted(tuple(_WEIGHTS), tuple(_WEIGHTS.values())), None
        if family in ("existence", "choice") and present:
            ask = _existence if family == "existence" else _choice
            kind, question = ask(described, present, rng)
            present = [group for group in present if group.kind is not kind]
        elif family == "pair" and pairs:
            pair = pairs.pop()
            question = Question(pair.yes, "yes") if rng.chance(500) else Question(pair.no, "no")
        elif family == "open" and open_ones:
            question = open_ones.pop()
        if question and question.text not in {other.text for other in chosen}:
            chosen.append(question)
    ordered = rng.shuffled(chosen)
    if rng.chance(_EXISTENCE_FIRST):
        ordered.sort(key=lambda question: not question.text.startswith("Is there"))
    return ordered


def _existence(
    described: SceneDescription, present: Sequence[ObjectGroup], rng: DeterministicRng
) -> tuple[ObjectClass, Question]:
    """Return POPE's question with its object class; half of the absent classes are similar to present ones."""
    kind, answer = _presence(described, present, 500, rng)
    return kind, Question(existence_question(kind), answer)


def _presence(
    described: SceneDescription, present: Sequence[ObjectGroup], similar: int, rng: DeterministicRng
) -> tuple[ObjectClass, str]:
    """Return one of ``present`` with yes, or an absent class with no.

    ``similar`` per mille of the absent ones are of a present category, as in POPE's adversarial questions.
    """
    if rng.chance(500):
        return rng.choice(present).kind, "yes"
    absent = described.absent
    categories = {group.kind.category for group in described.groups}
    candidates = [kind for kind in absent if kind.category in categories]
    return rng.choice(candidates if candidates and rng.chance(similar) else absent), "no"


def _choice(
    described: SceneDescription, present: Sequence[ObjectGroup], rng: DeterministicRng
) -> tuple[ObjectClass, Question]:
    """Ask which of two objects is present, as GQA's questions of type "choose" do; with the present one."""
    kind, absent = rng.choice(present).kind, rng.choice(described.absent)
    choice = " or ".join(with_article(option.name) for option in rng.shuffled([kind, absent]))
    return kind, Question(f"{choice}?" if rng.chance(_TERSE) else f"Is there {choice} in the image?", kind.name)


def _record(key: str, image: str | None, context: str, questions: Sequence[Question]) -> dict[str, Any]:
    """An entry of LLaVA's JSON list; as in LLaVA's data, only the first question asks for short answers."""
    turns: list[dict[str, str]] = []
    for question in questions:
        hint = "" if question.text in _DESCRIBE else SHORT_ANSWER
        text = question.text if turns else f"{context}\n{question.text}{hint}"
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": question.answer}]
    return {"id": key, **({} if image is None else {"image": image}), "conversations": turns}
