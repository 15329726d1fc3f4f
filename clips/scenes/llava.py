"""Training data in LLaVA's format: alignment captions, instruction turns, and the same without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clips.scenes.captions import in_words, plain_caption
from clips.scenes.dice import Dice
from clips.scenes.phrases import Described, Group, a, describe
from clips.scenes.questions import (
    ONE_SENTENCE,
    SHORT_ANSWER,
    Pair,
    Question,
    absent_kinds,
    existence_question,
    open_questions,
    pairs,
    told_questions,
    word_questions,
)
from clips.scenes.sprites import Kind
from clips.scenes.world import Scene, World

_DESCRIBE = (
    "Describe the image briefly.",
    "Describe what the picture shows in one sentence.",
    "What can be seen in this image?",
    "Describe the content of the picture.",
    ONE_SENTENCE,
)
_EXISTENCE_FIRST = 600  # per mille: an earlier question about a thing would give away that it is there
_SHARES = {"existence": 40, "choice": 25, "pair": 12, "open": 23}
_ALIGN_CHOICES = 3
_CAPTION = 200  # per mille of conversations about a picture
# Per mille, of conversations without pictures: those that begin with a caption. Of their other questions: those about
# the word on a sign, where there is one; of the rest, those that offer two things; of the rest, those about something
# else than what is there; of those about that, those in two words. The answer to those that offer two things is a word
# of the text and not a mere yes, which a small LLM learns to look up sooner: yes or no came out right at 0.87 and 0.89
# after 800 steps (two seeds), without them at 0.69 after 1000.
_TEXT_CAPTION, _WORD, _CHOICE, _TOLD, _TERSE = 300, 250, 400, 100, 550


def align_record(world: World, scene: Scene, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """One entry of ``llava_align.json``: which of two things is there, a few times, then the long caption's summary.

    The questions ask the projector for words that the frozen LLM can look up.
    """
    dice = Dice("align", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    questions = [_choice(described, described.groups, dice)[1] for _ in range(_ALIGN_CHOICES)]
    return _record(key, image, _conversation("<image>", [*questions, _description(long_caption, dice)]))


def instruct_record(world: World, scene: Scene, key: str, image: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_instruct.json``: ``turns`` short questions, or a request for a caption.

    A caption stands alone, because it would give the answers to the questions away.
    """
    dice = Dice("instruct", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    caption = Question(text=ONE_SENTENCE, answer=plain_caption(described, dice))
    questions = [caption] if dice.chance(_CAPTION) else instruct_questions(described, turns, dice)
    return _record(key, image, _conversation("<image>", questions or [caption]))


def text_record(world: World, scene: Scene, long_caption: str, key: str, turns: int) -> dict[str, Any]:
    """One entry of ``llava_text.json``, for an LLM alone: talk about a picture that is told in a few words.

    An LLM that has learnt to look things up in words, and to describe what they tell, only needs a projector that
    puts pictures into words. Small ones learn it sooner from short questions ("a dog?") than from whole sentences, so
    both are asked. Questions may come again, because to give the same answer again is the first
    step of looking up.
    """
    dice = Dice("text", scene.seed, scene.split, scene.index)
    described = describe(world, scene)
    questions = [_text_question(described, dice) for _ in range(turns)]
    if dice.chance(_TEXT_CAPTION):
        questions[: (turns + 1) // 2] = [_description(long_caption, dice)]
    return _record(key, None, _conversation(in_words(described, dice), questions))


def _description(long_caption: str, dice: Dice) -> Question:
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    return Question(text=dice.choice(_DESCRIBE), answer=summary)


def _text_question(described: Described, dice: Dice) -> Question:
    """What of two things is there, or whether a thing is, asked in few words or in full; or what else is told."""
    words = word_questions(described)
    if words and dice.chance(_WORD):
        return dice.choice(words)
    if dice.chance(_CHOICE):
        return _choice(described, described.groups, dice)[1]
    told = told_questions(described)
    if told and dice.chance(_TOLD):
        return dice.choice(told)
    kind, answer = _presence(described, described.groups, 0, dice)
    return Question(text=f"{a(kind.name)}?" if dice.chance(_TERSE) else existence_question(kind), answer=answer)


def _conversation(picture: str, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """The questions as turns; as in LLaVA's data, only the first says how short the answers are to be."""
    said: list[tuple[str, str]] = []
    for question in questions:
        short = "" if said or question.text in _DESCRIBE else SHORT_ANSWER
        said += [("human", question.text if said else f"{picture}\n{question.text}{short}")]
        said += [("gpt", question.answer)]
    return said


def instruct_questions(described: Described, count: int, dice: Dice) -> list[Question]:
    """Short questions, none asked twice; yes is as likely as no.

    POPE's questions and choices are true of a thing once at most, so that one does not answer the other.
    """
    facts, openly = pairs(described, dice), open_questions(described, dice)
    present = dice.shuffled(described.groups)
    words = word_questions(described)
    chosen = [dice.choice(words)] if words and dice.chance(700) else []
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        family, question = dice.weighted(tuple(_SHARES), tuple(_SHARES.values())), None
        if family in ("existence", "choice") and present:
            ask = _existence if family == "existence" else _choice
            kind, question = ask(described, present, dice)
            present = [group for group in present if group.kind is not kind]
        elif family == "pair" and facts:
            question = _one_side(facts.pop(), dice)
        elif family == "open" and openly:
            question = openly.pop()
        if question and question.text not in {other.text for other in chosen}:
            chosen.append(question)
    ordered = dice.shuffled(chosen[:count])
    if dice.chance(_EXISTENCE_FIRST):
        ordered.sort(key=lambda question: not question.text.startswith("Is there"))
    return ordered


def _existence(described: Described, present: Sequence[Group], dice: Dice) -> tuple[Kind, Question]:
    """POPE's question, with the kind that it is about; absent kinds are like those that are there half of the time."""
    kind, answer = _presence(described, present, 500, dice)
    return kind, Question(text=existence_question(kind), answer=answer)


def _presence(described: Described, present: Sequence[Group], alike: int, dice: Dice) -> tuple[Kind, str]:
    """One of the kinds of ``present`` with yes, or an absent one with no.

    ``alike`` per mille of the absent ones are of a category that is there, as POPE's adversarial questions are.
    """
    if dice.chance(500):
        return dice.choice(present).kind, "yes"
    absent = absent_kinds(described)
    categories = {group.kind.category for group in described.groups}
    near = [kind for kind in absent if kind.category in categories]
    return dice.choice(near if near and dice.chance(alike) else absent), "no"


def _choice(described: Described, present: Sequence[Group], dice: Dice) -> tuple[Kind, Question]:
    """Which of two things is there, as GQA's questions of the type "choose" ask; with the one that is."""
    there, absent = dice.choice(present).kind, dice.choice(absent_kinds(described))
    text = " or ".join(a(kind.name) for kind in dice.shuffled([there, absent]))
    return there, Question(
        text=f"{text}?" if dice.chance(_TERSE) else f"Is there {text} in the image?", answer=there.name
    )


def _one_side(pair: Pair, dice: Dice) -> Question:
    return Question(text=pair.yes, answer="yes") if dice.chance(500) else Question(text=pair.no, answer="no")


def _record(key: str, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    picture = {} if image is None else {"image": image}
    return {"id": key, **picture, "conversations": [{"from": who, "value": text} for who, text in turns]}
