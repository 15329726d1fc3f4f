"""Render the image of a scene from its ground truth."""

from __future__ import annotations

from PIL import Image

from clips.scenes.backgrounds import find_background, paint_background
from clips.scenes.rng import DeterministicRng
from clips.scenes.world import CANVAS_SIZE, Scene, SceneGenerator, TextSign

_PAPER, _INK, _FRAME = (252, 252, 248), (24, 24, 30), (90, 90, 98)


def render(world: SceneGenerator, scene: Scene, image_size: int) -> Image.Image:
    """Render a scene, RGB, ``image_size`` × ``image_size``; the same bytes on every machine."""
    rng = DeterministicRng("picture", scene.seed, scene.split, scene.index)
    background = find_background(scene.background)
    image = Image.fromarray(paint_background(background, image_size, rng), "RGB")
    for item in scene.objects:
        kind = world.sprites.by_name[item.kind]
        left, top, side, _ = (_pixels(length, image_size) for length in item.box)
        sprite = world.sprites.sprite(kind, item.color if item.painted else None, max(side, 1))
        image.paste(sprite, (left, top), sprite)
    if scene.sign:
        _draw_sign(image, world, scene.sign)
    return image


def _pixels(length: int, image_size: int) -> int:
    return (length * image_size + CANVAS_SIZE // 2) // CANVAS_SIZE


def _draw_sign(image: Image.Image, world: SceneGenerator, sign: TextSign) -> None:
    left, top, width, height = (_pixels(length, image.width) for length in sign.box)
    edge = max(1, image.width // 64)
    image.paste(_FRAME, (left, top, left + width, top + height))
    image.paste(_PAPER, (left + edge, top + edge, left + width - edge, top + height - edge))
    mask = world.sprites.word(sign.word, max(1, height - 4 * edge))
    if mask.width > width - 2 * edge:
        mask = mask.resize((max(1, width - 2 * edge), mask.height), Image.Resampling.BICUBIC)
    image.paste(_INK, (left + (width - mask.width) // 2, top + 2 * edge), mask)
