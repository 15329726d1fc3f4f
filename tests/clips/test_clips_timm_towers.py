"""Towers from timm's models by name, and from the user's own files in open_clip's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clips_world
import open_clip
import pytest
import torch
from clips_world import tensors_of, train, trained
from PIL import Image
from safetensors.torch import save_file

from clips.core.artifact import read_manifest
from clips.errors import UserError
from clips.export import ExportConfig, run_export
from clips.model import architectures, towers
from clips.model.architectures import ModelConfig
from clips.training.run_dir import list_checkpoints

NAME = "test_vit"  # timm's own for tests: 160 pixels, 0.4 M parameters


def vision_of(architecture: str, **fields: Any) -> dict[str, Any]:
    return architectures.model_cfg(ModelConfig(architecture=architecture, **fields))["vision_cfg"]


def write_config(path: Path, **parts: Any) -> Path:
    """A file of open_clip's format: a tiny ConvNeXt of timm and a tiny text tower."""
    vision = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    text = {"context_length": 10, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **parts}), encoding="utf-8")
    return path


def test_a_timm_model_has_the_text_tower_of_clips_b_16():
    cfg = architectures.model_cfg(ModelConfig(architecture=f"timm:{NAME}"))
    beside = architectures.model_cfg(ModelConfig(architecture="clips-b-16"))
    assert {**cfg, "vision_cfg": None} == {**beside, "vision_cfg": None}
    trunk = {"timm_model_name": NAME, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    assert cfg["vision_cfg"] == trunk | {"image_size": 160}
    short = architectures.model_cfg(ModelConfig(architecture=f"timm:{NAME}", context_length=12))
    assert short["text_cfg"]["context_length"] == 12


def test_images_are_preprocessed_as_timm_states_by_default():
    assert vision_of("timm:convnext_atto")["image_size"] == 224
    assert vision_of("timm:convnext_atto", image_size=96)["image_size"] == 96
    with pytest.raises(UserError, match=r"model\.image_size: expected 160, the fixed size of this trunk"):
        vision_of(f"timm:{NAME}", image_size=96)
    own = ModelConfig(architecture="timm:vit_tiny_patch16_224.augreg_in21k")
    told, _ = architectures.resolve_preprocessing(own, architectures.resolve_architecture(own).model_cfg)
    assert (told["mean"], told["size"], told["interpolation"]) == ([0.5] * 3, [224, 224], "bicubic")


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("resnet10t", "linear"),
        ("swin_tiny_patch4_window7_224", "linear"),  # a grid of channels last
        ("mobilenetv3_small_050", ""),  # layers between the pooling and the classifier
        ("vgg11", ""),
    ],
)
def test_models_of_many_kinds_make_features_and_tokens(name: str, projection: str):
    cfg = architectures.model_cfg(ModelConfig(architecture=f"timm:{name}"))
    assert cfg["vision_cfg"]["timm_proj"] == projection
    with torch.device("meta"), torch.no_grad():
        model = towers.build_towers(cfg).eval()
        features, tokens = towers.encode_image(model, torch.zeros(2, 3, 224, 224))
        assert features.shape == model.encode_image(torch.zeros(2, 3, 224, 224)).shape == (2, 512)
    assert tokens.shape == (2, 49, towers.token_widths(model)[0])


def test_a_file_has_its_own_sizes_and_this_methods_texts(tmp_path: Path):
    cfg = architectures.model_cfg(ModelConfig(architecture=str(write_config(tmp_path / "mine.json"))))
    assert (cfg["embed_dim"], cfg["vision_cfg"]["image_size"]) == (24, 64)
    text = cfg["text_cfg"]
    assert (text["context_length"], text["width"], text["vocab_size"], text["pool_type"]) == (10, 32, 32_000, "last")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model\.architecture: .*mine\.json: cannot be read as JSON \(.*No such file"),
        ("{", r"mine\.json: cannot be read as JSON"),
        ("[]", r"mine\.json: expected open_clip's model config: \{embed_dim, vision_cfg, text_cfg\}"),
        ('{"embed_dim": 8, "vision_cfg": {}}', "expected open_clip's model config"),
        ('{"embed_dim": 8, "vision_cfg": {"image_size": [8, 4]}, "text_cfg": {}}', r"expected vision_cfg\.image_size"),
        ('{"embed_dim": 8, "vision_cfg": {"widht": 8}, "text_cfg": {}}', "open_clip cannot build it .*'widht'"),
    ],
)
def test_a_wrong_file_is_reported(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        towers.build_towers(architectures.model_cfg(ModelConfig(architecture=str(path))))


def loads_in_stock_open_clip(directory: Path, pixels: int, width: int) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokens = open_clip.get_tokenizer(f"local-dir:{directory}")(["a red thing", "a dog"])
    picture = preprocess(Image.new("RGB", (50, 40), "red"))[None]
    assert picture.shape == (1, 3, pixels, pixels)
    with torch.no_grad():
        image, text = model.eval().encode_image(picture), model.encode_text(tokens)
    assert (image.shape, text.shape) == ((1, width), (2, width))
    stored = tensors_of(directory)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name]), name


def test_a_timm_model_trains_from_its_weights_and_is_loaded_by_stock_open_clip(tmp_path: Path):
    import timm

    weights = timm.create_model(NAME, num_classes=0).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "trunk.safetensors")
    model = {"architecture": f"timm:{NAME}", "context_length": 12, "lock_image": True}
    model |= {"pretrained_trunk": str(tmp_path / "trunk.safetensors")}
    run = trained(clips_world.write_shards(tmp_path / "data", (6,)), tmp_path / "run", model=model, max_steps=1)
    loads_in_stock_open_clip(run, 160, 512)
    found = tensors_of(run)
    assert all(torch.equal(found[f"visual.trunk.{name}"], value) for name, value in weights.items())


def test_a_weights_file_trains_resumes_and_is_exported(tmp_path: Path):
    data, path = clips_world.write_shards(tmp_path / "data", (6,)), write_config(tmp_path / "mine.json")
    run = tmp_path / "run"
    settings: dict[str, Any] = {
        "model": {"architecture": str(path)},
        "max_steps": 3,
        "keep_checkpoints_after_training": True,
    }
    config = clips_world.train_config(data, run, **settings)
    train(config)
    loads_in_stock_open_clip(run, 64, 24)
    assert read_manifest(run)["parents"]["architecture"]["path"] == str(path)
    run_export(ExportConfig(checkpoint=str(list_checkpoints(run)[-1]), output=str(tmp_path / "out")))
    loads_in_stock_open_clip(tmp_path / "out", 64, 24)
    write_config(path, embed_dim=16)
    with pytest.raises(UserError, match=r"holds another run: inputs\.architecture"):
        train(config)
