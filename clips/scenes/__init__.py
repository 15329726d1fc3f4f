"""Synthetic scenes with exact ground truth, to run and test the suite.

A scene consists of objects (real emoji sprites) on a background, some scenes have a written word. Captions and
questions follow from the ground truth of a scene. Test scenes are combinations that never occur in training.
"""

from clips.scenes.captions import Captions, captions_of
from clips.scenes.hub import BenchmarkSizes
from clips.scenes.make import ScenesConfig, make_scenes
from clips.scenes.render import render
from clips.scenes.split import belongs_to_test, belongs_to_training
from clips.scenes.world import Scene, SceneObject, Sign, World

__all__ = [
    "BenchmarkSizes",
    "Captions",
    "Scene",
    "SceneObject",
    "ScenesConfig",
    "Sign",
    "World",
    "belongs_to_test",
    "belongs_to_training",
    "captions_of",
    "make_scenes",
    "render",
]
