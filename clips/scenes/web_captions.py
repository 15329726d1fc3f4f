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


def web_caption(described: SceneDescription, rng: DeterministicRng) -> str:
    """Return the alt text of a scene on some web page."""
    style = rng.weighted(_STYLES, _WEIGHTS)
    groups = rng.shuffled(described.groups)
    if style == "sign" and described.scene.sign:
        return _framed(f"{described.scene.sign.word} sign", rng)
    if style == "junk":
        return rng.choice(_JUNK).format(n=rng.between(10, 99), d=rng.between(1, 9))
    if style == "wrong":
        absent = [kind.name for kind in described.world.object_classes if kind.name not in described.kinds]
        return _framed(rng.choice(absent), rng)
    if style == "keywords":
        return _keywords(groups, rng)
    count = {"one": 1, "two": 2}.get(style, len(groups))
    names = [_named(group, rng) for group in groups[:count]]
    if rng.chance(_BACKGROUND):
        return _framed(f"{join_with_and(names)} {described.background.where}", rng)
    return _framed(rng.choice((" ", ", ")).join(names) if rng.chance(300) else join_with_and(names), rng)


def _named(group: ObjectGroup, rng: DeterministicRng) -> str:
    words = group.adjectives(color=rng.chance(350))
    return words.title() if rng.chance(150) else words


def _keywords(groups: list[ObjectGroup], rng: DeterministicRng) -> str:
    """Return the tags of a shop or an icon site: the name among related words."""
    tags = []
    for group in groups[:2]:
        tags += [group.kind.name, *rng.sample(group.kind.keywords, 2), group.kind.category]
    return ", ".join(rng.shuffled(list(dict.fromkeys(tags))))


def _framed(words: str, rng: DeterministicRng) -> str:
    return rng.choice(_FRAMES).format(words, n=rng.between(10, 29))
