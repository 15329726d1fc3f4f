"""The world of scenes: the same everywhere, and test combinations never in training."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from clips.errors import UserError
from clips.scenes.backgrounds import all_backgrounds
from clips.scenes.colors import OBJECT_COLORS, hue, nearest_color_name
from clips.scenes.heldout_split import is_background_heldout, is_pair_heldout, is_test_scene, is_train_scene
from clips.scenes.render import render
from clips.scenes.rng import DeterministicRng
from clips.scenes.sprites import Sprites, _hues
from clips.scenes.world import CANVAS_SIZE, Scene, SceneGenerator, location_of

TRAIN, TEST = 2000, 1000


@pytest.fixture(scope="module")
def world() -> SceneGenerator:
    return SceneGenerator()


@pytest.fixture(scope="module")
def train(world) -> list[Scene]:
    return [world.scene("train", index) for index in range(TRAIN)]


@pytest.fixture(scope="module")
def test(world) -> list[Scene]:
    return [world.scene("test", index) for index in range(TEST)]


def kinds_of(scene: Scene) -> frozenset[str]:
    return frozenset(thing.kind for thing in scene.objects)


def truth_hash(world: SceneGenerator) -> str:
    scenes = [world.scene(split, index).to_json() for split in ("train", "test") for index in range(200)]
    return hashlib.sha256(json.dumps(scenes).encode()).hexdigest()


def image_hash(world: SceneGenerator, size: int) -> str:
    digest = hashlib.sha256()
    for split, index in itertools.product(("train", "test"), range(60)):
        digest.update(np.asarray(render(world, world.scene(split, index), size)).tobytes())
    return digest.hexdigest()


def test_ground_truth_and_images_are_pinned(world):
    assert truth_hash(world) == "c50546bb4e185271a36dbb0693eb98780e132a8affe8a4a04288e0015105ceb1"
    other = SceneGenerator(num_object_classes=466, seed=7)
    assert truth_hash(other) == "2d8d4c2dea0c3867bd7291fb8d4f770463b74974556ab0e27f507cb5c3d5105e"
    assert image_hash(world, 64) == "bb4dceaf039e38f0d0c5c0effa80ce1a59b9492afe152bd539daca51218e4985"
    assert image_hash(other, 100) == "fe7110c83306f42be648d409bc844f169fd4c6efd689b5d3ebaccc69f77d68b1"


def test_another_process_with_another_hash_seed_draws_the_same(world):
    code = "import test_scenes_world as t; print(t.truth_hash(t.SceneGenerator()))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.path.dirname(__file__)}  # noqa: PTH120
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == truth_hash(world)


def test_scenes_depend_on_seed_split_and_index(world):
    there = world.scene("train", 3).to_json()
    for other in (world.scene("train", 4), world.scene("test", 3), SceneGenerator(seed=1).scene("train", 3)):
        assert other.to_json() != there


def test_test_combinations_never_occur_in_training(train, test):
    for scene in train:
        names = sorted(kinds_of(scene))
        assert not any(is_pair_heldout(a, b) for a, b in itertools.combinations(names, 2)), names
        assert not any(is_background_heldout(name, scene.background) for name in names), names
        assert is_train_scene(names, scene.background)
    for scene in test:
        names = sorted(kinds_of(scene))
        if len(names) == 1:
            assert is_background_heldout(names[0], scene.background)
        else:
            assert any(is_pair_heldout(a, b) for a, b in itertools.combinations(names, 2)), names
        assert is_test_scene(names, scene.background)
    trained_sets = {kinds_of(scene) for scene in train if len(kinds_of(scene)) > 1}
    trained_settings = {(kind, scene.background) for scene in train for kind in kinds_of(scene)}
    assert not trained_sets & {kinds_of(scene) for scene in test}
    singles = {(kind, scene.background) for scene in test if len(kinds_of(scene)) == 1 for kind in kinds_of(scene)}
    assert len(singles) > 100
    assert not trained_settings & singles


def test_the_rule_holds_out_a_fifth_and_does_not_depend_on_order():
    names = [kind.name for kind in Sprites.load("twemoji").kinds[:60]]
    held = [is_pair_heldout(a, b) for a, b in itertools.combinations(names, 2)]
    assert 0.15 < sum(held) / len(held) < 0.25
    assert all(is_pair_heldout(a, b) == is_pair_heldout(b, a) for a, b in itertools.combinations(names, 2))
    settings = [is_background_heldout(name, background.name) for name in names for background in all_backgrounds()]
    assert 0.15 < sum(settings) / len(settings) < 0.25


def test_every_kind_and_background_occurs_in_training(world, train):
    seen = Counter(kind for scene in train for kind in kinds_of(scene))
    assert set(seen) == {kind.name for kind in world.object_classes}
    assert min(seen.values()) > TRAIN / 200
    assert {scene.background for scene in train} == {background.name for background in all_backgrounds()}
    alone = {next(iter(kinds_of(scene))) for scene in train if len(kinds_of(scene)) == 1}
    assert len(alone) == world.num_object_classes


@pytest.mark.parametrize("kinds", [8, 12, 466])
def test_any_number_of_kinds_makes_a_world(kinds):
    world = SceneGenerator(num_object_classes=kinds)
    known = {kind.name for kind in world.object_classes}
    for split, index in itertools.product(("train", "test"), range(100)):
        scene = world.scene(split, index)
        assert kinds_of(scene) <= known
        assert (is_test_scene if split == "test" else is_train_scene)(kinds_of(scene), scene.background)


def test_scenes_are_varied_and_things_lie_inside_and_apart(train):
    assert {len(scene.objects) for scene in train} == {1, 2, 3, 4, 5}
    assert 0.08 < sum(scene.sign is not None for scene in train) / TRAIN < 0.2
    assert len({thing.location for scene in train for thing in scene.objects}) == 9
    for scene in train:
        boxes = [thing.box for thing in scene.objects] + ([scene.sign.box] if scene.sign else [])
        for x, y, width, height in boxes:
            assert min(x, y) >= 0
            assert max(x + width, y + height) <= CANVAS_SIZE
        for a, b in itertools.combinations(boxes, 2):
            across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
            down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
            if across > 0 and down > 0:
                assert min(across / (a[2] + b[2]), down / (a[3] + b[3])) < 1 / 15


def test_place_names():
    boxes = {"top left": (0, 0, 300, 300), "center": (400, 400, 200, 200), "right": (700, 400, 300, 200)}
    assert {name: location_of(box) for name, box in boxes.items()} == {name: name for name in boxes}


def test_an_image_has_its_objects_at_the_positions_of_the_ground_truth(world):
    """Taking a thing out of a scene changes the image inside the thing's box and nowhere else."""
    for index in range(30):
        scene = world.scene("train", index)
        without = dataclasses.replace(scene, objects=scene.objects[:-1])
        pixels, empty = (np.asarray(render(world, one, 128)).astype(int) for one in (scene, without))
        changed = np.argwhere(np.abs(pixels - empty).sum(axis=-1) > 30)
        x, y, width, height = (length / 8 for length in scene.objects[-1].box)
        assert len(changed) > 0.1 * width * height or scene.sign
        assert (changed >= np.array([y, x]) - 1).all()
        assert (changed <= np.array([y + height, x + width]) + 1).all()


def test_paint_gives_the_color_that_the_truth_names(world):
    right = total = 0
    for kind in world.sprites.kinds:
        if kind.paint_hue is None:
            continue
        for paint in OBJECT_COLORS:
            before = np.asarray(world.sprites.sprite(kind, None, 64)).astype(int)
            after = np.asarray(world.sprites.sprite(kind, paint, 64)).astype(int)
            assert (before[..., 3] == after[..., 3]).all()
            changed = after[(np.abs(before - after).sum(axis=-1) > 20) & (after[..., 3] > 200)]
            if len(changed) > 100:
                names = Counter(nearest_color_name(*(int(v) for v in pixel[:3])) for pixel in changed)
                right += names.most_common(1)[0][0] == paint
                total += 1
    assert total > 300
    assert right / total > 0.9


def test_color_names():
    named = {"red": (221, 46, 68), "blue": (85, 172, 238), "green": (119, 178, 85), "yellow": (255, 204, 77),
             "brown": (193, 105, 79), "white": (245, 248, 250), "black": (41, 47, 51), "grey": (136, 153, 166),
             "purple": (146, 102, 204), "pink": (244, 171, 186), "orange": (244, 144, 12)}  # fmt: skip
    for name, rgb in named.items():
        assert nearest_color_name(*rgb) == name
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3))
    high = pixels.max(axis=-1)
    found = _hues(pixels, high, high - pixels.min(axis=-1))
    assert all(found[y, x] == hue(*map(int, pixels[y, x])) for y, x in itertools.product(range(10), range(10)))


def test_large_signs_have_the_chosen_words_and_fit_the_image():
    for words in (12, 40):  # some of the forty are too long to be as high as the others
        world = SceneGenerator(max_objects=2, signs_per_mille=1000, sign_size="large", num_sign_words=words)
        signs = [scene.sign for scene in (world.scene("train", index) for index in range(900)) if scene.sign]
        assert len(signs) > 100
        assert {sign.word for sign in signs} == set(world.words)
        assert len(world.words) == words
        for left, top, width, height in (sign.box for sign in signs):
            assert min(left, top) >= 0
            assert max(left + width, top + height) <= CANVAS_SIZE
            assert height >= 224


def test_dice_are_even_and_repeatable():
    dice = DeterministicRng("x", 1)
    assert [DeterministicRng("x", 1).below(10**9) for _ in range(2)] == [dice.below(10**9)] * 2
    rolls = Counter(dice.between(1, 6) for _ in range(12_000))
    assert set(rolls) == {1, 2, 3, 4, 5, 6}
    assert all(1800 < count < 2200 for count in rolls.values())
    assert sorted(dice.shuffled(range(20))) == list(range(20))
    assert len(set(dice.sample(range(20), 5))) == 5
    heavy = Counter(dice.weighted("ab", (9, 1)) for _ in range(2000))
    assert 1700 < heavy["a"] < 1900


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_object_classes": 7}, "num_object_classes: expected 8 to 466, got 7"),
        ({"max_objects": 6}, "max_objects: expected 1 to 5, got 6"),
        ({"signs_per_mille": 1001}, "sign_ratio: expected"),
        ({"num_sign_words": 1}, "num_sign_words: expected 2 to 40, got 1"),
        ({"sprite_set": "twemojis"}, "did you mean 'twemoji'"),
    ],
)
def test_bad_worlds(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        SceneGenerator(**fields)
