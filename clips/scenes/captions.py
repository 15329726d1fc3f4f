"""All texts about a scene: a web caption, a long synthetic caption, and human-like captions."""

from __future__ import annotations

import dataclasses
import itertools
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
