from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exchange_world as world
import numpy as np
import open_clip
import pytest
import torch
import yaml
from clips_world import tensors_of, trained, write_shards
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.core.artifact import directory_hash, read_manifest
from clips.encoder import load_encoder, load_transformers_encoder
from clips.errors import UserError
from clips.interchange.importing import ImportConfig, run_import
from clips.interchange.parity import Parity
from clips.method.clips_model import build_model
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig, resolve_architecture
from clips.model.loading import read_weights, select_model
from clips.model.tokenizer import ClipsTokenizer, require_rows
from clips.model_card import write_card
from clips.model_refs import resolve_model_dir, state_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
CLIPS_CFG = {  # as the released configs state it, at a tiny size
    "embed_dim": 24,
    "vision_cfg": world.VIT["vision_cfg"]
    | {"head_width": 16, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    | {"norm_kwargs": {"eps": 1e-6}},
    "text_cfg": world.VIT["text_cfg"]
    | {"context_length": 80, "vocab_size": 32000, "hf_tokenizer_name": "bert-base-uncased"}
    | {"tokenizer_kwargs": {"strip_sep_token": True}, "pool_type": "last", "no_causal_mask": True}
    | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
}


@pytest.fixture(scope="module", autouse=True)
def _siglip_tower() -> None:
    world.register_small_siglip_tower()


def imported(source: Path, output: Path, **fields: Any) -> Any:
    run_import(ImportConfig(path=str(source), output=str(output), **fields))
    return load_encoder(output)


def assert_same_features(encoder: Any, theirs: Any, tokens: torch.Tensor) -> None:
    """Of unit length and of any length, to 1e-5; and not because all is one."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for mine, other in (
            (encoder.model.encode_image(images), theirs.get_image_features(pixel_values=images).pooler_output),
            (encoder.model.encode_text(tokens), theirs.get_text_features(input_ids=tokens).pooler_output),
        ):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(F.normalize(mine, dim=-1), F.normalize(other, dim=-1), atol=1e-5, rtol=0)
            assert not torch.allclose(mine[0], mine[1], atol=1e-2)


CLIP_KINDS: dict[str, dict[str, Any]] = {
    "openai": {},
    "laion": {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu"}},
    "mixed": {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}},
    "old eos": {"text": {"eos_token_id": 2}},
    "inner eos": {"text": {"eos_token_id": 5}},
}


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_hf_clip(tmp_path: Path, kind: str):
    theirs = world.hf_clip(tmp_path / "hf", **CLIP_KINDS[kind])
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    tokens = encoder.tokenizer(["a red square", "two dogs"])
    assert_same_features(encoder, theirs, tokens)
    with torch.no_grad():
        logits = theirs(input_ids=tokens, pixel_values=torch.ones(1, 3, 32, 32)).logits_per_image
        assert torch.allclose(logits, encoder.model.get_logits(torch.ones(1, 3, 32, 32), tokens)[0], atol=1e-4)
    assert read_manifest(tmp_path / "encoder")["largest_difference"] < 1e-6


def test_hf_clip_brings_its_words_and_its_pixels(tmp_path: Path):
    from transformers import AutoImageProcessor, AutoTokenizer

    world.hf_clip(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder", license="mit")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    padded = theirs(world.TEXTS, padding="max_length", max_length=10, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(encoder.tokenizer(world.TEXTS), padded)
    assert encoder.tokenizer(["a red dog"])[0, :5].tolist() == [1, 3, 4, 2, 12]  # begin, a, red, unknown, end
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "hf")(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(encoder.preprocess(image), pixels, atol=1e-5, rtol=0)
    assert encoder.config["preprocess_cfg"]["resize_mode"] == "shortest"
    assert read_manifest(tmp_path / "encoder")["license"] == "mit"
    assert "license: mit" in (tmp_path / "encoder" / "README.md").read_text()


def test_hf_siglip(tmp_path: Path):
    theirs = world.hf_siglip(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    tokens = encoder.tokenizer(["a red square", "two dogs"])
    assert_same_features(encoder, theirs, tokens)
    with torch.no_grad():
        pixels = torch.ones(1, 3, 32, 32)
        logits = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
        torch.testing.assert_close(encoder.model.get_logits(pixels, tokens)[0], logits, atol=1e-4, rtol=0)
    assert encoder.config["preprocess_cfg"]["resize_mode"] == "squash"
    assert read_manifest(tmp_path / "encoder")["format"] == "hf_siglip"


READ: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no normalization": {"do_normalize": False},
    "pixels to 255": {"do_rescale": False, "image_mean": [127.5, 120.0, 110.0], "image_std": [60.0, 70.0, 80.0]},
    "pixels to 2": {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.8], "image_std": [0.5, 0.4, 0.6]},
    "to 255 and no normalization": {"do_rescale": False, "do_normalize": False},
    "bilinear": {"resample": 2},
    "squash": {"do_center_crop": False, "size": {"height": 32, "width": 32}},
    "squash and crop": {"size": {"height": 32, "width": 32}},
    "numbers as sizes": {"size": 32, "crop_size": 32},
}


@pytest.mark.parametrize("kind", READ)
def test_each_entry_of_an_image_processor_is_read(tmp_path: Path, kind: str):
    from transformers import AutoImageProcessor

    world.hf_clip(tmp_path / "hf")
    file = tmp_path / "hf" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | READ[kind]))
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    assert read_manifest(tmp_path / "encoder")["pixel_levels"] < 0.1
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    for shape in ((90, 50), (50, 90), (32, 32), (20, 24)):
        theirs = processor(drawn(*shape), return_tensors="pt").pixel_values[0].float()
        levels = (encoder.preprocess(drawn(*shape)) - theirs).abs()
        levels *= 255 * torch.tensor(encoder.config["preprocess_cfg"]["std"]).view(3, 1, 1)
        assert levels.max() < 1.5, shape  # the libraries round differently


ONLY = r"hf/preprocessor_config\.json: {}: open_clip computes only .*{}.*; benchmarks read .* as transformers:.*hf$"
NUMBERS = r"hf: expected numbers as rescale_factor, image_mean and image_std \("
REJECTED: list[tuple[dict[str, Any], str]] = [
    ({"do_resize": False}, ONLY.format("do_resize", "true, got False")),
    ({"size": {"shortest_edge": 36}}, ONLY.format("size", r"\{'shortest_edge': 32\}, got .*36")),
    ({"crop_size": {"height": 28, "width": 28}}, ONLY.format("crop_size", "the model's images, got .*28")),
    *(({"resample": kernel}, ONLY.format("resample", f", got {kernel}")) for kernel in (0, 1, 4, 5)),
    ({"do_pad": True}, ONLY.format("do_pad", "processors without it, got True")),
    (
        {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": None},
        ONLY.format("crop_pct", "without it, got 0.875"),
    ),
    ({"rescale_factor": 0}, ONLY.format("rescale_factor", "a positive number, got 0")),
    ({"image_mean": [0.5, 0.5]}, NUMBERS),
    ({"rescale_factor": None}, NUMBERS),
    ({"image_std": None}, NUMBERS),
]


@pytest.mark.parametrize(("fields", "message"), REJECTED)
def test_an_image_processor_that_open_clip_cannot_compute_is_rejected(tmp_path: Path, fields: Any, message: str):
    world.hf_clip(tmp_path / "hf")
    file = tmp_path / "hf" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 32, "width": 32}} | fields))
    with pytest.raises(UserError, match=message) as told:
        imported(tmp_path / "hf", tmp_path / "encoder")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "encoder").exists()


def test_a_wrong_preprocessing_is_noticed_by_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from clips.interchange import hf_files

    world.hf_clip(tmp_path / "hf")
    monkeypatch.setitem(hf_files._RESAMPLING, 3, "bilinear")
    with pytest.raises(UserError, match=r"open_clip's pixels would differ from its image processor's by 1\.\d of"):
        imported(tmp_path / "hf", tmp_path / "encoder")


def test_texts_have_equal_tokens_with_and_without_an_import(tmp_path: Path):
    """In `transformers:DIR`, the imported encoder and OpenAI's own tokenizer; transformers alone keeps curly quotes."""
    from open_clip.tokenizer import SimpleTokenizer

    from clips.encoder import load_transformers_encoder

    world.hf_clip(tmp_path / "hf", text={"vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406})
    alone = world.clip_tokenizer(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    unimported = load_transformers_encoder(tmp_path / "hf")
    ours = encoder.tokenizer(world.ODD_TEXTS)
    assert torch.equal(ours, unimported.tokenizer(world.ODD_TEXTS))
    for own, openai in zip(ours.tolist(), SimpleTokenizer(context_length=10)(world.ODD_TEXTS).tolist(), strict=True):
        length = own.index(49407) + 1
        assert own[:length] == openai[:length]
    with torch.no_grad():
        assert torch.allclose(encoder.model.encode_text(ours), unimported.model.encode_text(ours), atol=1e-5)
    assert alone(world.ODD_TEXTS[0]).input_ids != ours[0, : len(alone(world.ODD_TEXTS[0]).input_ids)].tolist()
    named = read_manifest(tmp_path / "encoder")["other_tokens"]
    assert "the dog’s toy" in named
    assert "résumé, São Paulo, ÎLE" not in named
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert all(f"`{text}`" in card for text in named)


def test_a_tokenizer_that_changes_on_the_way_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from clips.interchange import hf_files

    world.hf_clip(tmp_path / "hf")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(world, "WORDS", [*world.WORDS[:3], "red", "a", *world.WORDS[5:]])
    world.word_tokenizer(tmp_path / "other")
    save = hf_files.save_tokenizer
    monkeypatch.setattr(
        hf_files, "save_tokenizer", lambda path, directory, rows: save(tmp_path / "other", directory, rows)
    )
    with pytest.raises(UserError, match="hf: transformers gives 'a photo of a cat' other tokens than open_clip: "):
        imported(tmp_path / "hf", tmp_path / "encoder")


def test_without_an_image_processor_the_familys_preprocessing_is_named(tmp_path: Path, capsys):
    world.hf_siglip(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    assert encoder.config["preprocess_cfg"]["mean"] == [0.5] * 3
    assert "(SigLIP's, because it has no image processor)" in capsys.readouterr().err


def test_an_activation_that_differs_from_timm_is_reported(tmp_path: Path):
    world.hf_siglip(tmp_path / "hf", vision={"hidden_act": "gelu"})
    with pytest.raises(UserError, match=r"by \d\.\de-0\d \(timm's .* computes gelu_pytorch_tanh, the source gelu\)"):
        imported(tmp_path / "hf", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
    imported(tmp_path / "hf", tmp_path / "encoder", tolerance=0.1)
    assert 1e-5 < read_manifest(tmp_path / "encoder")["largest_difference"] < 0.1


def assert_same_weights(encoder: Any, model: torch.nn.Module) -> None:
    found, expected = encoder.model.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value.float(), found[name]) for name, value in expected.items())


def written(path: Path, rename: Callable[[str], str] = str, **more: Any) -> Any:
    """Write a model's state dict, or that of a training checkpoint with ``more``; returns the model."""
    model = world.open_clip_model(world.VIT)
    state = {rename(name): value for name, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "name": "run", "state_dict": state, **more} if more else state, path)
    return model


WRITTEN: dict[str, tuple[str, Callable[[str], str]]] = {
    "state dict": ("weights.bin", str),
    "safetensors": ("weights.safetensors", str),
    "lightning": ("a.pt", lambda name: f"model.{name}"),
    "compiled lightning": ("a.pt", lambda name: f"model._orig_mod.{name}"),
    "compiled tower": ("a.pt", lambda name: name.replace("visual.", "visual._orig_mod.", 1)),
    "fsdp": (
        "a.pt",
        lambda name: "_fsdp_wrapped_module." + name.replace(".resblocks.0.", ".resblocks.0._fsdp_wrapped_module."),
    ),
    "checkpointed": ("a.pt", lambda name: name.replace(".resblocks.1.", ".resblocks.1._checkpoint_wrapped_module.")),
    "ddp within lightning": ("a.pt", lambda name: f"module.model.module.{name}"),
}


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that stock open_clip knows, at the size of `exchange_world.VIT`."""
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-small0-8", world.VIT)
    return "ViT-small0-8"


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_of_weights_with_its_architecture(tmp_path: Path, kind: str, small_architecture: str):
    name, rename = WRITTEN[kind]
    model = written(tmp_path / name, rename)
    assert_same_weights(imported(tmp_path / name, tmp_path / "encoder", architecture=small_architecture), model)
    difference = read_manifest(tmp_path / "encoder")["largest_difference"]
    assert difference == (0 if rename is str else None)  # open_clip's own loader reads no other names


def test_the_architecture_of_weights_is_that_of_their_sizes_if_there_is_one(
    tmp_path: Path, small_architecture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from open_clip import factory

    model = written(tmp_path / "weights.pt")
    assert_same_weights(imported(tmp_path / "weights.pt", tmp_path / "encoder"), model)
    assert f"its sizes are those of {small_architecture} alone" in capsys.readouterr().err
    monkeypatch.setitem(factory._MODEL_CONFIGS, f"{small_architecture}-quickgelu", world.VIT)
    message = f"give --architecture; its sizes are those of {small_architecture} and {small_architecture}-quickgelu"
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "weights.pt", tmp_path / "other")
    monkeypatch.delitem(factory._MODEL_CONFIGS, f"{small_architecture}-quickgelu")
    monkeypatch.delitem(factory._MODEL_CONFIGS, small_architecture)
    with pytest.raises(UserError, match=r"does not state its architecture; give --architecture$"):
        imported(tmp_path / "weights.pt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_training_checkpoint_with_its_architecture(tmp_path: Path, small_architecture: str):
    file = tmp_path / "epoch_3.pt"
    model = written(file, lambda name: f"module._orig_mod.{name}", optimizer={"state": {}, "param_groups": []})
    encoder = imported(file, tmp_path / "encoder", architecture=small_architecture)
    assert_same_weights(encoder, model)
    assert encoder.tokenizer(["a photo"])[0, :4].tolist() == [49406, 320, 1125, 49407]  # OpenAI's words
    assert encoder.config["preprocess_cfg"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    manifest = read_manifest(tmp_path / "encoder")
    assert manifest["hash"] == directory_hash(tmp_path / "encoder")
    assert manifest["parents"]["source"]["hash"] == directory_hash(file)


def drawn(width: int = 90, height: int = 50) -> Image.Image:
    """Shading with an edge and noise, wider than high, so that each kernel, crop and normalization shows."""
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 150, height))
    shading = np.stack([across, down, np.where(across > down, 180, 20)], axis=-1)
    noise = np.random.default_rng(0).integers(0, 50, shading.shape)
    return Image.fromarray((shading + noise).astype(np.uint8))


class Shell(torch.nn.Module):
    """What open_clip's factory needs of a model to resolve its preprocessing, without weights."""

    def __init__(self, embed_dim: int, vision_cfg: dict[str, Any], **_: Any) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.image_size = vision_cfg.get("image_size", 224)


@pytest.mark.filterwarnings("ignore:QuickGELU mismatch:UserWarning")
def test_preprocessing_is_open_clips_own_for_all_its_architectures_and_tags(monkeypatch: pytest.MonkeyPatch):
    from open_clip import factory

    from clips.interchange.conversion import ImportedEncoder
    from clips.interchange.importing import with_preprocessing
    from clips.interchange.open_clip_format import configs_for_architecture

    def assert_equal(mine: dict[str, Any], theirs: Any) -> None:
        stock = {key: list(value) if isinstance(value, tuple) else value for key, value in theirs.items()}
        size = stock.pop("size")
        assert mine == stock | {"size": [size, size] if isinstance(size, int) else size}

    for name in ("RN50", "ViT-B-32", "ViT-B-16-SigLIP"):  # built as they are
        with torch.device("meta"):
            built = open_clip.create_model_and_transforms(name, pretrained_image=False, device="meta")[0]
        assert_equal(configs_for_architecture(name, {})[1], built.visual.preprocess_cfg)
    for kind in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(factory, kind, Shell)
    monkeypatch.setattr(factory, "download_pretrained", lambda cfg, cache_dir: "weights.pt")
    tags = 0
    for name in open_clip.list_models():
        cfg, preprocess, source = configs_for_architecture(name, {})
        assert_equal(preprocess, open_clip.create_model_and_transforms(name)[0].visual.preprocess_cfg)
        for tag in open_clip.list_pretrained_tags_by_model(name):
            model = open_clip.create_model_and_transforms(name, pretrained=tag, load_weights=False)[0]
            found = ImportedEncoder(
                model_cfg=cfg, preprocess_cfg=preprocess, preprocess_source=source, weights={}, write_tokenizer=print
            )
            config = ImportConfig(path="a.pt", output="b", architecture=name, preprocessing=tag)
            assert_equal(with_preprocessing(found, config, "open_clip").preprocess_cfg, model.visual.preprocess_cfg)
            tags += 1
    assert tags > 150


@pytest.fixture
def timm_architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of stock open_clip with a small timm trunk, and a pretrained tag of another preprocessing."""
    from open_clip import factory, pretrained

    trunk = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    cfg = world.VIT | {"vision_cfg": trunk | {"image_size": 160}}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-small0-timm", cfg)
    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-small0-timm", {"webli": pretrained._slpcfg()})
    return "ViT-small0-timm"


def test_a_timm_trunk_in_a_file_sees_images_as_in_stock_open_clip(
    tmp_path: Path, timm_architecture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from open_clip import factory

    file = tmp_path / "epoch_1.pt"
    torch.save({"state_dict": world.open_clip_model(open_clip.get_model_config(timm_architecture)).state_dict()}, file)
    monkeypatch.setattr(factory, "download_pretrained", lambda cfg, cache_dir: str(file))
    for pretrained, stated in ((str(file), None), ("webli", "webli")):
        encoder = imported(file, tmp_path / f"encoder {stated}", architecture=timm_architecture, preprocessing=stated)
        model, _, preprocess = open_clip.create_model_and_transforms(timm_architecture, pretrained=pretrained)
        assert torch.equal(encoder.preprocess(drawn()), preprocess(drawn()))
        with torch.no_grad():
            pixels = preprocess(drawn())[None]
            assert torch.equal(encoder.model.encode_image(pixels), model.eval().encode_image(pixels))
        said = capsys.readouterr().err
        assert ("give --preprocessing webli" in said) is (stated is None)
        assert "squashed, 160x160" in said
    run = ["import", str(file), "--architecture", timm_architecture, "--output", str(tmp_path / "stated")]
    assert dispatch("clips", "", COMMANDS, [*run, "--preprocessing.mean", "[0.5, 0.4, 0.3]"]) == 0
    preprocess = load_encoder(tmp_path / "stated").config["preprocess_cfg"]
    assert (preprocess["mean"], preprocess["resize_mode"]) == ([0.5, 0.4, 0.3], "shortest")
    assert "mean [0.5, 0.4, 0.3]" in (tmp_path / "stated" / "README.md").read_text()
    with pytest.raises(UserError, match=r"^preprocessing: expected entries, or an open_clip tag .* \(known: webli\)"):
        imported(file, tmp_path / "no", architecture=timm_architecture, preprocessing="openai")


@pytest.mark.parametrize("stated", [None, {"mean": 0.5, "std": [0.2, 0.3, 0.4]}])
def test_a_directory_that_states_less_has_open_clips_defaults(tmp_path: Path, stated: dict[str, Any] | None):
    world.open_clip_directory(tmp_path / "hub")
    config = {"model_cfg": world.VIT} | ({} if stated is None else {"preprocess_cfg": stated})
    (tmp_path / "hub" / "open_clip_config.json").write_text(json.dumps(config))
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'hub'}")
    encoder = imported(tmp_path / "hub", tmp_path / "encoder")
    assert torch.equal(encoder.preprocess(drawn()), preprocess(drawn()))


def quick_gelu_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if "-quickgelu" in line]


def test_weights_do_not_show_their_activation_so_a_line_does(
    tmp_path: Path, small_architecture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, f"{small_architecture}-quickgelu", world.VIT | {"quick_gelu": True})
    written(tmp_path / "weights.bin")
    imported(tmp_path / "weights.bin", tmp_path / "plain", architecture=small_architecture)
    (line,) = quick_gelu_lines(capsys.readouterr().err)
    assert line.startswith(f"architecture: {small_architecture} computes GELU")
    imported(tmp_path / "weights.bin", tmp_path / "quick", architecture=f"{small_architecture}-quickgelu")
    assert not quick_gelu_lines(capsys.readouterr().err)
    assert "| activation | QuickGELU |" in (tmp_path / "quick" / "README.md").read_text()


@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_a_checkpoint_of_open_clips_older_trainer_is_read(tmp_path: Path, module: str, small_architecture: str):
    """Its learning rate is a numpy scalar, under the module's name of before or after numpy 2."""
    model = world.open_clip_model(world.VIT)
    rate = 0.5 * (1 + np.cos(np.pi * 3 / 7)) * 5e-4
    content = {"state_dict": model.state_dict(), "optimizer": {"state": {}, "param_groups": [{"lr": rate}]}}
    torch.save(content, tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=False)
    stored = (tmp_path / "epoch_3.pt").read_bytes()
    assert b"cnumpy._core.multiarray\nscalar\n" in stored
    (tmp_path / "epoch_3.pt").write_bytes(stored.replace(b"cnumpy._core.", f"c{module}.".encode()))
    assert_same_weights(imported(tmp_path / "epoch_3.pt", tmp_path / "encoder", architecture=small_architecture), model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_openais_torchscript_gets_a_hint_that_works(tmp_path: Path, small_architecture: str):
    """Its state dict has three numbers beside the weights, which are in half precision."""
    model = world.open_clip_model(world.VIT).half()
    archive = torch.nn.Module()
    for name in ("input_resolution", "context_length", "vocab_size"):
        archive.register_buffer(name, torch.tensor(3))
    torch.jit.save(torch.jit.script(archive), tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match=r"ViT-B-32\.pt: a TorchScript archive, as OpenAI's; .*torch\.jit\.load"):
        imported(tmp_path / "ViT-B-32.pt", tmp_path / "no", architecture=small_architecture)
    torch.save(model.state_dict() | archive.state_dict(), tmp_path / "OUT.pt")
    assert_same_weights(imported(tmp_path / "OUT.pt", tmp_path / "encoder", architecture=small_architecture), model)


@pytest.mark.parametrize("custom", [False, True])
def test_a_hub_directory_whose_weights_are_a_pickle_of_tensors(tmp_path: Path, custom: bool):
    cfg = world.VIT | {"custom_text": custom}
    model = world.open_clip_directory(tmp_path / "hub", cfg)
    (tmp_path / "hub" / "open_clip_model.safetensors").unlink()
    plain = {key.removeprefix("text."): value for key, value in model.state_dict().items()}  # either layout is read
    torch.save(plain, tmp_path / "hub" / "open_clip_pytorch_model.bin")
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    encoder = imported(tmp_path / "hub", tmp_path / "encoder")
    tokens = encoder.tokenizer(world.TEXTS)
    with torch.no_grad():
        assert torch.equal(encoder.model.encode_text(tokens), model.encode_text(tokens))
    assert encoder.config["preprocess_cfg"] == world.PREPROCESS
    assert read_manifest(tmp_path / "encoder")["license"] == "apache-2.0"


def test_a_strangers_license_is_no_markup_in_the_card(tmp_path: Path):
    license = "mit\nbase_model: theirs\n---\n<script>alert(1)</script> [x](javascript:y) \x1b]0;z\x07"
    manifest = {"format": "open_clip", "preprocessing": "", **vars(Parity())}
    config = ImportConfig(path="theirs", output="mine")
    write_card(tmp_path, "imported", manifest=manifest, license=license, config=config, cfg=CLIPS_CFG)
    head, text = (tmp_path / "README.md").read_text().split("\n---\n")
    stated = yaml.safe_load(head)
    assert stated["license"].startswith("mit base_model: theirs --- ")
    assert "base_model" not in stated
    assert not any(sign in text for sign in ("<script", "[x](", "\x1b", "\x07"))


def test_released_clips_has_its_tokenizer_with_and_without_an_import(tmp_path: Path):
    model, released = world.open_clip_directory(tmp_path / "released", CLIPS_CFG), tmp_path / "released"
    (released / "open_clip_model.safetensors").unlink()
    torch.save(model.state_dict(), released / "open_clip_pytorch_model.bin")  # as the authors write it
    expected = ClipsTokenizer(80)(world.TEXTS)  # class token last, as the authors' CLIPS_Tokenizer
    for encoder in (load_encoder(released), taken := imported(released, tmp_path / "encoder")):
        assert torch.equal(encoder.tokenizer(world.TEXTS), expected)
        with torch.no_grad():
            assert torch.equal(encoder.model.encode_text(expected), model.encode_text(expected))
    assert "tokenizer_kwargs" not in taken.config["model_cfg"]["text_cfg"]
    config = ModelConfig(architecture=str(released), pretrained=str(released))
    assert torch.equal(resolve_architecture(config).tokenizer(world.TEXTS), expected)
    start = build_model(config, RecipeConfig(name="clip"), seed=0).clip.state_dict()
    assert all(torch.equal(value.flatten(), start[name].flatten()) for name, value in model.state_dict().items())


def test_other_encoders_keep_open_clips_tokenizer():
    """CLIPA's too, whose configs are CLIPS's but for context and activation."""
    names = open_clip.list_models()
    assert len([name for name in names if "CLIPA" in name]) == 6
    for name in names:
        config = {"model_cfg": open_clip.get_model_config(name)}
        assert state_tokenizer(config) is config, name
    assert state_tokenizer({"model_cfg": CLIPS_CFG})["model_cfg"]["text_cfg"]["tokenizer_mode"] == "clips"


def test_the_bridge_reads_an_imported_encoder(tmp_path: Path):
    from llava_bridge.encoders import build_tower
    from llava_bridge.encoders import load_encoder as load_for_bridge

    world.hf_clip(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    found = load_for_bridge(str(tmp_path / "encoder"))
    tower = build_tower(found.source, found.architecture).eval()
    tower.load_state_dict(found.weights)
    pixels = torch.randn(2, 3, 32, 32)
    *_, last = tower.states(pixels, tower.depth)
    with torch.no_grad():
        feature = encoder.model.visual.ln_post(last[:, 0]) @ encoder.model.visual.proj
        torch.testing.assert_close(feature, encoder.model.encode_image(pixels))


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / "has run"),)


def spoil_hf(path: Path) -> None:
    world.hf_clip(path)
    weights = load_file(path / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), path / "model.safetensors", metadata={"format": "pt"})


def spoil_eos(path: Path) -> None:
    world.hf_clip(path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = [12]
    (path / "config.json").write_text(json.dumps(config))


def spoil_bert(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')


def state() -> dict[str, torch.Tensor]:
    return world.open_clip_model(world.VIT).state_dict()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "hf": (spoil_hf, r"hf: its weights do not fit its config\.json: missing keys: "),
    "eos": (spoil_eos, r"eos: config\.json: text_config\.eos_token_id: expected a token, got \[12\]$"),
    "bert": (spoil_bert, r"bert: its config\.json is of a 'bert'; expected open_clip's Hub format"),
    "absent.pt": (lambda path: None, r"absent\.pt: no such file or directory"),
    "broken.pt": (lambda path: path.write_bytes(b"no weights"), r"broken\.pt: .*expected a state dict"),
    "evil.pt": (
        lambda path: torch.save({"state_dict": state(), "args": Evil(path.parent)}, path),
        r"evil\.pt: rejected: it needs posix\.mkdir, and only tensors, plain values and numpy's arrays are read",
    ),
    "other.pt": (
        lambda path: torch.save(state() | {"visual.extra": torch.zeros(1)}, path),
        r"other\.pt: not of this architecture: it has the unexpected visual\.extra$",
    ),
    "shape.pt": (
        lambda path: torch.save(state() | {"visual.proj": torch.zeros(64, 23)}, path),
        r"another shape of visual\.proj: \(64, 23\), expected \(64, 24\)$",
    ),
    "nan.pt": (
        lambda path: torch.save(state() | {"visual.proj": torch.full((64, 24), torch.nan)}, path),
        r"nan\.pt: expected finite weights, got NaN or infinity in visual\.proj$",
    ),
    "twice.pt": (
        lambda path: torch.save(state() | {"module.visual.proj": torch.zeros(64, 24)}, path),
        r"twice\.pt: expected one tensor for visual\.proj, got another as module\.visual\.proj$",
    ),
    "notes.txt": (lambda path: path.write_text("none"), r"notes\.txt: expected a checkpoint that ends in"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_directory_without_an_encoder_is_rejected_and_nothing_written(tmp_path, name, small_architecture):
    spoil, message = SPOILT[name]
    path = tmp_path / name
    spoil(path)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as told:
        imported(path, tmp_path / "out", architecture=small_architecture if path.suffix == ".pt" else None)
    assert "\n" not in str(told.value)
    assert set(tmp_path.iterdir()) == before


def tensors(*names: str, value: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: torch.full((2,), float(value)) for name in names}


NAMES = ("visual.a", "visual.b.c", "token_embedding.weight")
CHOSEN: dict[str, tuple[Any, float | str, str]] = {  # content, the value that is read or the error, and what is said
    "averaged, too": (
        {"ema": tensors(*NAMES), "epoch": 1, "state_dict": tensors(*(f"module.{name}" for name in NAMES), value=2)},
        *(2, "the weights in 'state_dict' are taken, not those in 'ema'"),
    ),
    "averaged by Lightning": (
        {"state_dict": tensors(*NAMES), "current_model_state": tensors(*NAMES, value=2), "averaging_state": {}},
        *(1, "the weights in 'state_dict' are taken, not those in 'current_model_state'"),
    ),
    "averaged alone": (
        {"model_ema": tensors(*NAMES, value=3)},
        *(3, "the averaged weights in 'model_ema' are taken"),
    ),
    "an average of torch": (
        tensors(*(f"module.{name}" for name in NAMES)) | {"n_averaged": torch.tensor(3)},
        *(1, "the averaged weights '*' are taken"),
    ),
    "averaged under a prefix": (
        tensors(*(f"net.{name}" for name in NAMES), value=2)
        | tensors(*(f"ema_net.{name}" for name in NAMES), "loss.t"),
        *(2, "the weights 'net.*' are taken, without ema_net.*, loss.t"),
    ),
    "an optimizer's": (
        {"model": tensors(*NAMES), "optimizer": {"exp_avg": tensors(*NAMES, "visual.d", value=0)}},
        *(1, ""),
    ),
    "two models": (
        tensors(*(f"{side}.{name}" for name in NAMES for side in ("left", "right"))),
        *("expected one model, got 'left.' and 'right.'; save the one to read alone", ""),
    ),
    "other names": (
        tensors("base.model.image.a", "base.model.text.b"),
        *("expected open_clip's names, such as visual.conv1.weight; all of its names begin with 'base.model.'", ""),
    ),
    "transformers'": (
        tensors("vision_model.a", "text_model.b"),
        "'text_model.b'; of a model of transformers, give the directory",
        "",
    ),
    "adapters": (
        tensors("base_model.model.visual.a.base_layer.weight", "base_model.model.visual.a.lora_A.weight"),
        *("it has adapters of PEFT (LoRA); merge them before: model.merge_and_unload()", ""),
    ),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_which_weights_of_a_file_are_read_is_said(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    content, value, said = CHOSEN[kind]
    path = tmp_path / "a.pt"
    torch.save(content, path)
    if isinstance(value, str):
        with pytest.raises(UserError, match=re.escape(value)):
            select_model(read_weights(path), "visual", path)
        return
    found = select_model(read_weights(path), "visual", path)
    assert {name: float(one.mean()) for name, one in found.items()} == dict.fromkeys(NAMES, value)
    assert capsys.readouterr().err.splitlines() == ([f"{path}: {said}"] if said else [])


def test_integers_are_no_weights_wherever_a_directory_is_read(tmp_path: Path):
    """int8 without scales has the right names and shapes, and every library would convert it to other numbers."""
    from llava_bridge.encoders import load_encoder as load_for_bridge

    world.open_clip_directory(tmp_path / "hub")
    world.hf_clip(tmp_path / "hf")
    changed = {"hub": "visual.transformer.resblocks.0.mlp.c_fc.weight", "hf": "visual_projection.weight"}
    for folder, name in changed.items():
        (file,) = (tmp_path / folder).glob("*model.safetensors")
        weights = load_file(file)
        save_file(weights | {name: (weights[name] * 50).to(torch.int8)}, file, metadata={"format": "pt"})
    mine = ModelConfig(architecture=str(tmp_path / "hub"), pretrained=str(tmp_path / "hub"))
    for read in (
        lambda: load_encoder(tmp_path / "hub"),
        lambda: imported(tmp_path / "hub", tmp_path / "out"),
        lambda: imported(tmp_path / "hf", tmp_path / "out"),
        lambda: load_transformers_encoder(tmp_path / "hf"),
        lambda: load_for_bridge(str(tmp_path / "hub")),
        lambda: load_for_bridge(f"transformers:{tmp_path / 'hf'}"),
        lambda: build_model(mine, RecipeConfig(name="clip"), seed=0),
    ):
        with pytest.raises(UserError, match=r"(got |: )(int8|I8)\b"):
            read()
    assert not (tmp_path / "out").exists()


def test_adapters_without_their_model_are_named(tmp_path: Path):
    from llava_bridge.encoders import load_encoder as load_for_bridge

    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    save_file(tensors("base_model.model.visual.a.lora_A.weight"), tmp_path / "lora" / "adapter_model.safetensors")
    lora = str(tmp_path / "lora")
    for read in (
        lambda: imported(tmp_path / "lora", tmp_path / "out"),
        lambda: load_encoder(lora),
        lambda: resolve_architecture(ModelConfig(architecture=lora)),
        lambda: build_model(ModelConfig(pretrained=lora), RecipeConfig(name="clip"), seed=0),
        lambda: load_for_bridge(lora),
        lambda: load_for_bridge(f"transformers:{lora}"),
        lambda: resolve_model_dir(lora, "llm"),
    ):
        with pytest.raises(UserError, match=r"lora: expected a model, got adapters of PEFT; save the model with"):
            read()


def test_a_tokenizer_with_ids_beyond_the_table_is_rejected_when_it_is_read(tmp_path: Path):
    """One token more than rows, for padding; or a table that is smaller than open_clip's own vocabulary."""
    from transformers import AutoTokenizer

    world.hf_clip(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(tmp_path / "hf")
    world.open_clip_directory(tmp_path / "hub", world.VIT | {"text_cfg": world.VIT["text_cfg"] | {"vocab_size": 99}})
    more, fewer = (
        rf"hf: its tokenizer has ids up to {len(world.WORDS)}, expected",
        r"hub: its tokenizer .* 49407, .* 99, ",
    )
    for message, read in (
        (more, lambda: imported(tmp_path / "hf", tmp_path / "out")),
        (more, lambda: load_transformers_encoder(tmp_path / "hf")),
        (fewer, lambda: load_encoder(tmp_path / "hub")),
        (fewer, lambda: resolve_architecture(ModelConfig(architecture=str(tmp_path / "hub")))),
    ):
        with pytest.raises(UserError, match=message) as told:
            read()
        assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()
    tokenizer.pad_token = "[PAD]"
    require_rows(tokenizer, len(world.WORDS), "")  # no text gets [MORE]: T5's tokenizers have such sentinels


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], small_architecture: str):
    path, output = tmp_path / "weights.pt", tmp_path / "encoder"
    written(path)
    run = ["import", str(path), "--output", str(output)]
    for extra, complaint in (
        (["--architecture", "ViT-small0-9"], "did you mean 'ViT-small0-8'?"),
        (["--architecture", "coca_ViT-B-32"], "has CoCa's decoder"),
        (["--architecture", "ViT-S-32"], f"expected (77, 384); did you mean --architecture {small_architecture}?"),
        (["--architecture", small_architecture, "--format", "hf_clip"], "expected none, because"),
        (["--format", "gguf"], "unknown format 'gguf' (known: hf_clip"),
        (["--tolerance", "0"], "tolerance: expected a finite number above 0"),
        (["--preprocessing.fill_color", "256"], "preprocessing.fill_color: expected an integer from 0 to 255 or null"),
        (["--preprocessing.men", "0"], "unknown key 'preprocessing.men'; did you mean 'preprocessing.mean'?"),
        (["--preprocessing.mean", "[1, 2]"], "preprocessing.mean: expected a list of 3: a number, a number, a number"),
    ):
        assert dispatch("clips", "", COMMANDS, [*run, *extra]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert complaint in told
        assert not output.exists()
    assert dispatch("clips", "", COMMANDS, [*run, "--architecture", small_architecture]) == 0
    assert "encoder imported from open_clip" in capsys.readouterr().err
    assert load_encoder(output)


def test_fine_tuning_a_siglip_keeps_its_logit_scale(tmp_path: Path):
    """Google's models have 112.3, above CLIP's maximum of 100."""
    model = world.hf_siglip(tmp_path / "hf")
    with torch.no_grad():
        model.logit_scale.fill_(np.log(112.3))
    model.save_pretrained(tmp_path / "hf")
    imported(tmp_path / "hf", tmp_path / "encoder")
    data, start = write_shards(tmp_path / "train"), str(tmp_path / "encoder")
    fields: dict[str, Any] = {"recipe": {"name": "siglip"}, "optimizer": {"learning_rate": 1e-6}}
    run = trained(data, tmp_path / "run", model={"architecture": start, "pretrained": start}, max_steps=1, **fields)
    assert tensors_of(run)["logit_scale"].exp().item() == pytest.approx(112.3, rel=1e-4)
