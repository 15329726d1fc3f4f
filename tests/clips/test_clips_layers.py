"""The repeated layers of models, and activation checkpointing of them."""

from __future__ import annotations

from pathlib import Path

import clips_world
import pytest
from clips_world import is_equal, trained
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clips.method.clips_model import build_model
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.compute import checkpoint_layers, repeated_layers
from clips.training.mfu import fake_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def test_repeated_layers_are_found(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "x", recipe={"captioner": {"max_length": 12, "num_layers": 2}})
    model = build_model(config.model, config.recipe, 0)
    counted = [type(layer).__name__ for layer in repeated_layers(model)]
    vision, text = model.clip.visual.transformer.layers, model.clip.transformer.layers
    assert counted == ["ResidualAttentionBlock"] * (vision + text) + ["Block"] * 2
    timm = build_model(ModelConfig(architecture="clips-tinyvit", image_size=32), RecipeConfig(name="clip"), 0)
    assert "TinyVitBlock" in {type(layer).__name__ for layer in repeated_layers(timm.clip.visual)}


def test_layers_with_batch_norms_are_not_recomputed():
    def checkpointed(model: nn.Module, *, recompute: bool) -> list[int]:
        count = checkpoint_layers(model, recompute=recompute)
        found = [number for number, layer in enumerate(repeated_layers(model)) if "forward" in layer.__dict__]
        assert len(found) == count
        return found

    model = build_model(ModelConfig(architecture="clips-ti-16", image_size=32), RecipeConfig(name="clip"), 0)
    assert checkpointed(model, recompute=True) == list(range(24))
    assert checkpointed(model, recompute=False) == []
    norms = build_model(ModelConfig(architecture="clips-tinyvit", image_size=32), RecipeConfig(name="clip"), 0)
    checkpoint_layers(norms)
    found = [module for module in norms.modules() if "forward" in module.__dict__]
    assert found
    assert not any(isinstance(module, _BatchNorm) for layer in found for module in layer.modules())


def test_the_layers_of_stages_are_checkpointed_one_by_one():
    stages = fake_model(ModelConfig(architecture="timm:convnext_atto", image_size=64), RecipeConfig(name="clip"))
    trunk = stages.clip.visual.trunk
    checkpoint_layers(stages)
    blocks = [block for stage in trunk.stages for block in stage.blocks]
    assert len(blocks) == 12
    assert all("forward" in block.__dict__ for block in blocks)
    assert not any("forward" in stage.__dict__ for stage in trunk.stages)
    checkpoint_layers(stages, recompute=False)
    assert not any("forward" in module.__dict__ for module in stages.modules())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_that_are_computed_again_change_nothing(data: Path, tmp_path: Path, precision: str):
    for again in (False, True):
        trained(
            data,
            tmp_path / str(again),
            precision=precision,
            recipe={"name": "clips"},
            max_steps=2,
            distributed={"activation_checkpointing": again},
        )
    assert is_equal(tmp_path / "False", tmp_path / "True")
