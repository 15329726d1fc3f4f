"""Texts about a scene: a noisy web caption, a long synthetic one, human-like captions, and their grammar."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

from scene_drawing import OBJECT_COLORS, Background, ObjectClass, Sprites, find_background
from scene_rng import DeterministicRng
from scene_world import Box, Scene, SceneGenerator, box_center, location_of

NUMBERS = ("no", "one", "two", "three", "four", "five")
LOCATION_PHRASES = {
    "top left": ("in the top left corner", "at the upper left"),
    "top": ("at the top", "in the upper part of the image"),
    "top right": ("in the top right corner", "at the upper right"),
    "left": ("on the left", "on the left side"),
    "center": ("in the middle", "in the center"),
    "right": ("on the right", "on the right side"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom": ("at the bottom", "in the lower part of the image"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
}
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_MIN_OFFSET, _MIN_SLOPE = 160, 3  # of a clear relation; the slope in halves

# ---------------------------------------------------------------- a scene and its objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectGroup:
    """The objects of one class in a scene, with a box each; they share color and size, as in SceneObject."""

    kind: ObjectClass
    color: str | None
    painted: bool
    size: str
    boxes: tuple[Box, ...]

    @property
    def count(self) -> int:
        """The number of objects."""
        return len(self.boxes)

    @property
    def noun(self) -> str:
        """The name without article, in the plural for several."""
        return self.kind.name if self.count == 1 else self.kind.plural

    def adjectives(self, *, size: str = "", color: bool = False) -> str:
        """Return the size word, the color and the noun."""
        shade = self.color if color and self.color and self.color not in self.kind.name else ""
        return " ".join(word for word in (size, shade, self.noun) if word)

    def some(self, *, size: str = "", color: bool = False) -> str:
        """Return an indefinite noun phrase: "a small red car", "two cats"."""
        words = self.adjectives(size=size, color=color)
        return with_article(words) if self.count == 1 else f"{NUMBERS[self.count]} {words}"

    def the(self, *, color: bool = False) -> str:
        """Return a definite noun phrase: "the red car", "the two cats"."""
        words = self.adjectives(color=color)
        return f"the {words}" if self.count == 1 else f"the {NUMBERS[self.count]} {words}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneDescription:
    """A scene with the data needed to describe it; its groups are in the order in which the classes were sampled."""

    world: SceneGenerator
    scene: Scene
    groups: tuple[ObjectGroup, ...]
    background: Background

    @functools.cached_property
    def kinds(self) -> set[str]:
        """The names of the present classes."""
        return {group.kind.name for group in self.groups}

    @property
    def absent(self) -> list[ObjectClass]:
        """The classes that are not in the image."""
        return [kind for kind in self.world.object_classes if kind.name not in self.kinds]


def describe_scene(world: SceneGenerator, scene: Scene) -> SceneDescription:
    """Group a scene's objects by class."""
    groups = []
    for name in dict.fromkeys(item.kind for item in scene.objects):
        items = [item for item in scene.objects if item.kind == name]
        looks = {"color": items[0].color, "painted": items[0].painted, "size": items[0].size}
        kind, boxes = Sprites.load().by_name[name], tuple(item.box for item in items)
        groups.append(ObjectGroup(kind=kind, boxes=boxes, **looks))  # type: ignore[arg-type]
    background = find_background(scene.background)
    return SceneDescription(world=world, scene=scene, groups=tuple(groups), background=background)


def with_article(words: str) -> str:
    """Add the indefinite article."""
    start = words.lower()
    vowel = start[0] in "aeiou" and not start.startswith(("uni", "use", "eu"))
    return f"{'an' if vowel or start.startswith('hour') else 'a'} {words}"


def join_with_and(parts: Sequence[str]) -> str:
    """Return "x", "x and y", or "x, y and z"."""
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capitalize_sentence(words: str) -> str:
    """Add a capital and a full stop."""
    return words[0].upper() + words[1:] + "."


def relation(first: Box, second: Box) -> str | None:
    """Return the relation of ``first`` to ``second`` if it is clear: left, right, above, below; else None."""
    (x1, y1), (x2, y2) = box_center(first), box_center(second)
    dx, dy = x1 - x2, y1 - y2
    if abs(dx) >= _MIN_OFFSET and 2 * abs(dx) >= _MIN_SLOPE * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= _MIN_OFFSET and 2 * abs(dy) >= _MIN_SLOPE * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def group_relation(first: ObjectGroup, second: ObjectGroup) -> str | None:
    """Return the `relation` of two classes that occur once each."""
    return relation(first.boxes[0], second.boxes[0]) if first.count == second.count == 1 else None


# ---------------------------------------------------------------- captions


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


def make_captions(world: SceneGenerator, scene: Scene, *, mllm: bool = False) -> SceneCaptions:
    """Return the captions of a scene; the long one complete and nearly always true, or as multimodal models write."""
    described = describe_scene(world, scene)
    write, purpose = (mllm_caption, "mllm caption") if mllm else (faithful_caption, "synthetic caption")
    return SceneCaptions(
        web_caption=web_caption(described, scene.rng("web caption")),
        synthetic_caption=write(described, scene.rng(purpose)),
        captions=human_captions(described, scene.rng("human captions")),
    )


_WEB_STYLES = {"one": 20, "two": 34, "all": 22, "keywords": 8, "sign": 4, "junk": 8, "wrong": 4}
_WEB_BACKGROUND = 350  # per mille of the captions that name objects
_FRAMES = (
    "{}", "{}", "{}", "{} photo", "{} | stock image", "{} clipart", "{} - free download", "{} vector illustration",
    "cute {} sticker", "{} wallpaper HD", "{} (pack of {n})", "{} | Buy Online", "Amazing {}!!", "{} #{n}", "my {}",
    "{} icon PNG", "Best {} 20{n}",
)  # fmt: skip
_JUNK = (
    "IMG_{n}{n} | buy now", "DSC0{n}{n}.jpg", "image {n} of {n}", "Free shipping worldwide - best price",
    "click to enlarge", "Pin on ideas for the weekend", "screenshot 20{n}-0{d}-1{d}", "thumbnail",
    "Lovely day out with the family", "untitled-{n}", "product photo, sold out", "Size guide and delivery",
)  # fmt: skip


def web_caption(described: SceneDescription, rng: DeterministicRng) -> str:
    """Return the alt text of a scene on some web page."""
    style = rng.weighted(tuple(_WEB_STYLES), tuple(_WEB_STYLES.values()))
    groups = rng.shuffled(described.groups)
    if style == "sign" and described.scene.sign:
        return _framed(f"{described.scene.sign.word} sign", rng)
    if style == "junk":
        return rng.choice(_JUNK).format(n=rng.between(10, 99), d=rng.between(1, 9))
    if style == "wrong":
        return _framed(rng.choice(described.absent).name, rng)
    if style == "keywords":  # the tags of a shop or an icon site: the name among related words
        tags = []
        for group in groups[:2]:
            tags += [group.kind.name, *rng.sample(group.kind.keywords, 2), group.kind.category]
        return ", ".join(rng.shuffled(list(dict.fromkeys(tags))))
    names = []
    for group in groups[: {"one": 1, "two": 2}.get(style, len(groups))]:
        words = group.adjectives(color=rng.chance(350))
        names.append(words.title() if rng.chance(150) else words)
    if rng.chance(_WEB_BACKGROUND):
        return _framed(f"{join_with_and(names)} {described.background.where}", rng)
    return _framed(rng.choice((" ", ", ")).join(names) if rng.chance(300) else join_with_and(names), rng)


def _framed(words: str, rng: DeterministicRng) -> str:
    return rng.choice(_FRAMES).format(words, n=rng.between(10, 29))


# ---------------------------------------------------------------- human captions


def human_captions(described: SceneDescription, rng: DeterministicRng) -> list[str]:
    """Return five captions as different people write them: short, partial, each in its own style."""
    styles: list[Callable[[SceneDescription, DeterministicRng], str]]
    styles = [plain_caption, plain_caption, _placed, _bare, _partial]
    if _related_pairs(described):
        styles.append(_related)
    if described.scene.sign:
        styles.append(_with_sign)
    captions = []
    for style in rng.sample(styles, 5):
        words = style(described, rng)
        words = words[0].upper() + words[1:] if rng.chance(350) else words
        captions.append(words + "." if rng.chance(300) else words)
    return captions


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


def _placed(described: SceneDescription, rng: DeterministicRng) -> str:
    parts = [
        f"{group.some(color=rng.chance(400))} {LOCATION_PHRASES[location_of(group.boxes[0])][0]}"
        if group.count == 1
        else group.some()
        for group in rng.shuffled(described.groups)[:3]
    ]
    return join_with_and(parts)


def _bare(described: SceneDescription, rng: DeterministicRng) -> str:
    things = join_with_and([group.some() for group in rng.shuffled(described.groups)])
    if len(described.groups) > 1:
        frames = ("a picture of {}", "there is {}", "{} next to each other", "an image with {}")
        return rng.choice(frames).format(things)
    frame = rng.choice(("a picture of {}", "just {}", "an image with {}"))
    return frame.format(f"{things} {described.background.where}")


def _partial(described: SceneDescription, rng: DeterministicRng) -> str:
    things = [group.some(color=True) for group in rng.shuffled(described.groups)[:2]]
    if rng.chance(500):
        return f"{described.background.description} with {join_with_and(things)}"
    return f"{join_with_and(things)} {described.background.where}"


def _related_pairs(described: SceneDescription) -> list[tuple[ObjectGroup, ObjectGroup, str]]:
    return [
        (first, second, found)
        for first, second in itertools.permutations(described.groups, 2)
        if (found := group_relation(first, second))
    ]


def _related(described: SceneDescription, rng: DeterministicRng) -> str:
    first, second, found = rng.choice(_related_pairs(described))
    short = {"left": "left of", "right": "right of"}.get(found, RELATIONS[found])
    return f"{noun_with_size(first, rng)} {short} {second.some(color=True)}"


def _with_sign(described: SceneDescription, rng: DeterministicRng) -> str:
    assert described.scene.sign is not None
    word = described.scene.sign.word
    things = join_with_and([group.some(color=rng.chance(400)) for group in described.groups[:3]])
    return rng.choice((f"a sign that says {word.lower()} and {things}", f'{things} and a "{word}" sign'))


# ---------------------------------------------------------------- long captions

_ERROR = 40  # per mille of later sentences that contain an error
_INVENTION = 30  # per mille of long captions that name an absent object
_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
_SUMMARIES = (
    "the image features {things} {where}",
    "the image shows {things} {where}",
    "this picture shows {things} {where}",
    "in this image, there {is_are} {things} {where}",
    "the scene depicts {things} {where}",
    "{things} can be seen {where}",
)
_SIGNS = (
    'there is a white sign with the word "{word}" on it {where}',
    'a sign {where} reads "{word}"',
    'the word "{word}" is written on a white sign {where}',
)
_GENERIC = (
    "overall, {things} {is_are} the main focus of the image",
    "the arrangement of {things} gives the picture a playful look",
    "the picture is simple and draws attention to {things}",
)


def faithful_caption(described: SceneDescription, rng: DeterministicRng) -> str:
    """Return three to seven sentences as a multimodal model writes them.

    The first names everything. The later ones give attributes, positions and relations, the words on a sign and the
    background, and sometimes a wrong color or position or an absent object.
    """
    groups = rng.shuffled(described.groups)
    sentences = [summary(described, groups, rng)]
    clauses = [object_clause(group, groups, rng) for group in groups]
    step = 1 if len(clauses) < 4 else 2  # four or five objects share sentences in pairs
    pairs = [clauses[at : at + step] for at in range(0, len(clauses), step)]
    sentences += [capitalize_sentence(", while ".join(pair)) for pair in pairs]
    if described.scene.sign:
        sentences.append(sign_sentence(described, rng))
    sentences.append(background_sentence(described, rng))
    if len(sentences) < 7 and rng.chance(_INVENTION):
        absent = with_article(rng.choice(described.absent).name)
        sentences.append(capitalize_sentence(f"there is also {absent} in the background"))
    elif len(sentences) < 5 and rng.chance(250):
        things = join_with_and([group.the() for group in groups])
        sentences.append(capitalize_sentence(rng.choice(_GENERIC).format(things=things, is_are=is_are(groups))))
    return " ".join(sentences)


def noun_with_size(group: ObjectGroup, rng: DeterministicRng) -> str:
    """Return an object with a word for its size: "a tiny red car"."""
    return group.some(size=rng.choice(_SIZE_WORDS[group.size]), color=True)


def is_are(groups: Sequence[ObjectGroup]) -> str:
    """The verb that agrees with these objects."""
    return "are" if len(groups) > 1 or groups[0].count > 1 else "is"


def summary(described: SceneDescription, groups: list[ObjectGroup], rng: DeterministicRng) -> str:
    """Return the first sentence of a long caption: ``groups`` and where they are."""
    things = join_with_and(
        [noun_with_size(group, rng) if rng.chance(600) else group.some(color=True) for group in groups]
    )
    where = described.background.where
    return capitalize_sentence(rng.choice(_SUMMARIES).format(things=things, where=where, is_are=is_are(groups)))


def object_clause(group: ObjectGroup, groups: list[ObjectGroup], rng: DeterministicRng, *, errors: int = _ERROR) -> str:
    """Describe position and appearance of an object, wrong in ``errors`` per mille of the cases."""
    is_wrong, true_location = rng.chance(errors), location_of(group.boxes[0])
    location = rng.choice(sorted(LOCATION_PHRASES)) if is_wrong and rng.chance(500) else true_location
    color = rng.choice(list(OBJECT_COLORS)) if is_wrong and location == true_location else group.color
    if group.count > 1:
        looks = f"{group.size} and {color}" if color else group.size
        return rng.choice((f"{group.the()} are {looks}", f"all {NUMBERS[group.count]} {group.noun} are {looks}"))
    others = [(other, group_relation(group, other)) for other in groups if other is not group]
    related = [(other, found) for other, found in others if found]
    where = rng.choice(LOCATION_PHRASES[location])
    if related and rng.chance(700):
        other, found = rng.choice(related)
        both, alone = (f"{RELATIONS[found]} {other.the(color=rng.chance(300))}" for _ in range(2))
        where = rng.choice((f"{where}, {both}", alone))
    shade = f"{color} " if color and color not in group.kind.name else ""
    verb = rng.choice(("is", "is located", "is positioned", "is placed", "can be seen"))
    if rng.chance(300):
        return f"the {shade}{group.noun}, which is {group.size}, {verb} {where}"
    return f"the {shade}{group.noun} {verb} {where}"


def sign_sentence(described: SceneDescription, rng: DeterministicRng) -> str:
    """Describe the written word and its position."""
    assert described.scene.sign is not None
    where = rng.choice(LOCATION_PHRASES[location_of(described.scene.sign.box)])
    return capitalize_sentence(rng.choice(_SIGNS).format(word=described.scene.sign.word, where=where))


def background_sentence(described: SceneDescription, rng: DeterministicRng) -> str:
    """Describe the background."""
    description, plain = described.background.description, described.background.style == "plain"
    everything = join_with_and([group.the() for group in described.groups])
    sentences = (
        f"the background is plain {described.background.color}" if plain else f"the background shows {description}",
        f"behind {everything} is {description}",
        f"the scene is set against {description}",
        f"the objects stand out from {description}",
    )
    return capitalize_sentence(rng.choice(sentences))


# ---------------------------------------------------------------- long captions with a multimodal model's errors

_DETAILS = (2, 6)  # sentences after the summary
_MLLM_ERROR = 300  # per mille of these, more of the later ones, that name an absent object or a wrong color or position
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


def mllm_caption(described: SceneDescription, rng: DeterministicRng) -> str:
    """Return a summary of the important content, then details, later ones less important and more often wrong."""
    groups = sorted(described.groups, key=lambda group: (group.size != "large", -group.count))
    main = [group for number, group in enumerate(groups) if not number or rng.chance(_ALSO_IN_SUMMARY)]
    count = rng.between(*_DETAILS)
    true = _true_details(described, groups, rng)
    sentences = [summary(described, main, rng)]
    for number in range(count):
        if rng.chance(round(2 * _MLLM_ERROR * (number + 1) / (count + 1))):
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
