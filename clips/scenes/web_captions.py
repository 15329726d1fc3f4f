"""Noisy web captions: alt texts as crawled, mostly about one or two objects of the image, sometimes unrelated."""

from __future__ import annotations

from clips.scenes.phrases import ObjectGroup, SceneDescription, join_with_and
from clips.scenes.rng import DeterministicRng

_STYLES = ("one", "two", "all", "keywords", "sign", "junk", "wrong")
_WEIGHTS = (20, 34, 22, 8, 4, 8, 4)
_BACKGROUND = 350  # per mille of the captions that name objects

_FRAMES = (
    "{}",
    "{}",
    "{}",
    "{} photo",
    "{} | stock image",
    "{} clipart",
    "{} - free download",
    "{} vector illustration",
    "cute {} sticker",
    "{} wallpaper HD",
    "{} (pack of {n})",
    "{} | Buy Online",
    "Amazing {}!!",
    "{} #{n}",
    "my {}",
    "{} icon PNG",
    "Best {} 20{n}",
)
_JUNK = (
    "IMG_{n}{n} | buy now",
    "DSC0{n}{n}.jpg",
    "image {n} of {n}",
    "Free shipping worldwide - best price",
    "click to enlarge",
    "Pin on ideas for the weekend",
    "screenshot 20{n}-0{d}-1{d}",
    "thumbnail",
    "Lovely day out with the family",
    "untitled-{n}",
    "product photo, sold out",
    "Size guide and delivery",
)


def web_caption(described: SceneDescription, dice: DeterministicRng) -> str:
    """Return the alt text of a scene on some web page."""
    style = dice.weighted(_STYLES, _WEIGHTS)
    groups = dice.shuffled(described.groups)
    if style == "sign" and described.scene.sign:
        return _framed(f"{described.scene.sign.word} sign", dice)
    if style == "junk":
        return dice.choice(_JUNK).format(n=dice.between(10, 99), d=dice.between(1, 9))
    if style == "wrong":
        absent = [kind.name for kind in described.world.inhabitants if kind.name not in described.kinds]
        return _framed(dice.choice(absent), dice)
    if style == "keywords":
        return _keywords(groups, dice)
    wanted = {"one": 1, "two": 2}.get(style, len(groups))
    names = [_named(group, dice) for group in groups[:wanted]]
    if dice.chance(_BACKGROUND):
        return _framed(f"{join_with_and(names)} {described.background.where}", dice)
    return _framed(dice.choice((" ", ", ")).join(names) if dice.chance(300) else join_with_and(names), dice)


def _named(group: ObjectGroup, dice: DeterministicRng) -> str:
    words = group.adjectives(color=dice.chance(350))
    return words.title() if dice.chance(150) else words


def _keywords(groups: list[ObjectGroup], dice: DeterministicRng) -> str:
    """Return the tags of a shop or an icon site: the name among related words."""
    tags = []
    for group in groups[:2]:
        tags += [group.kind.name, *dice.sample(group.kind.keywords, 2), group.kind.category]
    return ", ".join(dice.shuffled(list(dict.fromkeys(tags))))


def _framed(words: str, dice: DeterministicRng) -> str:
    return dice.choice(_FRAMES).format(words, n=dice.between(10, 29))
