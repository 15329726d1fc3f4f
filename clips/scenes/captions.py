"""All texts about a scene: a web caption, a long synthetic caption, and human-like captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from clips.scenes.dice import Dice
from clips.scenes.longtext import complete_caption, sized
from clips.scenes.mllmtext import MllmWriter, mllm_caption
from clips.scenes.phrases import PLACES, RELATIONS, Described, Group, describe, group_relation, listed
from clips.scenes.webtext import web_caption
from clips.scenes.world import Scene, World

HUMAN_CAPTIONS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """All texts about a scene.

    Args:
        web_caption: short and noisy.
        synthetic_caption: several sentences as a model writes them.
        captions: five, as humans write them.
    """

    web_caption: str
    synthetic_caption: str
    captions: list[str]


def captions_of(world: World, scene: Scene, model: MllmWriter | None = None) -> Captions:
    """Return the captions of a scene; the long one complete and true, or as ``model`` writes it."""
    described = describe(world, scene)
    key = (scene.seed, scene.split, scene.index)
    return Captions(
        web_caption=web_caption(described, Dice("web caption", *key)),
        synthetic_caption=(
            complete_caption(described, Dice("synthetic caption", *key))
            if model is None
            else mllm_caption(described, Dice("mllm caption", *key), model)
        ),
        captions=human_captions(described, Dice("human captions", *key)),
    )


def human_captions(described: Described, dice: Dice) -> list[str]:
    """Return five captions as different people write them: short, partial, each in its own style."""
    styles: list[Callable[[Described, Dice], str]] = [_everything, _everything, _placed, _bare, _partial]
    if any(found for _, _, found in _pairs(described)):
        styles.append(_related)
    if described.scene.sign:
        styles.append(_with_sign)
    return [_handwritten(style(described, dice), dice) for style in dice.sample(styles, HUMAN_CAPTIONS)]


def plain_caption(described: Described, dice: Dice) -> str:
    """Return one plain sentence that names everything: a good answer to a request for a caption."""
    return _everything(described, dice)


def in_words(described: Described, dice: Dice) -> str:
    """Name the content of the image in as few words as possible."""
    things = [group.some(colour=True) for group in dice.shuffled(described.groups)]
    if described.scene.sign:
        things.append(f'a sign with the word "{described.scene.sign.word.lower()}"')
    return f"{listed(things)} {described.background.where}"


def _handwritten(words: str, dice: Dice) -> str:
    words = words[0].upper() + words[1:] if dice.chance(350) else words
    return words + "." if dice.chance(300) else words


def _everything(described: Described, dice: Dice) -> str:
    with_size = dice.chance(350)
    things = [
        sized(group, dice) if with_size else group.some(colour=dice.chance(650))
        for group in dice.shuffled(described.groups)
    ]
    return f"{listed(things)} {described.background.where}"


def _placed(described: Described, dice: Dice) -> str:
    parts = [
        f"{group.some(colour=dice.chance(400))} {PLACES[group.place][0]}" if group.count == 1 else group.some()
        for group in dice.shuffled(described.groups)[:3]
    ]
    return listed(parts)


def _bare(described: Described, dice: Dice) -> str:
    things = listed([group.some() for group in dice.shuffled(described.groups)])
    return (
        dice.choice(("a picture of {}", "there is {}", "{} next to each other", "an image with {}")).format(things)
        if len(described.groups) > 1
        else dice.choice(("a picture of {}", "just {}", "an image with {}")).format(
            f"{things} {described.background.where}"
        )
    )


def _partial(described: Described, dice: Dice) -> str:
    things = [group.some(colour=True) for group in dice.shuffled(described.groups)[:2]]
    if dice.chance(500):
        return f"{described.background.description} with {listed(things)}"
    return f"{listed(things)} {described.background.where}"


def _pairs(described: Described) -> list[tuple[Group, Group, str | None]]:
    return [
        (first, second, group_relation(first, second))
        for first in described.groups
        for second in described.groups
        if first is not second
    ]


def _related(described: Described, dice: Dice) -> str:
    first, second, found = dice.choice([pair for pair in _pairs(described) if pair[2]])
    assert found is not None
    clear = {"left": "left of", "right": "right of"}.get(found, RELATIONS[found])
    return f"{sized(first, dice)} {clear} {second.some(colour=True)}"


def _with_sign(described: Described, dice: Dice) -> str:
    assert described.scene.sign is not None
    word = described.scene.sign.word
    things = listed([group.some(colour=dice.chance(400)) for group in described.groups[:3]])
    return dice.choice((f"a sign that says {word.lower()} and {things}", f'{things} and a "{word}" sign'))
