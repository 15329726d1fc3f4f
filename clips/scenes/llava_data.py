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


def make_align_record(world: SceneGenerator, scene: Scene, long_caption: str, key: str, image: str) -> dict[str, Any]:
    """Return one entry of ``llava_align.json``: which of two objects is present, a few times, then a summary.

    The questions make the projector produce words that the frozen LLM can look up.
    """
    rng = DeterministicRng("align", scene.seed, scene.split, scene.index)
    described = describe_scene(world, scene)
    questions = [_choice(described, described.groups, rng)[1] for _ in range(_ALIGN_CHOICES)]
    return _record(key, image, _conversation("<image>", [*questions, _description(long_caption, rng)]))


def make_instruct_record(world: SceneGenerator, scene: Scene, key: str, image: str, turns: int) -> dict[str, Any]:
    """Return one entry of ``llava_instruct.json``: ``turns`` short questions, or a request for a caption.

    A caption is the only message pair of its conversation, because it would reveal the answers to questions.
    """
    rng = DeterministicRng("instruct", scene.seed, scene.split, scene.index)
    described = describe_scene(world, scene)
    caption = Question(text=ONE_SENTENCE, answer=plain_caption(described, rng))
    questions = [caption] if rng.chance(_CAPTION) else instruct_questions(described, turns, rng)
    return _record(key, image, _conversation("<image>", questions or [caption]))


def make_text_record(world: SceneGenerator, scene: Scene, long_caption: str, key: str, turns: int) -> dict[str, Any]:
    """Return one entry of ``llava_text.json``, for an LLM without images: a conversation about a short description.

    An LLM that has learned to look up words in a text and to describe it needs only a projector that maps images to
    words. Small LLMs learn it sooner from short questions ("a dog?") than from full sentences, so both occur. Questions
    may repeat, because repeating an answer is the first step of looking up.
    """
    rng = DeterministicRng("text", scene.seed, scene.split, scene.index)
    described = describe_scene(world, scene)
    questions = [_text_question(described, rng) for _ in range(turns)]
    if rng.chance(_TEXT_CAPTION):
        questions[: (turns + 1) // 2] = [_description(long_caption, rng)]
    return _record(key, None, _conversation(terse_description(described, rng), questions))


def _description(long_caption: str, rng: DeterministicRng) -> Question:
    summary = long_caption.split(". ")[0].rstrip(".") + "."
    return Question(text=rng.choice(_DESCRIBE), answer=summary)


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
    text = f"{with_article(kind.name)}?" if rng.chance(_TERSE) else existence_question(kind)
    return Question(text=text, answer=answer)


def _conversation(context: str, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Return the questions as messages; as in LLaVA's data, only the first asks for short answers."""
    messages: list[tuple[str, str]] = []
    for question in questions:
        hint = "" if question.text in _DESCRIBE else SHORT_ANSWER
        text = question.text if messages else f"{context}\n{question.text}{hint}"
        messages += [("human", text), ("gpt", question.answer)]
    return messages


def instruct_questions(described: SceneDescription, count: int, rng: DeterministicRng) -> list[Question]:
    """Return short questions without repetition; yes is as likely as no.

    POPE's questions and choices name an object at most once, so that one does not answer the other.
    """
    pairs, open_ones = yes_no_pairs(described, rng), open_questions(described, rng)
    present = rng.shuffled(described.groups)
    words = sign_questions(described)
    chosen = [rng.choice(words)] if words and rng.chance(700) else []
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        family, question = rng.weighted(tuple(_WEIGHTS), tuple(_WEIGHTS.values())), None
        if family in ("existence", "choice") and present:
            ask = _existence if family == "existence" else _choice
            kind, question = ask(described, present, rng)
            present = [group for group in present if group.kind is not kind]
        elif family == "pair" and pairs:
            question = _one_side(pairs.pop(), rng)
        elif family == "open" and open_ones:
            question = open_ones.pop()
        if question and question.text not in {other.text for other in chosen}:
            chosen.append(question)
    ordered = rng.shuffled(chosen[:count])
    if rng.chance(_EXISTENCE_FIRST):
        ordered.sort(key=lambda question: not question.text.startswith("Is there"))
    return ordered


def _existence(
    described: SceneDescription, present: Sequence[ObjectGroup], rng: DeterministicRng
) -> tuple[ObjectClass, Question]:
    """Return POPE's question with its object class; half of the absent classes are similar to present ones."""
    kind, answer = _presence(described, present, 500, rng)
    return kind, Question(text=existence_question(kind), answer=answer)


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
    text = f"{choice}?" if rng.chance(_TERSE) else f"Is there {choice} in the image?"
    return kind, Question(text=text, answer=kind.name)


def _one_side(pair: YesNoPair, rng: DeterministicRng) -> Question:
    return Question(text=pair.yes, answer="yes") if rng.chance(500) else Question(text=pair.no, answer="no")


def _record(key: str, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    fields = {} if image is None else {"image": image}
    return {"id": key, **fields, "conversations": [{"from": role, "value": text} for role, text in turns]}
