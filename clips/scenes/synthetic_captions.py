"""Long synthetic captions: complete and nearly always true, or with the errors of multimodal models."""

from __future__ import annotations

from dataclasses import dataclass

from clips.errors import UserError
from clips.scenes.colors import OBJECT_COLORS
from clips.scenes.phrases import (
    LOCATION_PHRASES,
    NUMBERS,
    RELATIONS,
    ObjectGroup,
    SceneDescription,
    capitalize_sentence,
    group_relation,
    join_with_and,
    with_article,
)
from clips.scenes.rng import DeterministicRng

_ERROR = 40  # per mille of later sentences that contain an error
_INVENTION = 30  # per mille of long captions that name an absent object
_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}


def faithful_caption(described: SceneDescription, rng: DeterministicRng) -> str:
    """Return three to seven sentences as a multimodal model writes them.

    The first names everything. The later ones give attributes, positions and relations, the words on a sign and the
    background, and sometimes a wrong color or position or an absent object.
    """
    groups = rng.shuffled(described.groups)
    sentences = [summary(described, groups, rng), *_details(groups, rng)]
    if described.scene.sign:
        sentences.append(sign_sentence(described, rng))
    sentences.append(background_sentence(described, rng))
    if len(sentences) < 7 and rng.chance(_INVENTION):
        absent = with_article(rng.choice(described.absent).name)
        sentences.append(capitalize_sentence(f"there is also {absent} in the background"))
    elif len(sentences) < 5 and rng.chance(250):
        sentences.append(generic_sentence(groups, rng))
    return " ".join(sentences)


def noun_with_size(group: ObjectGroup, rng: DeterministicRng, *, color: bool = True) -> str:
    """Return an object with a word for its size: "a tiny red car"."""
    return group.some(size=rng.choice(_SIZE_WORDS[group.size]), color=color)


def summary(described: SceneDescription, groups: list[ObjectGroup], rng: DeterministicRng) -> str:
    """Return the first sentence of a long caption: ``groups`` and their positions."""
    things = join_with_and(
        [noun_with_size(group, rng) if rng.chance(600) else group.some(color=True) for group in groups]
    )
    is_are = "are" if len(groups) > 1 or groups[0].count > 1 else "is"
    pattern = rng.choice(
        (
            "the image features {things} {where}",
            "the image shows {things} {where}",
            "this picture shows {things} {where}",
            "in this image, there {is_are} {things} {where}",
            "the scene depicts {things} {where}",
            "{things} can be seen {where}",
        )
    )
    return capitalize_sentence(pattern.format(things=things, where=described.background.where, is_are=is_are))


def _details(groups: list[ObjectGroup], rng: DeterministicRng) -> list[str]:
    """Describe position and appearance of each object; four or five objects share sentences in pairs."""
    clauses = [object_clause(group, groups, rng) for group in groups]
    if len(clauses) < 4:
        return [capitalize_sentence(words) for words in clauses]
    pairs = [clauses[at : at + 2] for at in range(0, len(clauses), 2)]
    return [capitalize_sentence(", while ".join(pair)) for pair in pairs]


def object_clause(group: ObjectGroup, groups: list[ObjectGroup], rng: DeterministicRng, *, errors: int = _ERROR) -> str:
    """Describe position and appearance of an object, wrong in ``errors`` per mille of the cases."""
    is_wrong = rng.chance(errors)
    location = rng.choice(sorted(LOCATION_PHRASES)) if is_wrong and rng.chance(500) else group.location
    color = rng.choice(list(OBJECT_COLORS)) if is_wrong and location == group.location else group.color
    if group.count > 1:
        looks = f"{group.size} and {color}" if color else group.size
        return rng.choice((f"{group.the()} are {looks}", f"all {NUMBERS[group.count]} {group.noun} are {looks}"))
    others = [(other, group_relation(group, other)) for other in groups if other is not group]
    related = [(other, found) for other, found in others if found]
    where = rng.choice(LOCATION_PHRASES[location])
    if related and rng.chance(700):
        other, found = rng.choice(related)
        where = rng.choice((f"{where}, {RELATIONS[found]} {other.the(color=rng.chance(300))}",
                             f"{RELATIONS[found]} {other.the(color=rng.chance(300))}"))  # fmt: skip
    shade = f"{color} " if color and color not in group.kind.name else ""
    verb = rng.choice(("is", "is located", "is positioned", "is placed", "can be seen"))
    if rng.chance(300):
        return f"the {shade}{group.noun}, which is {group.size}, {verb} {where}"
    return f"the {shade}{group.noun} {verb} {where}"


def sign_sentence(described: SceneDescription, rng: DeterministicRng) -> str:
    """Describe the written word and its position."""
    assert described.scene.sign is not None
    where = rng.choice(LOCATION_PHRASES[described.scene.sign.location])
    pattern = rng.choice(
        (
            'there is a white sign with the word "{word}" on it {where}',
            'a sign {where} reads "{word}"',
            'the word "{word}" is written on a white sign {where}',
        )
    )
    return capitalize_sentence(pattern.format(word=described.scene.sign.word, where=where))


def background_sentence(described: SceneDescription, rng: DeterministicRng) -> str:
    """Describe the background."""
    description, color = described.background.description, described.background.color
    pattern = rng.choice(
        (
            f"the background is plain {color}"
            if described.background.style == "plain"
            else "the background shows {description}",
            "behind {everything} is {description}",
            "the scene is set against {description}",
            "the objects stand out from {description}",
        )
    )
    everything = join_with_and([group.the() for group in described.groups])
    return capitalize_sentence(pattern.format(description=description, everything=everything))


def generic_sentence(groups: list[ObjectGroup], rng: DeterministicRng) -> str:
    """Describe the image in words that fit any image."""
    things = join_with_and([group.the() for group in groups])
    is_are = "are" if len(groups) > 1 or groups[0].count > 1 else "is"
    pattern = rng.choice(
        (
            "overall, {things} {is_are} the main focus of the image",
            "the arrangement of {things} gives the picture a playful look",
            "the picture is simple and draws attention to {things}",
        )
    )
    return capitalize_sentence(pattern.format(things=things, is_are=is_are))


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
    one, two = (with_article(kind.name) for kind in rng.sample(described.absent, 2))
    where = rng.choice(LOCATION_PHRASES[rng.choice(sorted(LOCATION_PHRASES))])
    pattern = rng.choice(_WRONG_ABOUT if rng.chance(_NAMES_OBJECT) else _WRONG)
    return capitalize_sentence(pattern.format(one=one, two=two, where=where, thing=rng.choice(groups).the()))
