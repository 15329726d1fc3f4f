"""A frozen trunk's outputs are found again, are those that it would compute, and are never another trunk's."""

from __future__ import annotations

from dataclasses import replace

import clips_world
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clips.data.sources import SourceConfig
from clips.errors import UserError
from clips.loader.data_config import AugmentConfig, DataConfig
from clips.method.clips_model import build_model
from clips.method.recipes import CaptionerConfig, RecipeConfig
from clips.model import architectures, feature_cache, towers
from clips.model.architectures import ModelConfig
from clips.training.mfu import MfuMeter, fake_model, full_batch
from clips.training.train_config import EncoderTrainConfig

CONFIG = ModelConfig(architecture="clips-tinyvit", image_size=64, lock_image=True, cache_trunk_features=True)


def built(seed, config=CONFIG):
    torch.manual_seed(seed)
    cfg = architectures.model_cfg(config)
    model = towers.build_towers(cfg)
    towers.lock_towers(model, config)
    towers.cache_features(model, config, architectures.preprocess_cfg(cfg, config.normalization))
    return model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clips" / "trunks"


@pytest.fixture
def computed(monkeypatch):
    """How many images were computed in each call that computed any."""
    counts = []
    run = feature_cache.FeatureCache.compute_outputs

    def counted(self, image):
        counts.append(len(image))
        return run(self, image)

    monkeypatch.setattr(feature_cache.FeatureCache, "compute_outputs", counted)
    return counts


def test_outputs_are_computed_once_and_right(cache, computed):
    image = torch.randn(3, 3, 64, 64)
    plain = built(0, ModelConfig(architecture="clips-tinyvit", image_size=64, lock_image=True)).eval()
    wanted = [value.detach() for value in towers.encode_image(plain, image)]
    first = towers.encode_image(built(0), image[:2])
    assert computed == [2]
    model = built(0).train()
    again = towers.encode_image(model, image)  # another model with the same weights, as a second training has
    assert computed == [2, 1]
    assert model.visual.trunk.training
    torch.testing.assert_close(again[0], wanted[0])
    torch.testing.assert_close(again[1], wanted[1])
    torch.testing.assert_close(first[1], wanted[1][:2])
    again[0].sum().backward()
    assert model.visual.head.proj.weight.grad.abs().sum() > 0  # what is not frozen still learns


def test_another_trunk_precision_or_image_is_computed_again(cache, computed):
    image = torch.randn(1, 3, 64, 64)
    towers.encode_image(built(0), image)
    towers.encode_image(built(1), image)
    towers.encode_image(built(0), image + 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        towers.encode_image(built(0), torch.cat([image, image + 1]))  # whose output lies otherwise in memory
    assert computed == [1, 1, 1, 2]


@pytest.mark.parametrize("groups", [0, 3])  # all frozen, or the last stage trained
def test_pixels_are_normalized_where_their_outputs_are_missing(cache, computed, groups):
    config = replace(CONFIG, lock_image_unlocked_groups=groups)
    pixels = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in architectures.NORMALIZATIONS["imagenet"])
    wanted = towers.encode_image(built(0, config).eval(), (pixels / 255 - mean) / std)[0]
    for _ in range(2):  # the second training computes nothing
        torch.testing.assert_close(towers.encode_image(built(0, config).eval(), pixels)[0], wanted)
    assert computed == [3, 3]
    other = towers.encode_image(built(0, replace(config, normalization="half")).eval(), pixels)[0]
    assert computed == [3, 3, 3]
    assert not torch.allclose(other, wanted, atol=1e-3)


def test_a_cpu_computes_large_batches_in_parts_in_their_order(cache, computed, monkeypatch):
    monkeypatch.setattr(feature_cache, "_CPU_ROWS", 2)
    images = torch.randn(5, 3, 64, 64)
    plain = built(0, replace(CONFIG, cache_trunk_features=False)).eval()
    torch.testing.assert_close(towers.encode_image(built(0), images)[1], towers.encode_image(plain, images)[1])
    assert computed == [5]


@pytest.mark.slow
def test_a_training_with_cached_outputs_equals_one_without(cache, tmp_path):
    """Its losses and its validation, which averages weights."""
    data = tmp_path / "data"
    clips_world.write_shards(data)
    trunk = {"architecture": "clips-tinyvit-tiny", "lock_image": True}
    settings = {
        "data": {"sources": [{"path": str(data)}], "augment": {"crop_scale_min": 1.0}},
        "recipe": {"name": "clip"},
        "max_steps": 2,
        "ema_decay": 0.5,
        "validation": {"source": {"path": str(data)}, "eval_steps": 1},
    }
    logs = []
    for name in ("cached", "plain"):
        model = trunk | {"cache_trunk_features": name == "cached"}
        output = clips_world.trained(data, tmp_path / name, model=model, precision="fp32", **settings)
        logs.append(clips_world.metrics(output))
    assert len(logs[0]) == 2
    for cached, plain in zip(*logs, strict=True):
        for key in ("contrastive_loss", "val_web_t2i_r1", "grad_norm"):
            assert cached[key] == pytest.approx(plain[key], rel=1e-4), key


def test_augmented_images_are_rejected():
    sources = (SourceConfig(path="x"),)
    same = DataConfig(sources=sources, augment=AugmentConfig(crop_scale_min=1.0))
    assert EncoderTrainConfig(output="o", model=CONFIG, data=same, max_steps=1)
    with pytest.raises(UserError, match=r"cache_trunk_features: expected images without random augmentation"):
        EncoderTrainConfig(output="o", model=CONFIG, data=DataConfig(sources=sources), max_steps=1)


def test_only_outputs_of_a_frozen_timm_trunk_are_cached():
    with pytest.raises(UserError, match=r"expected model\.lock_image: true"):
        ModelConfig(cache_trunk_features=True)
    vit = replace(CONFIG, architecture="timm:vit_tiny_patch16_224", image_size=None, lock_image_unlocked_groups=1)
    for config, message in (
        (ModelConfig(lock_image=True, cache_trunk_features=True), "whose image tower is a timm model"),
        (vit, "expected an image tower whose frozen layers form a chain"),
    ):
        with pytest.raises(UserError, match=message):
            built(0, config)


def test_outputs_of_the_frozen_layers_are_cached_where_others_are_trained(cache, computed):
    config = replace(CONFIG, lock_image_unlocked_groups=3)  # the head, and the last stage
    plain = built(0, replace(config, cache_trunk_features=False)).eval()
    model, image = built(0, config), torch.randn(3, 3, 64, 64)
    before = {name: value.clone() for name, value in model.visual.trunk.stages[:3].state_dict().items()}
    for tower in (plain, model.eval()):
        features, tokens = towers.encode_image(tower, image)
        (features.sum() + tokens.square().sum()).backward()
    torch.testing.assert_close(features, towers.encode_image(plain, image)[0])
    for (name, value), (_, other) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        if value.grad is not None:
            torch.testing.assert_close(other.grad, value.grad, msg=name)
    towers.encode_image(model.train(), image[:2])
    towers.encode_image(built(0, config).train(), image)  # a second training with the same frozen weights
    assert computed == [3]
    for name, value in model.visual.trunk.stages[:3].state_dict().items():  # running statistics, too
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with torch.no_grad():
        model.visual.trunk.stages[3].blocks[0].mlp.fc1.weight.add_(1)
    assert not torch.equal(towers.encode_image(model.eval(), image)[0], features)
    assert computed == [3]


@pytest.mark.parametrize("unlocked", [0, 1])
def test_a_captioner_alone_reads_outputs_of_the_weights_loaded_last(cache, unlocked):
    """Recipe caption_only computes features once to find what they do not depend on, before weights are loaded."""
    config = replace(CONFIG, architecture="clips-efficientnet", lock_image_unlocked_groups=unlocked)
    sizes = CaptionerConfig(width=32, num_layers=1, max_length=16)
    recipe, image = RecipeConfig(name="caption_only", captioner=sizes), torch.randn(2, 3, 64, 64)
    cached, other = (build_model(config, recipe, seed) for seed in (0, 1))
    plain = build_model(replace(config, cache_trunk_features=False), recipe, 1)
    before = towers.encode_image(cached.clip.eval(), image)[1]
    wanted = towers.encode_image(plain.clip.eval(), image)[1]
    torch.testing.assert_close(towers.encode_image(other.clip.eval(), image)[1], wanted)
    fresh = build_model(config, recipe, 0)
    fresh.load_state_dict(other.state_dict())  # as those of a checkpoint, before the first step
    found = towers.encode_image(fresh.clip.eval(), image)[1]
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(before, wanted)
    assert any(value.requires_grad for value in plain.clip.parameters()) == bool(unlocked)


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_atto", "efficientnet_lite0"])
def test_frozen_layers_of_other_families_are_cached(cache, computed, architecture):
    config = replace(CONFIG, architecture=f"timm:{architecture}", lock_image_unlocked_groups=3)
    plain, model = (built(0, replace(config, cache_trunk_features=cached)).eval() for cached in (False, True))
    image = torch.randn(2, 3, 64, 64)
    for _ in range(2):
        torch.testing.assert_close(towers.encode_image(model, image)[0], towers.encode_image(plain, image)[0])
    assert computed == [2]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["clips-efficientnet", "clips-tinyvit"])
@pytest.mark.parametrize("unlocked", [0, 1])
def test_flops_of_a_training_are_those_of_the_layers_that_compute_in_each_step(cache, tmp_path, unlocked, architecture):
    cached = replace(CONFIG, architecture=architecture, image_size=64, lock_image_unlocked_groups=unlocked)
    recipe = RecipeConfig(name="clip")
    data = DataConfig(sources=(SourceConfig(path="/nowhere"),), augment=AugmentConfig(crop_scale_min=1.0))
    flops = []
    for model in (cached, replace(cached, cache_trunk_features=False)):
        config = EncoderTrainConfig(
            output=tmp_path, data=data, model=model, recipe=recipe, global_batch_size=2, max_steps=1
        )
        meter = MfuMeter(config, device=torch.device("cpu"), precision="fp32", processes=1, counted=[])
        flops.append(meter.read(full_batch(fake_model(model, recipe), 2), 1.0)["flops_per_sample"])
    model, image = built(0, cached), torch.randn(2, 3, 64, 64)
    counted = []
    for _ in range(2):  # the first time all layers of the trunk compute
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            towers.encode_image(model, image)
        counted.append(counter.get_total_flops() / 2)
    assert 0 < counted[1] < counted[0]
    assert flops[1] - flops[0] == pytest.approx(counted[0] - counted[1])
