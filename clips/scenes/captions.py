"""What people and models write about a scene: web captions, long synthetic captions, human captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from clips.scenes.colours import PAINTS
from clips.scenes.dice import Dice
from clips.scenes.phrases import (
    NUMBERS,
    PLACES,
    RELATIONS,
    Described,
    Group,
    a,
    describe,
    group_relation,
    listed,
    sentence,
)
from clips.scenes.webtext import web_caption
from clips.scenes.world import Scene, World

HUMAN_CAPTIONS = 5
_SLIP = 40  # per mille of later sentences that get something wrong
_INVENTION = 30  # per mille of long captions that name a thing which is not there
_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Everything that is written about a scene.

    Args:
        web_caption: short and noisy.
        synthetic_caption: several sentences as a model writes them.
        captions: five, as people write them.
    """

    web_caption: str
    synthetic_caption: str
    captions: list[str]


def captions_of(world: World, scene: Scene) -> Captions:
    """The captions of a scene."""
    described = describe(world, scene)
    key = (scene.seed, scene.split, scene.index)
    return Captions(
        web_caption=web_caption(described, Dice("web caption", *key)),
        synthetic_caption=synthetic_caption(described, Dice("synthetic caption", *key)),
        captions=human_captions(described, Dice("human captions", *key)),
    )


def synthetic_caption(described: Described, dice: Dice) -> str:
    """Three to seven sentences as a multimodal model writes them.

    The first names everything. The later ones give attributes, places and relations, the words on a
    sign and the background, and now and then get a colour or a place wrong or invent a thing.
    """
    groups = dice.shuffled(described.groups)
    sentences = [_summary(described, groups, dice), *_details(groups, dice)]
    if described.scene.sign:
        where = dice.choice(PLACES[described.scene.sign.place])
        pattern = dice.choice(
            (
                'there is a white sign with the word "{word}" on it {where}',
                'a sign {where} reads "{word}"',
                'the word "{word}" is written on a white sign {where}',
            )
        )
        sentences.append(sentence(pattern.format(word=described.scene.sign.word, where=where)))
    sentences.append(_setting(described, dice))
    if len(sentences) < 7 and dice.chance(_INVENTION):
        absent = [kind for kind in described.world.inhabitants if kind.name not in described.kinds]
        sentences.append(sentence(f"there is also {a(dice.choice(absent).name)} in the background"))
    elif len(sentences) < 5 and dice.chance(250):
        sentences.append(_impression(groups, dice))
    return " ".join(sentences)


def _sized(group: Group, dice: Dice, *, colour: bool = True) -> str:
    return group.some(size=dice.choice(_SIZE_WORDS[group.size]), colour=colour)


def _summary(described: Described, groups: list[Group], dice: Dice) -> str:
    things = listed([_sized(group, dice) if dice.chance(600) else group.some(colour=True) for group in groups])
    is_are = "are" if len(groups) > 1 or groups[0].count > 1 else "is"
    pattern = dice.choice(
        (
            "the image features {things} {where}",
            "the image shows {things} {where}",
            "this picture shows {things} {where}",
            "in this image, there {is_are} {things} {where}",
            "the scene depicts {things} {where}",
            "{things} can be seen {where}",
        )
    )
    return sentence(pattern.format(things=things, where=described.background.where, is_are=is_are))


def _details(groups: list[Group], dice: Dice) -> list[str]:
    """Where each thing is and what it looks like; four or five things share sentences in pairs."""
    clauses = [_clause(group, groups, dice) for group in groups]
    if len(clauses) < 4:
        return [sentence(clause) for clause in clauses]
    pairs = [clauses[at : at + 2] for at in range(0, len(clauses), 2)]
    return [sentence(", while ".join(pair)) for pair in pairs]


def _clause(group: Group, groups: list[Group], dice: Dice) -> str:
    slip = dice.chance(_SLIP)
    place = dice.choice(sorted(PLACES)) if slip and dice.chance(500) else group.place
    colour = dice.choice(list(PAINTS)) if slip and place == group.place else group.colour
    if group.count > 1:
        looks = f"{group.size} and {colour}" if colour else group.size
        return dice.choice((f"{group.the()} are {looks}", f"all {NUMBERS[group.count]} {group.noun} are {looks}"))
    others = [(other, group_relation(group, other)) for other in groups if other is not group]
    related = [(other, found) for other, found in others if found]
    where = dice.choice(PLACES[place])
    if related and dice.chance(700):
        other, found = dice.choice(related)
        where = dice.choice((f"{where}, {RELATIONS[found]} {other.the(colour=dice.chance(300))}",
                             f"{RELATIONS[found]} {other.the(colour=dice.chance(300))}"))  # fmt: skip
    shade = f"{colour} " if colour and colour not in group.kind.name else ""
    verb = dice.choice(("is", "is located", "is positioned", "is placed", "can be seen"))
    if dice.chance(300):
        return f"the {shade}{group.noun}, which is {group.size}, {verb} {where}"
    return f"the {shade}{group.noun} {verb} {where}"


def _setting(described: Described, dice: Dice) -> str:
    description, colour = described.background.description, described.background.colour
    pattern = dice.choice(
        (
            f"the background is plain {colour}"
            if described.background.style == "plain"
            else "the background shows {description}",
            "behind {everything} is {description}",
            "the scene is set against {description}",
            "the objects stand out from {description}",
        )
    )
    everything = listed([group.the() for group in described.groups])
    return sentence(pattern.format(description=description, everything=everything))


def _impression(groups: list[Group], dice: Dice) -> str:
    things = listed([group.the() for group in groups])
    is_are = "are" if len(groups) > 1 or groups[0].count > 1 else "is"
    pattern = dice.choice(
        (
            "overall, {things} {is_are} the main focus of the image",
            "the arrangement of {things} gives the picture a playful look",
            "the picture is simple and draws attention to {things}",
        )
    )
    return sentence(pattern.format(things=things, is_are=is_are))


def human_captions(described: Described, dice: Dice) -> list[str]:
    """Five captions as different people write them: short, partial, each in its own style."""
    styles: list[Callable[[Described, Dice], str]] = [_everything, _everything, _placed, _bare, _partial]
    if any(found for _, _, found in _pairs(described)):
        styles.append(_related)
    if described.scene.sign:
        styles.append(_with_sign)
    return [_handwritten(style(described, dice), dice) for style in dice.sample(styles, HUMAN_CAPTIONS)]


def plain_caption(described: Described, dice: Dice) -> str:
    """One plain sentence that names everything: a good answer to a request for a caption."""
    return _everything(described, dice)


def in_words(described: Described, dice: Dice) -> str:
    """What is in the picture, in as few words as possible."""
    things = [group.some(colour=True) for group in dice.shuffled(described.groups)]
    if described.scene.sign:
        things.append(f'a sign with the word "{described.scene.sign.word.lower()}"')
    return f"{listed(things)} {described.background.where}"


def _handwritten(words: str, dice: Dice) -> str:
    words = words[0].upper() + words[1:] if dice.chance(350) else words
    return words + "." if dice.chance(300) else words


def _everything(described: Described, dice: Dice) -> str:
    sized = dice.chance(350)
    things = [
        _sized(group, dice) if sized else group.some(colour=dice.chance(650))
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
    return f"{_sized(first, dice)} {clear} {second.some(colour=True)}"


def _with_sign(described: Described, dice: Dice) -> str:
    assert described.scene.sign is not None
    word = described.scene.sign.word
    things = listed([group.some(colour=dice.chance(400)) for group in described.groups[:3]])
    return dice.choice((f"a sign that says {word.lower()} and {things}", f'{things} and a "{word}" sign'))
