"""English for scenes: articles, plurals, lists, positions and relations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from clips.scenes.backgrounds import Background, find_background
from clips.scenes.sprites import ObjectClass
from clips.scenes.world import Box, Scene, SceneGenerator, box_center

NUMBERS = ("no", "one", "two", "three", "four", "five")
_A_BEFORE_VOWEL = ("uni", "use", "eu")
_AN_BEFORE_CONSONANT = "hour"
_MIN_OFFSET, _MIN_SLOPE = 160, 3  # of a clear relation; the slope in halves

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectGroup:
    """The objects of one class in a scene; they share color and size.

    Args:
        kind: their class.
        color, painted, size: as in SceneObject.
        boxes: their positions, one box each.
        location: of the first.
    """

    kind: ObjectClass
    color: str | None
    painted: bool
    size: str
    boxes: tuple[Box, ...]
    location: str

    @property
    def count(self) -> int:
        """The number of objects."""
        return len(self.boxes)

    @property
    def noun(self) -> str:
        """The name without article, in the plural for several."""
        return self.kind.name if self.count == 1 else self.kind.plural

    @property
    def is_are(self) -> str:
        """The verb that agrees with the noun."""
        return "is" if self.count == 1 else "are"

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
    """A scene with the data needed to describe it."""

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
    """Group a scene's objects by class, in the order in which the classes were sampled."""
    groups = []
    for name in dict.fromkeys(item.kind for item in scene.objects):
        items = [item for item in scene.objects if item.kind == name]
        groups.append(
            ObjectGroup(
                kind=world.sprites.by_name[name],
                color=items[0].color,
                painted=items[0].painted,
                size=items[0].size,
                boxes=tuple(item.box for item in items),
                location=items[0].location,
            )
        )
    return SceneDescription(
        world=world, scene=scene, groups=tuple(groups), background=find_background(scene.background)
    )


def with_article(words: str) -> str:
    """Add the indefinite article."""
    start = words.lower()
    vowel = start[0] in "aeiou" and not start.startswith(_A_BEFORE_VOWEL)
    return f"{'an' if vowel or start.startswith(_AN_BEFORE_CONSONANT) else 'a'} {words}"


def join_with_and(parts: Sequence[str], *, joiner: str = "and") -> str:
    """Return "x", "x and y", or "x, y and z"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {joiner} {parts[-1]}"


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
