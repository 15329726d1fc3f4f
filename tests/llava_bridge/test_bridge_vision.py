"""The vision tower: the source library's own hidden states, batches, saving, errors."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file

from clips.errors import UserError
from llava_bridge.encoders import load_encoder, resolve_encoder
from llava_bridge.model.modeling_vision import EncoderVisionModel, build_vision_model
from llava_bridge.training.setup import FeatureReader


def pixels(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def test_trunk_of_an_open_clip_directory_gives_its_last_feature_map(tmp_path: Path) -> None:
    theirs = bridge_world.make_encoder(tmp_path / "encoder", bridge_world.TRUNK)
    ours = build_vision_model(load_encoder(str(tmp_path / "encoder")))
    batch = pixels(2, 64)
    with torch.no_grad():
        features = theirs.visual.trunk.forward_features(batch)  # (B, D, G, G)
        tokens = ours(batch, output_hidden_states=-1).hidden_states[-1]
    assert tokens.shape == (2, 4, 96)
    assert torch.allclose(tokens[:, 1], features[:, :, 0, 1], atol=1e-5)
    assert (ours.config.class_token, ours.config.patch_size) == (False, 32)


def test_states_of_a_resnet_are_its_stages_and_the_config_states_the_one_in_use(tmp_path: Path) -> None:
    theirs = bridge_world.make_encoder(tmp_path / "encoder", bridge_world.RESNET).visual
    ours = build_vision_model(load_encoder(str(tmp_path / "encoder")))
    batch = pixels(2, 64)
    with torch.no_grad():
        maps = theirs.forward_intermediates(batch)["image_intermediates"]  # (B, D, G, G) each
        states = ours(batch, output_hidden_states=True).hidden_states
    shapes = [(256, 8), (256, 32), (64, 64), (16, 128), (4, 256)]
    assert [tuple(state.shape) for state in states] == [(2, *shape) for shape in shapes]
    for state, features in zip(states, maps, strict=True):
        assert torch.allclose(state, features.flatten(2).transpose(1, 2), atol=1e-5)
    assert (ours.config.class_token, ours.config.hidden_size, ours.config.patch_size) == (False, 128, 16)
    last = build_vision_model(load_encoder(str(tmp_path / "encoder")), layer=-1).config
    assert (last.hidden_size, last.patch_size) == (256, 32)
    with pytest.raises(UserError, match="vision_feature_layer: this encoder has -5 to 4, got -6"):
        build_vision_model(load_encoder(str(tmp_path / "encoder")), layer=-6)


def test_only_the_layers_that_are_asked_for_are_computed(bridge_encoder: Path) -> None:
    model = build_vision_model(load_encoder(str(bridge_encoder)))
    ran: list[int] = []
    for index, block in enumerate(model.tower.visual.transformer.resblocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    states = model(pixels(1, 32), output_hidden_states=-2).hidden_states
    assert ran == [0, 1]
    assert [state is not None for state in states] == [False, False, True, False]
    states = model(pixels(1, 32), output_hidden_states=[0, -1]).hidden_states
    assert [state is not None for state in states] == [True, False, False, True]


def test_frozen_tower_ignores_training_mode() -> None:
    model = build_vision_model(load_encoder("timm:test_efficientnet@random", 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model(pixels(2, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.requires_grad_(True).train()
    model(pixels(2, 64))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("running_mean" in name for name in changed)  # the comparison above would have seen it


@pytest.mark.parametrize("spec", ["vit", "timm:test_efficientnet@random"])
def test_float32_tower_computes_in_the_precision_of_its_pixels(spec: str, bridge_encoder: Path) -> None:
    encoder = load_encoder(str(bridge_encoder)) if spec == "vit" else load_encoder(spec, 64)
    model = build_vision_model(encoder)
    batch = pixels(2, model.config.image_size)
    exact = model(batch).last_hidden_state
    half = model(batch.bfloat16()).last_hidden_state
    assert half.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert (half.float() - exact).norm() < 0.05 * exact.norm()


def test_half_precision_weights_are_read_into_float32(shared: Path) -> None:
    path = shared / "models/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors"
    model = build_vision_model(load_encoder(f"timm:tiny_vit_5m_224@{path}"))
    stored = load_file(path)["patch_embed.conv1.conv.weight"]
    assert stored.dtype == torch.float16
    assert model.dtype == torch.float32
    assert torch.equal(model.tower.trunk.patch_embed.conv1.conv.weight, stored.float())
    assert (model.config.hidden_size, model.config.image_size // model.config.patch_size) == (320, 7)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"preprocess_cfg": {"interpolation": "lanczos"}}, "interpolation: expected bilinear or bicubic, got lanczos"),
        ({"preprocess_cfg": {"mean": [0.5, 0.5]}}, r"open_clip_config\.json: expected sizes, mean and std"),
        ({"preprocess_cfg": [1]}, r"open_clip_config\.json: expected sizes, mean and std"),
        ({"model_cfg": {**bridge_world.VIT, "vision_cfg": 5}}, r"_config\.json: expected open_clip's model_cfg"),
        (
            {"model_cfg": {**bridge_world.VIT, "vision_cfg": {**bridge_world.VIT["vision_cfg"], "layer": 3}}},
            "cannot be built .*unexpected keyword argument 'layer'",
        ),
    ],
)
def test_odd_encoder_configs_are_rejected_in_one_line(fields, match, bridge_encoder, tmp_path):
    shutil.copytree(bridge_encoder, tmp_path / "odd")
    path = tmp_path / "odd" / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(UserError, match=match):
        build_vision_model(load_encoder(str(tmp_path / "odd")))


@pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_a_tower_alone_is_read_as_openvision_2_is_published(file: str, tmp_path: Path) -> None:
    # open_clip_config.json of UCSC-VLAA/openvision2-vit-large-patch14-336-vision-only, with a smaller tower
    vision = {"layers": 3, "width": 64, "patch_size": 14, "image_size": 56, "pool_type": "avg", "output_tokens": True}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    config = {"embed_dim": 64, "vision_cfg": {**vision, "norm_kwargs": {"eps": 1e-6}}, "text_cfg": text}
    theirs = _build_vision_tower(64, {**config["vision_cfg"], "no_ln_pre": True}).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    write = torch.save if file.endswith(".bin") else save_file
    write({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / file)
    (tmp_path / "caption_decoder.safetensors").write_bytes(b"of another class")
    encoder = load_encoder(str(tmp_path))
    batch = pixels(2, 56)
    with torch.no_grad():
        last = build_vision_model(encoder)(batch, output_hidden_states=-1).hidden_states[-1]
        assert torch.allclose(theirs.ln_post(last)[:, 1:], theirs(batch)[1], atol=1e-5)
    assert (encoder.pixels.mean, encoder.pixels.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_bad_encoders_are_rejected_in_one_line(bridge_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        load_encoder(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"has no config \(expected open_clip_config.json\)"):
        load_encoder(str(tmp_path))
    (tmp_path / "began" / ".checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"began is not finished; `clips train .*began/config.yaml` continues it"):
        resolve_encoder(str(tmp_path / "began"))
    broken = tmp_path / "broken"
    shutil.copytree(bridge_encoder, broken)
    (broken / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_encoder(str(broken))
    weights = load_file(bridge_encoder / "open_clip_model.safetensors")
    del weights["visual.conv1.weight"]
    save_file(weights, broken / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"not of this architecture \(lacks 'visual.conv1.weight'\)"):
        build_vision_model(load_encoder(str(broken)))
    (broken / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match=r"open_clip_config\.json"):
        load_encoder(str(broken))
    with pytest.raises(UserError, match=r"did you mean .*tiny_vit_5m_224"):
        load_encoder("timm:tiny_vit_5m_225@random")


def test_cached_features_are_right_and_specific_to_weights_and_layers(bridge_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    batch, computed, readers = pixels(3, 32), [], []

    def tower(layers: int | list[int], shift: float = 0.0, directory: Path = bridge_encoder) -> EncoderVisionModel:
        model = build_vision_model(load_encoder(str(directory)))
        next(model.parameters()).data.add_(shift)
        shards = model.cache_features(layers, torch.float32)
        readers.append(FeatureReader(shards, torch.float32, SimpleNamespace(vision_config=model.config)))
        states = model.tower.states
        model.tower.states = lambda seen, deepest: (computed.append(len(seen)), states(seen, deepest))[1]
        return model

    def seen(model: EncoderVisionModel, layers: bool | int | list[int], *cached: Any) -> list[torch.Tensor]:
        with model.with_features(*cached) if cached else contextlib.nullcontext():
            return [state for state in model(batch, output_hidden_states=layers).hidden_states if state is not None]

    def trained(model: EncoderVisionModel, layers: int | list[int]) -> list[torch.Tensor]:
        """With what a worker of the loader reads, as in a training."""
        read = readers[-1]({"pixel_values": batch})
        found = seen(model, layers, read.get("cached_features"), read["feature_keys"])
        assert model.feature_shards is not None
        model.feature_shards.flush()
        return found

    plain = build_vision_model(load_encoder(str(bridge_encoder)))
    for _ in range(2):
        for layers in (-2, [-2, 1]):
            for own, wanted in zip(trained(tower(layers), layers), seen(plain, layers), strict=True):
                assert torch.equal(own, wanted)
    assert computed == [3, 3]
    again = tower(-2)  # earlier versions of transformers ask for all states and read one of them
    read = readers[-1]({"pixel_values": batch})
    (found,) = seen(again, True, read["cached_features"], read["feature_keys"])
    assert torch.equal(found, seen(plain, -2)[0])
    assert computed == [3, 3]
    changed = tower(-2, shift=0.1)
    assert not torch.allclose(trained(changed, -2)[0], seen(plain, -2)[0])
    assert computed == [3, 3, 3]
    trained(changed, -1)  # of another layer than the kept ones: computed
    assert computed == [3, 3, 3, 3]
    quick = tmp_path / "quick"  # of the same weights
    shutil.copytree(bridge_encoder, quick)
    file = quick / "open_clip_config.json"
    stated = json.loads(file.read_text())
    file.write_text(json.dumps({**stated, "model_cfg": {**stated["model_cfg"], "quick_gelu": True}}))
    (found,), (wanted,) = (
        trained(tower(-2, directory=quick), -2),
        seen(build_vision_model(load_encoder(str(quick))), -2),
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(found, seen(plain, -2)[0])
