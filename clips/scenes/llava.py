"""Training data in LLaVA's format: alignment captions, instruction turns, and the same without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clips.scenes.captions import in_words, plain_caption
from clips.scenes.dice import Dice
from clips.scenes.phrases import Described, Group, describe
from clips.scenes.questions import (
    ONE_SENTENCE,
    SHORT_ANSWER,
    Pair,
    Question,
    absent_kinds,
    existence_question,
    open_questions,
    pairs,
    word_questions,
)
from clips.scenes.world import Scene, World

_DESCRIBE = (
    "Describe the image briefly.",
    "Describe what the picture shows in one sentence.",
    "What can be seen in this image?",
    "Describe the content of the picture.",
    ONE_SENTENCE,
)
_EXISTENCE_FIRST = 600  # per mille: an earlier question about a thing would give away that it is there
_SHARES = {"existence": 55, "pair": 15, "open": 30}
_CAPTION = 200  # per mille of conversations


def align_record(scene: Scene, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """One entry of ``llava_align.json``: a request to describe, answered by the first sentence of the long caption."""
    dice = Dice("align", scene.seed, scene.split, scene.index)
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    turns = [("human", f"<image>\n{dice.choice(_DESCRIBE)}"), ("gpt", summary)]
    return _record(key, image, turns)


def instruct_record(world: World, scene: Scene, key: str, image: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_instruct.json``: ``turns`` short questions, or a request for a caption."""
    dice = Dice("instruct", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    questions = [] if dice.chance(_CAPTION) else instruct_questions(described, turns, dice)
    return _record(key, image, _conversation("<image>", questions, described, dice))


def text_record(world: World, scene: Scene, key: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_text.json``, for an LLM alone: questions about a picture of which only the tags are given.

    An LLM that has learnt to look things up in words only needs a projector that puts pictures into words. Tags and
    not sentences, because little stands between question and answer then; questions may come again, because to give
    the same answer again is the first step of looking up. Some entries ask for a caption instead.
    """
    dice = Dice("text", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    if dice.chance(_CAPTION):
        return _record(key, None, _conversation(in_words(described, dice), [], described, dice))
    questions = [_existence(described, described.groups, dice) for _ in range(turns)]
    tags = ", ".join(group.kind.name for group in dice.shuffled(described.groups))
    return _record(key, None, _conversation(tags, questions, described, dice))


def _conversation(picture: str, questions: list[Question], described: Described, dice: Dice) -> list[tuple[str, str]]:
    """The questions, of which, as in LLaVA's data, only the first says how short the answers are to be; or a caption.

    A caption stands alone, because it would give the answers to the questions away.
    """
    said: list[tuple[str, str]] = []
    for question in questions:
        said += [("human", question.text if said else f"{picture}\n{question.text}{SHORT_ANSWER}")]
        said += [("gpt", question.answer)]
    return said or [("human", f"{picture}\n{ONE_SENTENCE}"), ("gpt", plain_caption(described, dice))]


def instruct_questions(described: Described, count: int, dice: Dice) -> list[Question]:
    """Short questions, none asked twice; yes and no are equally likely answers."""
    facts, openly = pairs(described, dice), open_questions(described, dice)
    present = dice.shuffled(described.groups)
    chosen = word_questions(described)[:1] if dice.chance(700) else []
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        family = dice.weighted(tuple(_SHARES), tuple(_SHARES.values()))
        question: Question | None
        if family == "existence":
            question = _existence(described, present, dice) if present else None
            present = [group for group in present if question and question.text != existence_question(group.kind)]
        elif family == "pair":
            question = _one_side(facts.pop(), dice) if facts else None
        else:
            question = openly.pop() if openly else None
        if question and question.text not in {other.text for other in chosen}:
            chosen.append(question)
    ordered = dice.shuffled(chosen[:count])
    if dice.chance(_EXISTENCE_FIRST):
        ordered.sort(key=lambda question: not question.text.startswith("Is there"))
    return ordered


def _existence(described: Described, present: Sequence[Group], dice: Dice) -> Question:
    """POPE's question, about one of ``present`` or about something absent, of which half is like what is present."""
    if dice.chance(500):
        return Question(text=existence_question(dice.choice(present).kind), answer="yes")
    absent = absent_kinds(described)
    categories = {group.kind.category for group in described.groups}
    alike = [kind for kind in absent if kind.category in categories]
    return Question(text=existence_question(dice.choice(alike if alike and dice.chance(500) else absent)), answer="no")


def _one_side(pair: Pair, dice: Dice) -> Question:
    return Question(text=pair.yes, answer="yes") if dice.chance(500) else Question(text=pair.no, answer="no")


def _record(key: str, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    picture = {} if image is None else {"image": image}
    return {"id": key, **picture, "conversations": [{"from": who, "value": text} for who, text in turns]}
