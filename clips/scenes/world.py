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

SIGN_WORDS = (
    "OPEN", "SALE", "EXIT", "FREE", "NEWS", "CAFE", "ZOO", "PARK", "FARM", "SHOP", "HELP", "LOVE", "HOME", "GAME",
    "WAY", "BANK", "POOL", "GOLD", "LAKE", "NORTH", "SOUTH", "EAST", "WEST", "SLOW", "FAST", "ENTER", "PUSH", "PULL",
    "VOTE", "WIN", "NEW", "MENU", "ROOM", "TOWN", "JAZZ", "RUN", "QUIET", "LUCKY", "SUPER", "MAGIC",
)  # fmt: skip


CANVAS_SIZE = 1024
MAX_OBJECTS = 5
_COUNT_WEIGHTS = (20, 32, 26, 13, 9)  # of scenes with 1 to 5 objects
_REPEATED = 150  # per mille of scenes with two objects of one class
_SIZES = {"small": (304, 336), "large": (448, 480, 512)}
_SIGN_HEIGHTS = {"small": 224, "large": 320}
_CONTRAST = 75
_TRIES = 30
_STYLES = {"plain": 34, "gradient": 10, "stripes": 8, "checks": 5, "dots": 6, "texture": 9, "landscape": 28}
"""Background style → weight."""

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
    def location(self) -> str:
        """The ninth of the image that contains the center: "top left", "top", …, "center"."""
        return location_of(self.box)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSign:
    """A white sign with a word in capitals. ``box`` as in SceneObject."""

    word: str
    box: Box

    @property
    def location(self) -> str:
        """As SceneObject.location."""
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
                    "kind": item.kind,
                    "category": item.category,
                    "color": item.color,
                    "size": item.size,
                    "place": item.location,
                    "box": list(item.box),
                }
                for item in self.objects
            ],
            "sign": {"word": self.sign.word, "place": self.sign.location, "box": list(self.sign.box)}
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
    """Settings of all scenes; split and index select one.

    Args:
        num_object_classes: number of object classes, at least 8.
        max_objects: maximum number of objects in a scene, 1 to 5.
        signs_per_mille: scenes with a sign, per mille; fewer if there is no room for it.
        sign_size: "small", or "large": legible in images of 64 pixels.
        num_sign_words: number of words for signs, at least 2.
        seed: random seed.
        sprite_set: sprite set.
    """

    num_object_classes: int = 60
    max_objects: int = MAX_OBJECTS
    signs_per_mille: int = 150
    sign_size: SignSize = "small"
    num_sign_words: int = len(SIGN_WORDS)
    seed: int = 0
    sprite_set: str = "twemoji"

    def __post_init__(self) -> None:
        known = len(Sprites.load(self.sprite_set).kinds)
        if not 8 <= self.num_object_classes <= known:
            raise UserError(f"num_object_classes: expected 8 to {known}, got {self.num_object_classes}")
        if not 1 <= self.max_objects <= MAX_OBJECTS:
            raise UserError(f"max_objects: expected 1 to {MAX_OBJECTS}, got {self.max_objects}")
        if not 0 <= self.signs_per_mille <= 1000:
            raise UserError(f"sign_ratio: expected 0 to 1000 per mille, got {self.signs_per_mille}")
        if not 2 <= self.num_sign_words <= len(SIGN_WORDS):
            raise UserError(f"num_sign_words: expected 2 to {len(SIGN_WORDS)}, got {self.num_sign_words}")

    @property
    def sprites(self) -> Sprites:
        """The sprites of the objects."""
        return Sprites.load(self.sprite_set)

    @property
    def words(self) -> tuple[str, ...]:
        """The words on signs."""
        return SIGN_WORDS[: self.num_sign_words]

    @property
    def object_classes(self) -> tuple[ObjectClass, ...]:
        """The object classes."""
        return self.sprites.kinds[: self.num_object_classes]

    def scene(self, split: Split, index: int) -> Scene:
        """Return the scene ``index`` of ``split``. Test scenes are combinations that no training scene has."""
        for attempt in itertools.count():
            rng = DeterministicRng("scene", self.seed, split, index, attempt)
            scene = self._attempt(split, index, rng)
            if scene is not None:
                return scene
        raise AssertionError("unreachable")

    def _attempt(self, split: Split, index: int, rng: DeterministicRng) -> Scene | None:
        counts = range(1, self.max_objects + 1)
        count = rng.weighted(counts, _COUNT_WEIGHTS[: self.max_objects])
        kinds = self._choose_kinds(split, count, rng)
        background = self._choose_background(split, kinds, rng)
        if background is None:
            return None
        looks = self._choose_looks(kinds, background, rng)
        boxes = _place_boxes([rng.choice(_SIZES[size]) for _, _, size in looks], rng)
        if boxes is None:
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
            for (kind, paint, size), box in zip(looks, boxes, strict=True)
        )
        sign = self._place_sign([item.box for item in objects], rng) if rng.chance(self.signs_per_mille) else None
        return Scene(seed=self.seed, split=split, index=index, background=background.name, objects=objects, sign=sign)

    def _place_sign(self, taken: list[Box], rng: DeterministicRng) -> TextSign | None:
        """Return a sign, or None if there is no room for it."""
        word = rng.choice(self.words)
        width, height = _sign_size(word, _SIGN_HEIGHTS[self.sign_size])
        for _ in range(_TRIES):
            box = (rng.between(8, CANVAS_SIZE - width - 8), rng.between(8, CANVAS_SIZE - height - 8), width, height)
            if all(_apart(box, other) for other in taken):
                return TextSign(word=word, box=box)
        return None

    def _choose_kinds(self, split: Split, count: int, rng: DeterministicRng) -> list[ObjectClass]:
        """Return ``count`` classes; one of them may be repeated."""
        repeats = rng.between(1, min(count - 1, 2)) if count > 1 and rng.chance(_REPEATED) else 0
        num_classes = count - repeats
        chosen: list[ObjectClass] = []
        if split == "test" and num_classes > 1:
            chosen = [
                self.object_classes[number]
                for number in rng.choice(heldout_pairs(self.sprite_set, self.num_object_classes))
            ]
        while len(chosen) < num_classes:
            kind = rng.choice(self.object_classes)
            heldout = split == "train" and any(is_pair_heldout(kind.name, other.name) for other in chosen)
            if kind not in chosen and not heldout:
                chosen.append(kind)
            elif heldout and rng.chance(50):  # with few classes, none may be compatible with all chosen ones
                break
        chosen = rng.shuffled(chosen)
        return [chosen[0]] * repeats + chosen

    def _choose_background(self, split: Split, kinds: list[ObjectClass], rng: DeterministicRng) -> Background | None:
        names = [kind.name for kind in kinds]
        is_in_split = is_train_scene if split == "train" else is_test_scene
        for _ in range(_TRIES):
            style = rng.weighted(tuple(_STYLES), tuple(_STYLES.values()))
            background = rng.choice(_backgrounds_of(style))
            if is_in_split(names, background.name) and all(
                kind.paint_hue is not None or _visible(kind.mean_rgb, background) for kind in kinds
            ):
                return background
        return None

    def _choose_looks(
        self, kinds: list[ObjectClass], background: Background, rng: DeterministicRng
    ) -> list[tuple[ObjectClass, str | None, Literal["small", "large"]]]:
        """Return class, paint (if paintable) and size of each object; objects of one class look the same."""
        paints = [name for name, rgb in OBJECT_COLORS.items() if _visible(rgb, background)] or list(OBJECT_COLORS)
        large = {1: 750, 2: 500, 3: 300, 4: 120, 5: 50}[len(kinds)]
        looks: dict[str, tuple[str | None, Literal["small", "large"]]] = {}
        for kind in kinds:
            if kind.name not in looks:
                paint = rng.choice(paints) if kind.paint_hue is not None else None
                looks[kind.name] = (paint, "large" if rng.chance(large) else "small")
        return [(kind, *looks[kind.name]) for kind in kinds]


@functools.cache
def _backgrounds_of(style: str) -> tuple[Background, ...]:
    return tuple(background for background in all_backgrounds() if background.style == style)


def _visible(rgb: Rgb, background: Background) -> bool:
    """Whether an object of this mean color is visible against every area of the background."""
    return all(sum(abs(a - b) for a, b in zip(rgb, area, strict=True)) > _CONTRAST for area in background.colors)


@functools.cache
def heldout_pairs(sprite_set: str, num_classes: int) -> tuple[tuple[int, int], ...]:
    """Return the held-out pairs of classes (by index) among the first ``num_classes``."""
    names = [kind.name for kind in Sprites.load(sprite_set).kinds[:num_classes]]
    return tuple(
        (a, b) for a, b in itertools.combinations(range(num_classes), 2) if is_pair_heldout(names[a], names[b])
    )


def _place_boxes(sides: list[int], rng: DeterministicRng) -> list[Box] | None:
    """Return random boxes with little overlap; None if there is no room."""
    boxes: list[Box] = []
    for side in sides:
        for _ in range(_TRIES):
            box = (rng.between(8, CANVAS_SIZE - side - 8), rng.between(8, CANVAS_SIZE - side - 8), side, side)
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


def _sign_size(word: str, height: int) -> tuple[int, int]:
    """Return width and height of a sign; a large one with a long word is scaled down."""
    width = (136 * len(word) + 40) * height // 224
    max_width = CANVAS_SIZE - 16
    return (width, height) if width <= max_width else (max_width, height * max_width // width)
