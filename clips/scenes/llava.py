"""Training data in LLaVA's format: alignment captions, instruction turns, and the same without pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clips.scenes.captions import in_words, plain_caption
from clips.scenes.dice import Dice
from clips.scenes.phrases import Described, describe
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
_SHARES_IN_WORDS = {"existence": 70, "pair": 10, "open": 20}  # what words teach best is to look a thing up


def align_record(scene: Scene, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """One entry of ``llava_align.json``: a request to describe, answered by the first sentence of the long caption."""
    dice = Dice("align", scene.seed, scene.split, scene.index)
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    turns = [("human", f"<image>\n{dice.choice(_DESCRIBE)}"), ("gpt", summary)]
    return _record(key, image, turns)


def instruct_record(world: World, scene: Scene, key: str, image: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_instruct.json``: ``turns`` short questions, then a caption."""
    dice = Dice("instruct", scene.seed, scene.split, scene.index)
    return _record(key, image, _questions_and_caption(describe(world, scene), "<image>\n", turns, dice))


def instruct_questions(
    described: Described, count: int, dice: Dice, shares: Mapping[str, int] = _SHARES
) -> list[Question]:
    """Short questions, half of the yes/no ones with the answer no, none asked twice."""
    facts, openly = pairs(described, dice), open_questions(described, dice)
    chosen = word_questions(described)[:1] if dice.chance(700) else []
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        family = dice.weighted(tuple(shares), tuple(shares.values()))
        question: Question | None
        if family == "existence":
            question = _existence(described, dice)
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


def _existence(described: Described, dice: Dice) -> Question:
    """POPE's question; half of the absent things are of a category that is present."""
    if dice.chance(500):
        return Question(text=existence_question(dice.choice(described.groups).kind), answer="yes")
    absent = absent_kinds(described)
    categories = {group.kind.category for group in described.groups}
    alike = [kind for kind in absent if kind.category in categories]
    return Question(text=existence_question(dice.choice(alike if alike and dice.chance(500) else absent)), answer="no")


def _one_side(pair: Pair, dice: Dice) -> Question:
    return Question(text=pair.yes, answer="yes") if dice.chance(500) else Question(text=pair.no, answer="no")


def text_record(world: World, scene: Scene, key: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_text.json``: a conversation about a picture that is given in words, for an LLM alone.

    An LLM that has learnt to look things up in words only needs a projector that puts pictures into words.
    """
    dice = Dice("text", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    words = in_words(described, dice)
    return _record(key, None, _questions_and_caption(described, f"{words}\n", turns, dice, _SHARES_IN_WORDS))


def _questions_and_caption(
    described: Described, picture: str, turns: int, dice: Dice, shares: Mapping[str, int] = _SHARES
) -> list[tuple[str, str]]:
    """``turns`` questions, the last for a caption; the first says how short answers are to be, as in LLaVA's data."""
    said: list[tuple[str, str]] = []
    for question in instruct_questions(described, turns - 1, dice, shares):
        said += [("human", question.text if said else f"{picture}{question.text}{SHORT_ANSWER}")]
        said += [("gpt", question.answer)]
    said += [("human", ONE_SENTENCE if said else f"{picture}{ONE_SENTENCE}"), ("gpt", plain_caption(described, dice))]
    return said


def _record(key: str, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    picture = {} if image is None else {"image": image}
    return {"id": key, **picture, "conversations": [{"from": who, "value": text} for who, text in turns]}
