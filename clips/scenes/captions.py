"""All texts about a scene: a web caption, a long synthetic caption, and human-like captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from clips.scenes.mllm_captions import MllmCaptionStyle, mllm_caption
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
from clips.scenes.synthetic_captions import faithful_caption, noun_with_size
from clips.scenes.web_captions import web_caption
from clips.scenes.world import Scene, SceneGenerator

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


def human_captions(described: SceneDescription, dice: DeterministicRng) -> list[str]:
    """Return five captions as different people write them: short, partial, each in its own style."""
    styles: list[Callable[[SceneDescription, DeterministicRng], str]] = [
        _everything,
        _everything,
        _placed,
        _bare,
        _partial,
    ]
    if any(found for _, _, found in _pairs(described)):
        styles.append(_related)
    if described.scene.sign:
        styles.append(_with_sign)
    return [_handwritten(style(described, dice), dice) for style in dice.sample(styles, NUM_HUMAN_CAPTIONS)]


def plain_caption(described: SceneDescription, dice: DeterministicRng) -> str:
    """Return one plain sentence that names everything: a good answer to a request for a caption."""
    return _everything(described, dice)


def terse_description(described: SceneDescription, dice: DeterministicRng) -> str:
    """Name the content of the image in as few words as possible."""
    things = [group.some(color=True) for group in dice.shuffled(described.groups)]
    if described.scene.sign:
        things.append(f'a sign with the word "{described.scene.sign.word.lower()}"')
    return f"{join_with_and(things)} {described.background.where}"


def _handwritten(words: str, dice: DeterministicRng) -> str:
    words = words[0].upper() + words[1:] if dice.chance(350) else words
    return words + "." if dice.chance(300) else words


def _everything(described: SceneDescription, dice: DeterministicRng) -> str:
    with_size = dice.chance(350)
    things = [
        noun_with_size(group, dice) if with_size else group.some(color=dice.chance(650))
        for group in dice.shuffled(described.groups)
    ]
    return f"{join_with_and(things)} {described.background.where}"


def _placed(described: SceneDescription, dice: DeterministicRng) -> str:
    parts = [
        f"{group.some(color=dice.chance(400))} {LOCATION_PHRASES[group.place][0]}" if group.count == 1 else group.some()
        for group in dice.shuffled(described.groups)[:3]
    ]
    return join_with_and(parts)


def _bare(described: SceneDescription, dice: DeterministicRng) -> str:
    things = join_with_and([group.some() for group in dice.shuffled(described.groups)])
    return (
        dice.choice(("a picture of {}", "there is {}", "{} next to each other", "an image with {}")).format(things)
        if len(described.groups) > 1
        else dice.choice(("a picture of {}", "just {}", "an image with {}")).format(
            f"{things} {described.background.where}"
        )
    )


def _partial(described: SceneDescription, dice: DeterministicRng) -> str:
    things = [group.some(color=True) for group in dice.shuffled(described.groups)[:2]]
    if dice.chance(500):
        return f"{described.background.description} with {join_with_and(things)}"
    return f"{join_with_and(things)} {described.background.where}"


def _pairs(described: SceneDescription) -> list[tuple[ObjectGroup, ObjectGroup, str | None]]:
    return [
        (first, second, group_relation(first, second))
        for first in described.groups
        for second in described.groups
        if first is not second
    ]


def _related(described: SceneDescription, dice: DeterministicRng) -> str:
    first, second, found = dice.choice([pair for pair in _pairs(described) if pair[2]])
    assert found is not None
    clear = {"left": "left of", "right": "right of"}.get(found, RELATIONS[found])
    return f"{noun_with_size(first, dice)} {clear} {second.some(color=True)}"


def _with_sign(described: SceneDescription, dice: DeterministicRng) -> str:
    assert described.scene.sign is not None
    word = described.scene.sign.word
    things = join_with_and([group.some(color=dice.chance(400)) for group in described.groups[:3]])
    return dice.choice((f"a sign that says {word.lower()} and {things}", f'{things} and a "{word}" sign'))
