"""The scene generator: objects and positions, a function of (seed, split, index) only.

All lengths are in 1/1024 of the image size, so a scene is the same at every image size.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, Literal

from clips.errors import UserError
from clips.scenes.backgrounds import Background, all_backgrounds
from clips.scenes.colors import OBJECT_COLORS, Rgb
from clips.scenes.heldout_split import is_pair_heldout, is_test_scene, is_train_scene
from clips.scenes.rng import DeterministicRng
from clips.scenes.sprites import ObjectClass, Sprites
from clips.scenes.words import SIGN_WORDS

CANVAS_SIZE = 1024
SPLITS = ("train", "test")
MAX_OBJECTS = 5
_HOW_MANY = (20, 32, 26, 13, 9)
_REPEATED = 150
_SIZES = {"small": (304, 336), "large": (448, 480, 512)}
_SIGN_HEIGHTS = {"small": 224, "large": 320}
_CONTRAST = 75
_TRIES = 30

Split = Literal["train", "test"]
SignSize = Literal["small", "large"]
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object in a scene.

    Args:
        kind: name of its class.
        category: category of its class.
        color: its paint, or the clear color of its class, or None.
        painted: whether the color is paint, which differs from scene to scene.
        size: "small" or "large".
        box: left, top, width, height in 1/1024 of the image size.
    """

    kind: str
    category: str
    color: str | None
    painted: bool
    size: Literal["small", "large"]
    box: Box

    @property
    def place(self) -> str:
        """Return the ninth of the image that contains the center: "top left", "top", …, "center"."""
        return location_of(self.box)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSign:
    """A white sign with a word in capitals. ``box`` as in SceneObject."""

    word: str
    box: Box

    @property
    def place(self) -> str:
        """As SceneObject.place."""
        return location_of(self.box)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The ground truth of one image."""

    seed: int
    split: Split
    index: int
    background: str
    objects: tuple[SceneObject, ...]
    sign: TextSign | None

    def to_json(self) -> dict[str, Any]:
        """Return the record that is stored with the image."""
        return {
            "background": self.background,
            "objects": [
                {
                    "kind": thing.kind,
                    "category": thing.category,
                    "color": thing.color,
                    "size": thing.size,
                    "place": thing.place,
                    "box": list(thing.box),
                }
                for thing in self.objects
            ],
            "sign": {"word": self.sign.word, "place": self.sign.place, "box": list(self.sign.box)}
            if self.sign
            else None,
        }


def box_center(box: Box) -> tuple[int, int]:
    """Return the center of a box, (x, y)."""
    return box[0] + box[2] // 2, box[1] + box[3] // 2


def location_of(box: Box) -> str:
    """Return the name of the ninth of the image that contains the center of ``box``."""
    x, y = box_center(box)
    column = "left" if x < 384 else "right" if x >= 640 else ""
    row = "top" if y < 384 else "bottom" if y >= 640 else ""
    return f"{row} {column}".strip() or "center"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneGenerator:
    """Everything that a scene depends on except its split and index.

    Args:
        kinds: number of object classes, at least 8.
        max_objects: maximum number of objects in a scene, 1 to 5.
        signs: scenes with a sign, per mille; fewer if there is no room for it.
        sign_size: "small", or "large": legible in images of 64 pixels.
        sign_words: number of words for signs, at least 2.
        seed: random seed.
        hand: sprite set.
    """

    kinds: int = 60
    max_objects: int = MAX_OBJECTS
    signs: int = 150
    sign_size: SignSize = "small"
    sign_words: int = len(SIGN_WORDS)
    seed: int = 0
    hand: str = "twemoji"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: a field out of its range.
        """
        known = len(Sprites.load(self.hand).kinds)
        if not 8 <= self.kinds <= known:
            raise UserError(f"num_object_classes: expected 8 to {known}, got {self.kinds}")
        if not 1 <= self.max_objects <= MAX_OBJECTS:
            raise UserError(f"max_objects: expected 1 to {MAX_OBJECTS}, got {self.max_objects}")
        if not 0 <= self.signs <= 1000:
            raise UserError(f"sign_ratio: expected 0 to 1000 per mille, got {self.signs}")
        if not 2 <= self.sign_words <= len(SIGN_WORDS):
            raise UserError(f"num_sign_words: expected 2 to {len(SIGN_WORDS)}, got {self.sign_words}")

    @property
    def sprites(self) -> Sprites:
        """The sprites of the objects."""
        return Sprites.load(self.hand)

    @property
    def words(self) -> tuple[str, ...]:
        """The words on signs."""
        return SIGN_WORDS[: self.sign_words]

    @property
    def inhabitants(self) -> tuple[ObjectClass, ...]:
        """The object classes."""
        return self.sprites.kinds[: self.kinds]

    def scene(self, split: Split, index: int) -> Scene:
        """Return the scene ``index`` of ``split``. Test scenes are combinations that no training scene has."""
        for attempt in itertools.count():
            dice = DeterministicRng("scene", self.seed, split, index, attempt)
            scene = self._attempt(split, index, dice)
            if scene is not None:
                return scene
        raise AssertionError("unreachable")

    def _attempt(self, split: Split, index: int, dice: DeterministicRng) -> Scene | None:
        counts = range(1, self.max_objects + 1)
        count = dice.weighted(counts, _HOW_MANY[: self.max_objects])
        kinds = self._choose_kinds(split, count, dice)
        background = self._choose_background(split, kinds, dice)
        if background is None:
            return None
        things = self._dress(kinds, background, dice)
        boxes = _place([_side(size, dice) for _, _, size in things], dice)
        if things and boxes is None:
            return None
        objects = tuple(
            SceneObject(
                kind=kind.name,
                category=kind.category,
                color=paint or kind.color,
                painted=paint is not None,
                size=size,
                box=box,
            )
            for (kind, paint, size), box in zip(things, boxes or [], strict=True)
        )
        sign = self._hang_sign([thing.box for thing in objects], dice) if dice.chance(self.signs) else None
        return Scene(seed=self.seed, split=split, index=index, background=background.name, objects=objects, sign=sign)

    def _hang_sign(self, taken: list[Box], dice: DeterministicRng) -> TextSign | None:
        """Return a sign if there is room for it, else None."""
        word = dice.choice(self.words)
        width, height = _sign_sides(word, _SIGN_HEIGHTS[self.sign_size])
        for _ in range(_TRIES):
            box = (dice.between(8, CANVAS_SIZE - width - 8), dice.between(8, CANVAS_SIZE - height - 8), width, height)
            if all(_apart(box, other) for other in taken):
                return TextSign(word=word, box=box)
        return None

    def _choose_kinds(self, split: Split, count: int, dice: DeterministicRng) -> list[ObjectClass]:
        """Return ``count`` classes; one of them may be repeated."""
        repeats = dice.between(1, min(count - 1, 2)) if count > 1 and dice.chance(_REPEATED) else 0
        different = count - repeats
        chosen: list[ObjectClass] = []
        if split == "test" and different > 1:
            chosen = [self.inhabitants[number] for number in dice.choice(heldout_pairs(self.hand, self.kinds))]
        while len(chosen) < different:
            kind = dice.choice(self.inhabitants)
            barred = split == "train" and any(is_pair_heldout(kind.name, other.name) for other in chosen)
            if kind not in chosen and not barred:
                chosen.append(kind)
            elif barred and dice.chance(50):  # with few classes, none may be compatible with all of these
                break
        chosen = dice.shuffled(chosen)
        return [chosen[0]] * repeats + chosen

    def _choose_background(self, split: Split, kinds: list[ObjectClass], dice: DeterministicRng) -> Background | None:
        names = [kind.name for kind in kinds]
        belongs = is_train_scene if split == "train" else is_test_scene
        for _ in range(_TRIES):
            background = _any_background(dice)
            if belongs(names, background.name) and all(
                kind.paint_hue is not None or _visible(kind.mean_rgb, background) for kind in kinds
            ):
                return background
        return None

    def _dress(
        self, kinds: list[ObjectClass], background: Background, dice: DeterministicRng
    ) -> list[tuple[ObjectClass, str | None, Literal["small", "large"]]]:
        """Give each object a paint (if paintable) and a size; objects of one class get the same."""
        paints = [name for name, rgb in OBJECT_COLORS.items() if _visible(rgb, background)] or list(OBJECT_COLORS)
        crowd = len(kinds)
        large = {1: 750, 2: 500, 3: 300, 4: 120, 5: 50}[crowd]
        looks: dict[str, tuple[str | None, Literal["small", "large"]]] = {}
        for kind in kinds:
            if kind.name not in looks:
                paint = dice.choice(paints) if kind.paint_hue is not None else None
                looks[kind.name] = (paint, "large" if dice.chance(large) else "small")
        return [(kind, *looks[kind.name]) for kind in kinds]


def _side(size: str, dice: DeterministicRng) -> int:
    return dice.choice(_SIZES[size])


_STYLES = {"plain": 34, "gradient": 10, "stripes": 8, "checks": 5, "dots": 6, "texture": 9, "landscape": 28}


def _any_background(dice: DeterministicRng) -> Background:
    style = dice.weighted(tuple(_STYLES), tuple(_STYLES.values()))
    return dice.choice(_backgrounds_of(style))


@functools.cache
def _backgrounds_of(style: str) -> tuple[Background, ...]:
    return tuple(background for background in all_backgrounds() if background.style == style)


def _visible(rgb: Rgb, background: Background) -> bool:
    """Whether an object of this mean color is visible against every area of the background."""
    return all(sum(abs(a - b) for a, b in zip(rgb, area, strict=True)) > _CONTRAST for area in background.colors)


@functools.cache
def heldout_pairs(hand: str, kinds: int) -> tuple[tuple[int, int], ...]:
    """Return the held-out pairs of classes (by index) among the first ``kinds``."""
    names = [kind.name for kind in Sprites.load(hand).kinds[:kinds]]
    return tuple((a, b) for a, b in itertools.combinations(range(kinds), 2) if is_pair_heldout(names[a], names[b]))


def _place(sides: list[int], dice: DeterministicRng) -> list[Box] | None:
    """Return random boxes with little overlap; None if there was no room."""
    boxes: list[Box] = []
    for side in sides:
        for _ in range(_TRIES):
            box = (dice.between(8, CANVAS_SIZE - side - 8), dice.between(8, CANVAS_SIZE - side - 8), side, side)
            if all(_apart(box, other) for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def _apart(first: Box, second: Box) -> bool:
    """Whether two boxes overlap by less than an eighth of their mean side, in one direction at least."""
    (x1, y1), (x2, y2) = box_center(first), box_center(second)
    wide, high = first[2] + second[2], first[3] + second[3]
    return 16 * abs(x1 - x2) > 7 * wide or 16 * abs(y1 - y2) > 7 * high


def _sign_sides(word: str, height: int) -> tuple[int, int]:
    """Return width and height of a sign; a long word lowers the height of a large one."""
    width = (136 * len(word) + 40) * height // 224
    most = CANVAS_SIZE - 16
    return (width, height) if width <= most else (most, height * most // width)
