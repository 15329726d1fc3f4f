"""All texts about a scene: a noisy web caption, a long synthetic caption, and human-like captions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from clips.scenes.phrases import (
    LOCATION_PHRASES,
    RELATIONS,
    ObjectGroup,
    SceneDescription,
    describe_scene,
    group_relation,
    join_with_and,
)
from clips.scenes.rng import DeterministicRng
from clips.scenes.synthetic_captions import MllmCaptionStyle, faithful_caption, mllm_caption, noun_with_size
from clips.scenes.world import Scene, SceneGenerator

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
        return _framed(rng.choice(described.absent).name, rng)
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


NUM_HUMAN_CAPTIONS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneCaptions:
    """All texts about a scene.

    Args:
        web_caption: short and noisy.
        synthetic_caption: several sentences as a model writes them.
        captions: five, as humans write them.
    """

    web_caption: str
    synthetic_caption: str
    captions: list[str]


def make_captions(world: SceneGenerator, scene: Scene, model: MllmCaptionStyle | None = None) -> SceneCaptions:
    """Return the captions of a scene; the long one complete and true, or as ``model`` writes it."""
    described = describe_scene(world, scene)
    key = (scene.seed, scene.split, scene.index)
    return SceneCaptions(
        web_caption=web_caption(described, DeterministicRng("web caption", *key)),
        synthetic_caption=(
            faithful_caption(described, DeterministicRng("synthetic caption", *key))
            if model is None
            else mllm_caption(described, DeterministicRng("mllm caption", *key), model)
        ),
        captions=human_captions(described, DeterministicRng("human captions", *key)),
    )


def human_captions(described: SceneDescription, rng: DeterministicRng) -> list[str]:
    """Return five captions as different people write them: short, partial, each in its own style."""
    styles: list[Callable[[SceneDescription, DeterministicRng], str]]
    styles = [plain_caption, plain_caption, _placed, _bare, _partial]
    if _related_pairs(described):
        styles.append(_related)
    if described.scene.sign:
        styles.append(_with_sign)
    return [_handwritten(style(described, rng), rng) for style in rng.sample(styles, NUM_HUMAN_CAPTIONS)]


def plain_caption(described: SceneDescription, rng: DeterministicRng) -> str:
    """Return one plain sentence that names all objects."""
    with_size = rng.chance(350)
    things = [
        noun_with_size(group, rng) if with_size else group.some(color=rng.chance(650))
        for group in rng.shuffled(described.groups)
    ]
    return f"{join_with_and(things)} {described.background.where}"


def terse_description(described: SceneDescription, rng: DeterministicRng) -> str:
    """Name the content of the image in as few words as possible."""
    things = [group.some(color=True) for group in rng.shuffled(described.groups)]
    if described.scene.sign:
        things.append(f'a sign with the word "{described.scene.sign.word.lower()}"')
    return f"{join_with_and(things)} {described.background.where}"


def _handwritten(words: str, rng: DeterministicRng) -> str:
    words = words[0].upper() + words[1:] if rng.chance(350) else words
    return words + "." if rng.chance(300) else words


def _placed(described: SceneDescription, rng: DeterministicRng) -> str:
    parts = [
        f"{group.some(color=rng.chance(400))} {LOCATION_PHRASES[group.location][0]}"
        if group.count == 1
        else group.some()
        for group in rng.shuffled(described.groups)[:3]
    ]
    return join_with_and(parts)


def _bare(described: SceneDescription, rng: DeterministicRng) -> str:
    things = join_with_and([group.some() for group in rng.shuffled(described.groups)])
    if len(described.groups) > 1:
        return rng.choice(("a picture of {}", "there is {}", "{} next to each other", "an image with {}")).format(
            things
        )
    where = described.background.where
    return rng.choice(("a picture of {}", "just {}", "an image with {}")).format(f"{things} {where}")


def _partial(described: SceneDescription, rng: DeterministicRng) -> str:
    things = [group.some(color=True) for group in rng.shuffled(described.groups)[:2]]
    if rng.chance(500):
        return f"{described.background.description} with {join_with_and(things)}"
    return f"{join_with_and(things)} {described.background.where}"


def _related_pairs(described: SceneDescription) -> list[tuple[ObjectGroup, ObjectGroup, str]]:
    return [
        (first, second, relation)
        for first, second in itertools.permutations(described.groups, 2)
        if (relation := group_relation(first, second))
    ]


def _related(described: SceneDescription, rng: DeterministicRng) -> str:
    first, second, relation = rng.choice(_related_pairs(described))
    short = {"left": "left of", "right": "right of"}.get(relation, RELATIONS[relation])
    return f"{noun_with_size(first, rng)} {short} {second.some(color=True)}"


def _with_sign(described: SceneDescription, rng: DeterministicRng) -> str:
    assert described.scene.sign is not None
    word = described.scene.sign.word
    things = join_with_and([group.some(color=rng.chance(400)) for group in described.groups[:3]])
    return rng.choice((f"a sign that says {word.lower()} and {things}", f'{things} and a "{word}" sign'))
