"""``model.patch_dropout``: patches are left out in training, never in evaluation, and as before after a resume."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import clips_world
import pytest
import torch
from clips_world import is_equal, tensors_of, train, trained

from clips.encoder import load_encoder
from clips.errors import UserError
from clips.model import architectures, towers
from clips.model.architectures import ModelConfig
from clips.training.run_dir import list_checkpoints

PATCHES = 16


def built(patch_dropout: float) -> towers.Towers:
    torch.manual_seed(0)
    config = ModelConfig(architecture="clips-tiny", image_size=64, patch_dropout=patch_dropout)
    return towers.build_towers(architectures.model_cfg(config))


def tokens_read(model: towers.Towers, image: torch.Tensor) -> tuple[int, int, torch.Tensor]:
    """Tokens that the first block reads, the patch tokens that come out, and the features."""
    seen: list[int] = []
    hook = model.visual.transformer.resblocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    features, patches = towers.encode_image(model, image)
    hook.remove()
    return seen[0], patches.shape[1], features


def test_patches_are_dropped_in_training_and_none_in_evaluation():
    model, image = built(0.75), torch.randn(3, 3, 64, 64)
    assert tokens_read(model.train(), image)[:2] == (1 + PATCHES // 4, PATCHES // 4)  # the class token always stays
    with torch.no_grad():
        drawn = [tokens_read(model, image)[2] for _ in range(2)]
        assert not torch.equal(*drawn)  # others each time
        read, patches, features = tokens_read(model.eval(), image)
        assert (read, patches) == (1 + PATCHES, PATCHES)
        torch.testing.assert_close(features, tokens_read(built(0.0).train(), image)[2])


def test_each_image_drops_other_patches():
    model, image = built(0.5).train(), torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1)
    one, other = towers.encode_image(model, image)[0]
    assert not torch.equal(one, other)


@pytest.mark.slow
def test_a_resumed_training_drops_the_same_patches(tmp_path: Path):
    data = clips_world.write_shards(tmp_path / "data")
    model = {"architecture": "clips-tiny", "image_size": 64, "context_length": 12}
    fields = {"model": {**model, "patch_dropout": 0.5}, "keep_checkpoints_after_training": True}
    config = clips_world.train_config(data, tmp_path / "run", **fields)
    train(config)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run" / ".checkpoints", again / ".checkpoints")
    shutil.rmtree(list_checkpoints(again)[-1])
    shutil.copy(tmp_path / "run" / "config.yaml", again)
    torch.manual_seed(1)  # as another process, which has drawn other numbers before
    train(dataclasses.replace(config, output=str(again)))
    assert is_equal(tmp_path / "run", again)
    weights, without = (tensors_of(path) for path in (again, trained(data, tmp_path / "all", model=model)))
    assert not torch.equal(weights["visual.conv1.weight"], without["visual.conv1.weight"])
    encoder = load_encoder(str(tmp_path / "run"))
    assert tokens_read(encoder.model, torch.zeros(1, 3, 64, 64))[0] == 1 + PATCHES


def test_only_vits_have_patches_to_drop():
    with pytest.raises(UserError, match=r"model\.patch_dropout: expected a ViT, not a ResNet"):
        architectures.model_cfg(ModelConfig(architecture="clips-rn-tiny", patch_dropout=0.5))
