"""Long captions with the errors of multimodal models: a summary, then details of decreasing importance.

Modeled on captions of COCO images by models (``scripts/measure_long_captions.py``, docs/evidence.md): three to seven
sentences, five on average; the first names two thirds of the objects that humans mention. Later ones repeat these: four
in five of the second sentences, three in five of the fifth. The ratio of new objects that no human mentions increases:
8 % in the first sentence, 45 % in the second, 90 % in the fifth, as in a caption of another photo. The data do not show
how many of those are wrong and how many only unimportant.
"""

from __future__ import annotations

from dataclasses import dataclass

from clips.errors import UserError
from clips.scenes.phrases import LOCATION_PHRASES, ObjectGroup, SceneDescription, capitalize_sentence, with_article
from clips.scenes.rng import DeterministicRng
from clips.scenes.synthetic_captions import background_sentence, object_clause, sign_sentence, summary

_ALSO_IN_SUMMARY = 500  # per mille of the objects other than the most important one
_NAMES_OBJECT = 500  # per mille of the sentences that add nothing new
_VAGUE = (
    "the scene has a cheerful and lively atmosphere, as if it was meant to make people smile",
    "the arrangement of the elements creates a sense of balance and harmony in the picture",
    "the contrast between the foreground and the background makes the scene visually appealing",
    "there are no people in the scene, and nothing else of note can be seen around it",
    "the colors are bright and well chosen, adding to the overall appeal of the picture",
    "the various elements are placed close to each other, suggesting that they belong together",
)
_VAGUE_ABOUT = (
    "the presence of {thing} conveys a playful mood and invites the viewer to look more closely",
    "the composition is simple, which draws the viewer's attention to {thing}",
    "it is likely that {thing} was drawn as a decoration or as an illustration for a story",
    "the image captures {thing} in a moment that is both ordinary and charming",
    "overall, {thing} can be considered the main focus of the scene, standing out from the rest",
    "the placement of {thing} suggests that the picture is part of a larger set of images",
)
_WRONG = (
    "there is also {one} {where}, partly hidden",
    "in addition, {one} and {two} can be seen in the background",
    "{one} is visible {where}, adding to the scene",
    "nearby, there are {two} and what appears to be {one}",
)
_WRONG_ABOUT = (
    "next to {thing} there is also {one}, partly hidden",
    "in addition to {thing}, {one} and {two} can be seen in the background",
    "{thing} is accompanied by {one}, adding to the scene",
    "behind {thing} there are {two} and what appears to be {one}",
)


@dataclass(frozen=True, kw_only=True)
class MllmCaptionStyle:
    """The style of a multimodal model's captions.

    Args:
        num_details: mean number of sentences after the summary, 2 to 8; a caption has up to two more or fewer.
        error_ratio: ratio of these sentences that name an absent object, or a wrong color or position; more probable in
            later sentences, 0 to 0.5.
    """

    num_details: int = 4
    error_ratio: float = 0.3

    def __post_init__(self) -> None:
        if not 2 <= self.num_details <= 8:
            raise UserError(f"mllm_style.num_details: expected 2 to 8, got {self.num_details}")
        if not 0 <= self.error_ratio <= 0.5:
            raise UserError(f"mllm_style.error_ratio: expected 0 to 0.5, got {self.error_ratio}")


def mllm_caption(described: SceneDescription, rng: DeterministicRng, writer: MllmCaptionStyle) -> str:
    """Return a summary of the important content, then details, later ones less important and more often wrong."""
    groups = sorted(described.groups, key=lambda group: (group.size != "large", -group.count))
    main = [group for number, group in enumerate(groups) if not number or rng.chance(_ALSO_IN_SUMMARY)]
    count = max(1, rng.between(writer.num_details - 2, writer.num_details + 2))
    true = _true_details(described, groups, rng)
    sentences = [summary(described, main, rng)]
    for number in range(count):
        if rng.chance(round(2000 * writer.error_ratio * (number + 1) / (count + 1))):
            sentences.append(_wrong(described, groups, rng))
        else:
            sentences.append(true.pop(0) if true else _vague(groups, rng))
    return " ".join(sentences)


def _true_details(described: SceneDescription, groups: list[ObjectGroup], rng: DeterministicRng) -> list[str]:
    """Return the true facts, the most important first, with vague sentences in between."""
    found = [capitalize_sentence(object_clause(group, groups, rng, errors=0)) for group in groups]
    if described.scene.sign:
        found.append(sign_sentence(described, rng))
    found.append(background_sentence(described, rng))
    for number in range(1, len(found)):
        if rng.chance(300):
            found.insert(number, _vague(groups, rng))
    return found


def _vague(groups: list[ObjectGroup], rng: DeterministicRng) -> str:
    """Return a sentence that fits any image, usually about an object of this one, which it names again."""
    if rng.chance(_NAMES_OBJECT):
        return capitalize_sentence(rng.choice(_VAGUE_ABOUT).format(thing=rng.choice(groups).the()))
    return capitalize_sentence(rng.choice(_VAGUE))


def _wrong(described: SceneDescription, groups: list[ObjectGroup], rng: DeterministicRng) -> str:
    """Return a sentence with a wrong color or position, or about absent objects."""
    if rng.chance(300):
        return capitalize_sentence(object_clause(rng.choice(groups), groups, rng, errors=1000))
    absent = [kind.name for kind in described.world.object_classes if kind.name not in described.kinds]
    one, two = (with_article(name) for name in rng.sample(absent, 2))
    where = rng.choice(LOCATION_PHRASES[rng.choice(sorted(LOCATION_PHRASES))])
    pattern = rng.choice(_WRONG_ABOUT if rng.chance(_NAMES_OBJECT) else _WRONG)
    return capitalize_sentence(pattern.format(one=one, two=two, where=where, thing=rng.choice(groups).the()))
