"""Synthetic scenes with exact ground truth, to run and test the suite.

A scene consists of objects (real emoji sprites) on a background, some scenes have a written word. Captions and
questions follow from the ground truth of a scene. Test scenes are combinations that never occur in training.
"""

from clips.scenes.benchmark_data import BenchmarkRows
from clips.scenes.captions import SceneCaptions, make_captions
from clips.scenes.generate import ScenesConfig, generate_scenes
from clips.scenes.heldout_split import is_test_scene, is_train_scene
from clips.scenes.render import render
from clips.scenes.world import Scene, SceneGenerator, SceneObject, TextSign

__all__ = [
    "BenchmarkRows",
    "Scene",
    "SceneCaptions",
    "SceneGenerator",
    "SceneObject",
    "ScenesConfig",
    "TextSign",
    "generate_scenes",
    "is_test_scene",
    "is_train_scene",
    "make_captions",
    "render",
]
