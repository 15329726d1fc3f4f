"""Training data in LLaVA's format: alignment captions, instruction conversations, and the same without images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clips.scenes.captions import plain_caption, terse_description
from clips.scenes.phrases import ObjectGroup, SceneDescription, describe_scene, with_article
from clips.scenes.questions import (
    ONE_SENTENCE,
    SHORT_ANSWER,
    Question,
    YesNoPair,
    absent_classes,
    caption_answerable_questions,
    existence_question,
    open_questions,
    sign_questions,
    yes_no_pairs,
)
from clips.scenes.rng import DeterministicRng
from clips.scenes.sprites import ObjectClass
from clips.scenes.world import Scene, SceneGenerator

_DESCRIBE = (
    "Describe the image briefly.",
    "Describe what the picture shows in one sentence.",
    "What can be seen in this image?",
    "Describe the content of the picture.",
    ONE_SENTENCE,
)
_EXISTENCE_FIRST = 600  # per mille: an earlier question about an object would reveal that it is present
_SHARES = {"existence": 40, "choice": 25, "pair": 12, "open": 23}
_ALIGN_CHOICES = 3
_CAPTION = 200  # per mille of conversations about an image
# Per mille. The first: of conversations without images, those that begin with a caption. Of their other questions:
# those about the word on a sign, if there is one; of the rest, those that offer two objects; of the rest, those about
# something other than the content; of those about the content, those in two words. The answer to those that offer two
# objects is a word of the text and not only yes, which a small LLM learns to look up sooner: yes or no was correct at
# 0.87 and 0.89 after 800 steps (two seeds), without them at 0.69 after 1000.
_TEXT_CAPTION, _WORD, _CHOICE, _TOLD, _TERSE = 300, 250, 400, 100, 550


def make_align_record(world: SceneGenerator, scene: Scene, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """Return one entry of ``llava_align.json``: which of two objects is present, a few times, then a summary.

    The questions require words from the projector that the frozen LLM can look up.
    """
    dice = DeterministicRng("align", scene.seed, scene.split, scene.index)
    described = describe_scene(world, scene)
    questions = [_choice(described, described.groups, dice)[1] for _ in range(_ALIGN_CHOICES)]
    return _record(key, image, _conversation("<image>", [*questions, _description(long_caption, dice)]))


def make_instruct_record(world: SceneGenerator, scene: Scene, key: str, image: str, turns: int) -> dict[str, Any]:
    """Return one entry of ``llava_instruct.json``: ``turns`` short questions, or a request for a caption.

    A caption is alone in its conversation, because it would reveal the answers to the questions.
    """
    dice = DeterministicRng("instruct", scene.seed, scene.split, scene.index)
    described = describe_scene(world, scene)
    caption = Question(text=ONE_SENTENCE, answer=plain_caption(described, dice))
    questions = [caption] if dice.chance(_CAPTION) else instruct_questions(described, turns, dice)
    return _record(key, image, _conversation("<image>", questions or [caption]))


def make_text_record(world: SceneGenerator, scene: Scene, long_caption: str, key: str, turns: int) -> dict[str, Any]:
    """Return one entry of ``llava_text.json``, for an LLM without images: a conversation about a short description.

    An LLM that has learned to look up words in a text and to describe it needs only a projector that maps images to
    words. Small LLMs learn it sooner from short questions ("a dog?") than from full sentences, so both occur. Questions
    may repeat, because repeating an answer is the first step of looking up.
    """
    dice = DeterministicRng("text", scene.seed, scene.split, scene.index)
    described = describe_scene(world, scene)
    questions = [_text_question(described, dice) for _ in range(turns)]
    if dice.chance(_TEXT_CAPTION):
        questions[: (turns + 1) // 2] = [_description(long_caption, dice)]
    return _record(key, None, _conversation(terse_description(described, dice), questions))


def _description(long_caption: str, dice: DeterministicRng) -> Question:
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    return Question(text=dice.choice(_DESCRIBE), answer=summary)


def _text_question(described: SceneDescription, dice: DeterministicRng) -> Question:
    """Ask which of two objects is present, or whether one is, in short or full form; or ask for other content."""
    words = sign_questions(described)
    if words and dice.chance(_WORD):
        return dice.choice(words)
    if dice.chance(_CHOICE):
        return _choice(described, described.groups, dice)[1]
    told = caption_answerable_questions(described)
    if told and dice.chance(_TOLD):
        return dice.choice(told)
    kind, answer = _presence(described, described.groups, 0, dice)
    return Question(
        text=f"{with_article(kind.name)}?" if dice.chance(_TERSE) else existence_question(kind), answer=answer
    )


def _conversation(picture: str, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Return the questions as messages; as in LLaVA's data, only the first states how short the answers are."""
    said: list[tuple[str, str]] = []
    for question in questions:
        short = "" if said or question.text in _DESCRIBE else SHORT_ANSWER
        said += [("human", question.text if said else f"{picture}\n{question.text}{short}")]
        said += [("gpt", question.answer)]
    return said


def instruct_questions(described: SceneDescription, count: int, dice: DeterministicRng) -> list[Question]:
    """Return short questions without repetition; yes is as likely as no.

    POPE's questions and choices name an object at most once, so that one does not answer the other.
    """
    facts, openly = yes_no_pairs(described, dice), open_questions(described, dice)
    present = dice.shuffled(described.groups)
    words = sign_questions(described)
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


def _existence(
    described: SceneDescription, present: Sequence[ObjectGroup], dice: DeterministicRng
) -> tuple[ObjectClass, Question]:
    """Return POPE's question with its object class; half of the absent classes are similar to present ones."""
    kind, answer = _presence(described, present, 500, dice)
    return kind, Question(text=existence_question(kind), answer=answer)


def _presence(
    described: SceneDescription, present: Sequence[ObjectGroup], alike: int, dice: DeterministicRng
) -> tuple[ObjectClass, str]:
    """Return one of ``present`` with yes, or an absent class with no.

    ``alike`` per mille of the absent ones are of a category that is present, as in POPE's adversarial questions.
    """
    if dice.chance(500):
        return dice.choice(present).kind, "yes"
    absent = absent_classes(described)
    categories = {group.kind.category for group in described.groups}
    near = [kind for kind in absent if kind.category in categories]
    return dice.choice(near if near and dice.chance(alike) else absent), "no"


def _choice(
    described: SceneDescription, present: Sequence[ObjectGroup], dice: DeterministicRng
) -> tuple[ObjectClass, Question]:
    """Ask which of two objects is present, as GQA's questions of type "choose" do; with the present one."""
    there, absent = dice.choice(present).kind, dice.choice(absent_classes(described))
    text = " or ".join(with_article(kind.name) for kind in dice.shuffled([there, absent]))
    return there, Question(
        text=f"{text}?" if dice.chance(_TERSE) else f"Is there {text} in the image?", answer=there.name
    )


def _one_side(pair: YesNoPair, dice: DeterministicRng) -> Question:
    return Question(text=pair.yes, answer="yes") if dice.chance(500) else Question(text=pair.no, answer="no")


def _record(key: str, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    picture = {} if image is None else {"image": image}
    return {"id": key, **picture, "conversations": [{"from": who, "value": text} for who, text in turns]}
