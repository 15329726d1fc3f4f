"""What is in a scene: objects, background and sign, a function of split, index and settings only.

All lengths are in 1/1024 of the image size, so a scene is the same at every image size. Test scenes are combinations
that never occur in training:

- One in five *pairs of classes* is held out: its two classes never occur together in a training scene, and every test
  scene with two or more classes contains at least one such pair.
- One in five pairs of *class and background* is held out: no training scene shows the class on that background, and
  every test scene with a single class shows it on such a background.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any, Literal

from PIL import Image
from scene_drawing import (
    OBJECT_COLORS,
    Background,
    ObjectClass,
    Rgb,
    Sprites,
    all_backgrounds,
    find_background,
    paint_background,
)
from scene_rng import DeterministicRng, encode

from clips.errors import UserError

SIGN_WORDS = (
    "OPEN", "SALE", "EXIT", "FREE", "NEWS", "CAFE", "ZOO", "PARK", "FARM", "SHOP", "HELP", "LOVE", "HOME", "GAME",
    "WAY", "BANK", "POOL", "GOLD", "LAKE", "NORTH", "SOUTH", "EAST", "WEST", "SLOW", "FAST", "ENTER", "PUSH", "PULL",
    "VOTE", "WIN", "NEW", "MENU", "ROOM", "TOWN", "JAZZ", "RUN", "QUIET", "LUCKY", "SUPER", "MAGIC",
)  # fmt: skip
CANVAS_SIZE = 1024
MAX_OBJECTS = 5
SEED = 0
_HELDOUT_ONE_IN = 5
_COUNT_WEIGHTS = (20, 32, 26, 13, 9)  # of scenes with 1 to 5 objects
_REPEATED = 150  # per mille of scenes with two objects of one class
_SIZES = {"small": (304, 336), "large": (448, 480, 512)}
_SIGN_HEIGHTS = {"small": 224, "large": 320}
_CONTRAST = 75
_TRIES = 30
_STYLES = {"plain": 34, "gradient": 10, "stripes": 8, "checks": 5, "dots": 6, "texture": 9, "landscape": 28}
"""Background style → weight."""

Split = Literal["train", "test"]
Size = Literal["small", "large"]
Box = tuple[int, int, int, int]
"""Left, top, width, height in 1/1024 of the image size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object in a scene.

    Args:
        kind: name of its class.
        category: category of its class.
        color: its paint, or the clear color of its class, or None.
        painted: whether the color is paint, which differs from scene to scene.
        size: "small" or "large".
        box: its place.
    """

    kind: str
    category: str
    color: str | None
    painted: bool
    size: Size
    box: Box


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSign:
    """A white sign with a word in capitals."""

    word: str
    box: Box


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The ground truth of one image."""

    split: Split
    index: int
    background: str
    objects: tuple[SceneObject, ...]
    sign: TextSign | None

    def rng(self, purpose: str) -> DeterministicRng:
        """Return the random choices of one purpose."""
        return DeterministicRng(purpose, SEED, self.split, self.index)

    def to_json(self) -> dict[str, Any]:
        """Return the record that is stored with the image."""
        objects = []
        for item in self.objects:
            fields = {name: getattr(item, name) for name in ("kind", "category", "color", "size")}
            objects.append({**fields, "place": location_of(item.box), "box": list(item.box)})
        sign = self.sign and {
            "word": self.sign.word,
            "place": location_of(self.sign.box),
            "box": list(self.sign.box),
        }
        return {"background": self.background, "objects": objects, "sign": sign}


def box_center(box: Box) -> tuple[int, int]:
    """Return the center of a box, (x, y)."""
    return box[0] + box[2] // 2, box[1] + box[3] // 2


def location_of(box: Box) -> str:
    """Return the ninth of the image that contains the center of ``box``: "top left", "top", …, "center"."""
    x, y = box_center(box)
    column = "left" if x < 384 else "right" if x >= 640 else ""
    row = "top" if y < 384 else "bottom" if y >= 640 else ""
    return f"{row} {column}".strip() or "center"


# ---------------------------------------------------------------- held-out combinations


def _is_one_in_five(*key: object) -> bool:
    return int.from_bytes(hashlib.sha256(encode(key)).digest()[:8], "little") % _HELDOUT_ONE_IN == 0


@functools.cache
def is_pair_heldout(first: str, second: str) -> bool:
    """Whether the two classes are held out as a pair."""
    return _is_one_in_five("held-out kinds", *sorted((first, second)))


@functools.cache
def is_background_heldout(kind: str, background: str) -> bool:
    """Whether the class is held out on the background."""
    return _is_one_in_five("held-out setting", kind, background)


def is_test_scene(kinds: Iterable[str], background: str) -> bool:
    """Whether a scene with these classes on this background is a new combination, as test scenes are."""
    different = sorted(set(kinds))
    if len(different) == 1:
        return is_background_heldout(different[0], background)
    return any(is_pair_heldout(a, b) for a, b in itertools.combinations(different, 2))


def is_train_scene(kinds: Iterable[str], background: str) -> bool:
    """Whether the scene contains no held-out combination. Some scenes belong to no split; none belongs to both."""
    different = sorted(set(kinds))
    return not (
        any(is_background_heldout(kind, background) for kind in different)
        or any(is_pair_heldout(a, b) for a, b in itertools.combinations(different, 2))
    )


@functools.cache
def heldout_pairs(num_classes: int) -> tuple[tuple[int, int], ...]:
    """Return the held-out pairs of classes (by index) among the first ``num_classes``."""
    names = [kind.name for kind in Sprites.load().classes[:num_classes]]
    pairs = itertools.combinations(range(num_classes), 2)
    return tuple((a, b) for a, b in pairs if is_pair_heldout(names[a], names[b]))


# ---------------------------------------------------------------- the generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneGenerator:
    """Settings of all scenes; split and index select one.

    Args:
        num_object_classes: number of object classes, at least 8.
        max_objects: maximum number of objects in a scene, 1 to 5.
        sign_ratio: ratio of scenes with a sign; fewer if there is no room for it.
        sign_size: "small", or "large": legible in images of 64 pixels.
        num_sign_words: number of words for signs, at least 2.
    """

    num_object_classes: int = 60
    max_objects: int = MAX_OBJECTS
    sign_ratio: float = 0.15
    sign_size: Size = "small"
    num_sign_words: int = len(SIGN_WORDS)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_object_classes", 8, len(Sprites.load().classes)),
            ("max_objects", 1, MAX_OBJECTS),
            ("sign_ratio", 0, 1),
            ("num_sign_words", 2, len(SIGN_WORDS)),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")

    @property
    def object_classes(self) -> tuple[ObjectClass, ...]:
        """The object classes."""
        return Sprites.load().classes[: self.num_object_classes]

    @property
    def words(self) -> tuple[str, ...]:
        """The words on signs."""
        return SIGN_WORDS[: self.num_sign_words]

    def scene(self, split: Split, index: int) -> Scene:
        """Return the scene ``index`` of ``split``. Test scenes are combinations that no training scene has."""
        for attempt in itertools.count():
            scene = self._attempt(split, index, DeterministicRng("scene", SEED, split, index, attempt))
            if scene is not None:
                return scene
        raise AssertionError("unreachable")

    def _attempt(self, split: Split, index: int, rng: DeterministicRng) -> Scene | None:
        count = rng.weighted(range(1, self.max_objects + 1), _COUNT_WEIGHTS[: self.max_objects])
        kinds = self._choose_kinds(split, count, rng)
        background = _choose_background(split, kinds, rng)
        if background is None:
            return None
        looks = _choose_looks(kinds, background, rng)
        boxes: list[Box] = []
        for side in [rng.choice(_SIZES[size]) for _, _, size in looks]:
            if (placed := _place(side, side, boxes, rng)) is None:
                return None
            boxes.append(placed)
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
        sign = None
        if rng.chance(round(1000 * self.sign_ratio)):
            word = rng.choice(self.words)
            box = _place(*_sign_size(word, _SIGN_HEIGHTS[self.sign_size]), boxes, rng)
            sign = box and TextSign(word=word, box=box)
        return Scene(split=split, index=index, background=background.name, objects=objects, sign=sign)

    def _choose_kinds(self, split: Split, count: int, rng: DeterministicRng) -> list[ObjectClass]:
        """Return ``count`` classes; one of them may be repeated."""
        repeats = rng.between(1, min(count - 1, 2)) if count > 1 and rng.chance(_REPEATED) else 0
        num_classes = count - repeats
        chosen: list[ObjectClass] = []
        if split == "test" and num_classes > 1:
            chosen = [self.object_classes[number] for number in rng.choice(heldout_pairs(self.num_object_classes))]
        while len(chosen) < num_classes:
            kind = rng.choice(self.object_classes)
            heldout = split == "train" and any(is_pair_heldout(kind.name, other.name) for other in chosen)
            if kind not in chosen and not heldout:
                chosen.append(kind)
            elif heldout and rng.chance(50):  # with few classes, none may be compatible with all chosen ones
                break
        chosen = rng.shuffled(chosen)
        return [chosen[0]] * repeats + chosen


def _choose_background(split: Split, kinds: list[ObjectClass], rng: DeterministicRng) -> Background | None:
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


@functools.cache
def _backgrounds_of(style: str) -> tuple[Background, ...]:
    return tuple(background for background in all_backgrounds() if background.style == style)


def _visible(rgb: Rgb, background: Background) -> bool:
    """Whether an object of this mean color is visible against every area of the background."""
    return all(sum(abs(a - b) for a, b in zip(rgb, area, strict=True)) > _CONTRAST for area in background.colors)


def _choose_looks(
    kinds: list[ObjectClass], background: Background, rng: DeterministicRng
) -> list[tuple[ObjectClass, str | None, Size]]:
    """Return class, paint (if paintable) and size of each object; objects of one class look the same."""
    paints = [name for name, rgb in OBJECT_COLORS.items() if _visible(rgb, background)] or list(OBJECT_COLORS)
    large = {1: 750, 2: 500, 3: 300, 4: 120, 5: 50}[len(kinds)]
    looks: dict[str, tuple[str | None, Size]] = {}
    for kind in kinds:
        if kind.name not in looks:
            paint = rng.choice(paints) if kind.paint_hue is not None else None
            looks[kind.name] = (paint, "large" if rng.chance(large) else "small")
    return [(kind, *looks[kind.name]) for kind in kinds]


def _place(width: int, height: int, taken: list[Box], rng: DeterministicRng) -> Box | None:
    """Return a random box that overlaps the others little; None if there is no room."""
    for _ in range(_TRIES):
        left, top = rng.between(8, CANVAS_SIZE - width - 8), rng.between(8, CANVAS_SIZE - height - 8)
        if all(_apart((left, top, width, height), other) for other in taken):
            return (left, top, width, height)
    return None


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


# ---------------------------------------------------------------- the image

_PAPER, _INK, _FRAME = (252, 252, 248), (24, 24, 30), (90, 90, 98)


def render(scene: Scene, image_size: int) -> Image.Image:
    """Render a scene, RGB, ``image_size`` × ``image_size``; the same bytes on every machine."""
    pixels = paint_background(find_background(scene.background), image_size, scene.rng("picture"))
    image, sprites = Image.fromarray(pixels, "RGB"), Sprites.load()
    for item in scene.objects:
        left, top, side, _ = (_pixels(length, image_size) for length in item.box)
        kind = sprites.by_name[item.kind]
        sprite = sprites.sprite(kind, item.color if item.painted else None, max(side, 1))
        image.paste(sprite, (left, top), sprite)
    if scene.sign:
        _draw_sign(image, scene.sign)
    return image


def _pixels(length: int, image_size: int) -> int:
    return (length * image_size + CANVAS_SIZE // 2) // CANVAS_SIZE


def _draw_sign(image: Image.Image, sign: TextSign) -> None:
    left, top, width, height = (_pixels(length, image.width) for length in sign.box)
    edge = max(1, image.width // 64)
    image.paste(_FRAME, (left, top, left + width, top + height))
    image.paste(_PAPER, (left + edge, top + edge, left + width - edge, top + height - edge))
    mask = Sprites.load().word(sign.word, max(1, height - 4 * edge))
    if mask.width > width - 2 * edge:
        mask = mask.resize((max(1, width - 2 * edge), mask.height), Image.Resampling.BICUBIC)
    image.paste(_INK, (left + (width - mask.width) // 2, top + 2 * edge), mask)
