"""Training data in LLaVA's format: alignment captions, instruction turns, and the same without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_SHARES_IN_WORDS = {"existence": 1}  # what words teach best is to look a thing up
_CAPTION_IN_WORDS = 250  # per mille


def align_record(scene: Scene, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """One entry of ``llava_align.json``: a request to describe, answered by the first sentence of the long caption."""
    dice = Dice("align", scene.seed, scene.split, scene.index)
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    turns = [("human", f"<image>\n{dice.choice(_DESCRIBE)}"), ("gpt", summary)]
    return _record(key, image, turns)


def instruct_record(world: World, scene: Scene, key: str, image: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_instruct.json``: ``turns`` short questions, then a caption."""
    dice = Dice("instruct", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    said = _asked(instruct_questions(described, turns - 1, dice), "<image>")
    said += [("human", ONE_SENTENCE if said else f"<image>\n{ONE_SENTENCE}"), ("gpt", plain_caption(described, dice))]
    return _record(key, image, said)


def instruct_questions(
    described: Described, count: int, dice: Dice, shares: Mapping[str, int] = _SHARES
) -> list[Question]:
    """Short questions, none asked twice; yes and no are equally likely answers."""
    facts, openly = pairs(described, dice), open_questions(described, dice)
    present = dice.shuffled(described.groups)
    chosen = word_questions(described)[:1] if dice.chance(700) else []
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        family = dice.weighted(tuple(shares), tuple(shares.values()))
        question: Question | None
        if family == "existence":
            question = _existence(described, present, dice) if present else None
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


def _existence(described: Described, present: list[Group], dice: Dice) -> Question:
    """POPE's question about one of ``present``, which are not asked yet, or about something absent.

    Half of the absent things are of a category that is present.
    """
    if dice.chance(500):
        return Question(text=existence_question(present.pop().kind), answer="yes")
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
    if dice.chance(_CAPTION_IN_WORDS):
        return _record(
            key, None, [("human", f"{words}\n{dice.choice(_DESCRIBE)}"), ("gpt", plain_caption(described, dice))]
        )
    return _record(key, None, _asked(instruct_questions(described, turns, dice, _SHARES_IN_WORDS), words))


def _asked(questions: Sequence[Question], picture: str) -> list[tuple[str, str]]:
    """Turns; as in LLaVA's data only the first says how short the answers are to be."""
    said: list[tuple[str, str]] = []
    for question in questions:
        said += [("human", question.text if said else f"{picture}\n{question.text}{SHORT_ANSWER}")]
        said += [("gpt", question.answer)]
    return said


def _record(key: str, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    picture = {} if image is None else {"image": image}
    return {"id": key, **picture, "conversations": [{"from": who, "value": text} for who, text in turns]}
