"""Training that begins from trained towers, of another resolution or text length, in whole or in part frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips_world
import numpy as np
import open_clip
import pytest
import torch
from clips_world import tensors_of, trained
from safetensors.torch import save_file

from clips.encoder import write_encoder
from clips.errors import UserError
from clips.method.clips_model import ClipsModel, ModelConfig, build_model
from clips.method.recipes import CaptionerConfig, RecipeConfig
from clips.model.architectures import NORMALIZATIONS
from clips.model.initialization import openvision_sincos_pos_embed, resize_text_pos_embed

RECIPE = RecipeConfig(captioner=CaptionerConfig(max_length=12, num_layers=1))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    write_encoder(model(), directory)
    return directory


def model(**fields: object) -> ClipsModel:
    settings = {"architecture": "ViT-B-32", "image_size": 64, "context_length": 12} | fields
    return build_model(ModelConfig(**settings), RECIPE, seed=len(fields))


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """A small ViT with learned positions under a public name."""
    towers = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda name: towers if name == "ViT-B-32" else None)
        yield


def tiny(architecture: str = "clips-tiny", **fields: object) -> ClipsModel:
    return build_model(ModelConfig(architecture=architecture, context_length=12, **fields), RECIPE, seed=0)


def test_an_equal_architecture_starts_from_the_same_weights(encoder: Path):
    found, expected = (one.state_dict() for one in (model(pretrained=str(encoder), patch_dropout=0.25), model()))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(("size", "length"), [(96, 20), (32, 8)])
def test_positions_follow_the_size_in_both_directions(encoder: Path, size: int, length: int):
    grown = model(pretrained=str(encoder), image_size=size, context_length=length).clip
    old = tensors_of(encoder)
    assert grown.visual.positional_embedding.shape == ((size // 32) ** 2 + 1, 64)
    assert torch.equal(grown.visual.positional_embedding[0], old["visual.positional_embedding"][0])
    assert grown.positional_embedding.shape == (length, 32)
    for end in (0, -1):  # begin token and class token stay at their ends
        torch.testing.assert_close(grown.positional_embedding[end], old["positional_embedding"][end])
    assert torch.equal(grown.visual.conv1.weight, old["visual.conv1.weight"])
    open_clip.model.resize_pos_embed(old, grown)  # in place
    torch.testing.assert_close(grown.visual.positional_embedding, old["visual.positional_embedding"])


def test_fixed_positions_are_those_of_the_new_grid(tmp_path: Path):
    """By this method's formula, or by that of released weights which begin with them."""
    small, new = tiny(image_size=32), tiny(image_size=64).clip.visual.positional_embedding
    write_encoder(small, tmp_path / "ours")
    grown = tiny(image_size=64, pretrained=str(tmp_path / "ours")).clip.visual.positional_embedding
    assert torch.equal(grown, new)
    with torch.no_grad():
        small.clip.visual.positional_embedding.copy_(openvision_sincos_pos_embed(2, 128))
    write_encoder(small, tmp_path / "released")
    grown = tiny(image_size=64, pretrained=str(tmp_path / "released")).clip.visual.positional_embedding
    assert torch.equal(grown, openvision_sincos_pos_embed(4, 128))
    assert not torch.allclose(grown, new, atol=1e-2)


def test_the_authors_positions_by_hand():
    table = openvision_sincos_pos_embed(3, 16)
    assert table.shape == (10, 16)
    assert not table[0].any()
    angles = [2 / 10_000 ** (k / 3) for k in range(4)]  # column 2, row 1: the last but three
    rows = [1 / 10_000 ** (k / 3) for k in range(4)]
    by_hand = [*np.sin(angles), *np.cos(angles), *np.sin(rows), *np.cos(rows)]
    assert table[1 + 1 * 3 + 2].tolist() == pytest.approx(by_hand, abs=1e-6)


def stock_clip(directory: Path, text_cfg: dict | None = None, **options: object) -> None:
    """An encoder as open_clip's users have it: its own tokens, OpenAI's normalization."""
    torch.manual_seed(5)
    cfg = open_clip.get_model_config("ViT-B-32") | options
    cfg["text_cfg"] = cfg["text_cfg"] | (text_cfg or {})
    clip = open_clip.CLIP(**cfg)
    weights = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    mean, std = NORMALIZATIONS["openai"]
    config = {"model_cfg": cfg, "preprocess_cfg": {"mean": mean, "std": std}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))


def test_of_an_encoder_with_other_tokens_the_image_tower_is_taken(tmp_path: Path, capsys):
    stock_clip(tmp_path)
    begun = model(pretrained=str(tmp_path), normalization="openai", image_size=96)
    old = tensors_of(tmp_path)
    assert torch.equal(begun.clip.visual.conv1.weight, old["visual.conv1.weight"])
    assert begun.clip.visual.positional_embedding.shape == (10, 64)
    new = model(normalization="openai", image_size=96, context_length=12)
    assert torch.equal(begun.clip.token_embedding.weight, new.clip.token_embedding.weight)
    assert torch.equal(begun.captioner.learnable_tokens, new.captioner.learnable_tokens)
    assert begun.preprocess_cfg["mean"] == NORMALIZATIONS["openai"][0]
    said = capsys.readouterr().err
    assert "image positions interpolated from 5 to 10" in said
    assert f"the text tower is randomly initialized: {tmp_path} has none of these tokens" in said
    with pytest.raises(UserError, match=r"^model\.normalization: expected openai, with which .* was trained$"):
        model(pretrained=str(tmp_path), normalization="half")
    with pytest.raises(UserError, match=r"^model\.lock_text: expected false, or model.architecture: .* has other"):
        model(pretrained=str(tmp_path), normalization="openai", lock_text=True)


STATED: dict[str, tuple[dict[str, Any] | None, str | None]] = {  # preprocess_cfg, and what it is as a setting
    "rounded": ({"mean": [0.4815, 0.4578, 0.4082], "std": [0.2686, 0.2613, 0.2758]}, "openai"),
    "unstated": ({}, "openai"),  # as open_clip reads it
    "numbers": ({"mean": 0.5, "std": 0.5}, "half"),
    "MobileCLIP": ({"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}, "identity"),
    "another": ({"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, None),
}


@pytest.mark.parametrize("kind", STATED)
def test_the_preprocessing_of_initial_weights_is_kept(tmp_path: Path, kind: str):
    stock_clip(tmp_path)
    file, (stated, name) = tmp_path / "open_clip_config.json", STATED[kind]
    resizing = {"interpolation": "bilinear", "resize_mode": "longest", "fill_color": 7, "size": 64}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"preprocess_cfg": stated | resizing}))
    transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")[0].visual.preprocess_cfg
    expected = {key: list(value) if isinstance(value, tuple) else value for key, value in transform.items()}
    both = {"pretrained": str(tmp_path), "architecture": str(tmp_path), "image_size": None, "context_length": None}
    for fields in ({"pretrained": str(tmp_path)}, both):
        found = model(**fields).preprocess_cfg
        mean, std = ([float(x)] * 3 if isinstance(x, float) else x for x in (expected["mean"], expected["std"]))
        assert found == expected | {"mean": mean, "std": std, "size": [64, 64]}
        with pytest.raises(UserError, match=rf"^model\.normalization: expected {name or 'null .mean .0.5, '}"):
            model(**fields, normalization="imagenet")
        if name is not None:
            assert model(**fields, normalization=name).preprocess_cfg["resize_mode"] == "longest"


def test_a_normalization_that_nothing_states_is_not_guessed(tmp_path: Path):
    stock_clip(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"^model\.normalization: expected the one with which .* was trained, because"):
        model(pretrained=str(tmp_path))
    assert model(pretrained=str(tmp_path), normalization="openai").preprocess_cfg["mean"] == NORMALIZATIONS["openai"][0]


@pytest.mark.parametrize("rows", [49408, 32000])
def test_tokens_are_compared_by_more_than_their_id(tmp_path: Path, rows: int):
    stock_clip(tmp_path, text_cfg={"vocab_size": rows})  # SigLIP's vocabulary has as many words as this method's
    begun = model(pretrained=str(tmp_path), normalization="openai")
    old = tensors_of(tmp_path)
    assert torch.equal(begun.clip.visual.conv1.weight, old["visual.conv1.weight"])
    assert not torch.equal(begun.clip.token_embedding.weight[:9], old["token_embedding.weight"][:9])


def test_an_encoder_with_quick_gelu_keeps_it(tmp_path: Path):
    stock_clip(tmp_path, quick_gelu=True)
    with pytest.raises(UserError, match=r"^model\.architecture: expected one with -quickgelu, as .* was trained$"):
        model(pretrained=str(tmp_path), normalization="openai")


def test_weights_that_are_not_finite_are_rejected(tmp_path: Path):
    stock_clip(tmp_path)
    weights = tensors_of(tmp_path)
    weights["visual.conv1.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"expected finite weights, got NaN or infinity in conv1\.weight$"):
        model(pretrained=str(tmp_path), normalization="openai")


def test_positions_of_a_timm_vit_follow_the_size_of_another_architecture(tmp_path: Path, monkeypatch):
    def named(name: str) -> dict:
        size = int(name[-3:])
        vision = {"timm_model_name": f"vit_tiny_patch16_{size}", "timm_pool": "token", "timm_proj": "linear"}
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        return {"embed_dim": 16, "vision_cfg": vision | {"image_size": size}, "text_cfg": text}

    monkeypatch.setattr(open_clip, "get_model_config", named)
    small = model(architecture="tiny-224", image_size=None, patch_dropout=0.5)
    write_encoder(small, tmp_path)
    large = model(architecture="tiny-384", image_size=None, pretrained=str(tmp_path))
    table, old = (one.clip.visual.trunk.pos_embed for one in (large, small))
    assert (old.shape[1], table.shape[1]) == (1 + 14**2, 1 + 24**2)
    assert torch.equal(table[:, 0], old[:, 0])
    torch.testing.assert_close(table[:, 1:].mean(1), old[:, 1:].mean(1), atol=2e-3, rtol=0)
    assert small.clip.visual.trunk.patch_drop.prob == 0.5


@pytest.mark.parametrize(("before", "after"), [(48, 64), (96, 64)])
def test_positions_of_a_resnets_pooling_follow_the_size(tmp_path: Path, before: int, after: int):
    small = tiny("clips-rn-tiny", image_size=before)
    write_encoder(small, tmp_path)
    grown = tiny("clips-rn-tiny", image_size=after, pretrained=str(tmp_path))
    table, old = (one.clip.visual.attnpool.positional_embedding for one in (grown, small))
    assert table.shape == ((after // 32) ** 2 + 1, old.shape[1])
    assert torch.equal(table[0], old[0])
    if before == 48:
        torch.testing.assert_close(table[1:], old[1:].expand(4, -1))


def test_long_clip_keeps_the_first_positions():
    table = torch.randn(77, 4, generator=torch.Generator().manual_seed(0))
    longer = resize_text_pos_embed(table, 248, 20)
    assert longer.shape == (248, 4)
    assert torch.equal(longer[:20], table[:20])
    torch.testing.assert_close(longer[20], table[20])
    torch.testing.assert_close(longer[-1], table[-1])
    for place in range(20, 248):  # by hand: 57 rows spread evenly over 228 places, neighbors weighted by distance
        at = 20 + (place - 20) * 56 / 227
        lower = min(int(at), 75)
        expected = table[lower] + (at - lower) * (table[lower + 1] - table[lower])
        torch.testing.assert_close(longer[place], expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="expected more than the 20 fixed positions"):
        resize_text_pos_embed(table, 16, 20)


def test_weights_that_do_not_fit_are_named(encoder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"expected an encoder directory with open_clip_model\.safetensors"):
        model(pretrained=str(tmp_path))
    with pytest.raises(UserError, match="expected the same architecture"):
        build_model(ModelConfig(architecture="clips-tiny", pretrained=str(encoder)), RECIPE, seed=0)


@pytest.mark.parametrize(
    ("fields", "frozen", "trained_too"),
    [
        ({"lock_image": True}, ["visual.proj", "visual.conv1.weight"], ["text_projection"]),
        ({"lock_image": True, "lock_image_unlocked_groups": 1}, ["visual.conv1.weight"], ["visual.proj"]),
        ({"lock_text": True}, ["token_embedding.weight", "text_projection"], ["visual.conv1.weight"]),
        ({"lock_text": True, "lock_text_unlocked_layers": 1}, ["token_embedding.weight"], ["text_projection"]),
    ],
)
def test_locked_towers_get_no_gradient(fields: dict[str, object], frozen: list[str], trained_too: list[str]):
    parameters = dict(model(**fields).clip.named_parameters())
    assert not any(parameters[name].requires_grad for name in frozen)
    assert all(parameters[name].requires_grad for name in trained_too)
    assert parameters["logit_scale"].requires_grad


def test_a_timm_tower_is_frozen_in_part_without_a_warning():
    fields = {"architecture": "timm:test_vit", "image_size": 160, "lock_image": True, "lock_image_unlocked_groups": 1}
    parameters = model(**fields).clip.named_parameters()
    trunk = {name: value.requires_grad for name, value in parameters if name.startswith("visual.trunk.")}
    assert trunk["visual.trunk.norm.weight"]
    assert not trunk["visual.trunk.patch_embed.proj.weight"]


def test_batch_norms_of_frozen_layers_keep_their_statistics():
    recipe = RecipeConfig(name="clip")
    locked = build_model(ModelConfig(architecture="clips-rn-tiny", lock_image=True), recipe, seed=0).train()
    before = {name: value.clone() for name, value in locked.clip.visual.state_dict().items()}
    locked({"image": torch.randn(4, 3, 64, 64), "web": torch.randint(3, 99, (4, 32))})
    assert all(torch.equal(value, locked.clip.visual.state_dict()[name]) for name, value in before.items())


def test_a_run_that_begins_from_another_says_so_and_leaves_frozen_weights_alone(tmp_path: Path):
    data = clips_world.write_shards(tmp_path / "data")
    trained(data, tmp_path / "first", max_steps=2)
    settings = {"architecture": "clips-tiny", "image_size": 32, "context_length": 12, "patch_dropout": 0.5}
    settings |= {"pretrained": str(tmp_path / "first"), "lock_text": True}
    trained(data, tmp_path / "second", max_steps=2, model=settings)
    first, second = (tensors_of(tmp_path / name) for name in ("first", "second"))
    assert torch.equal(first["token_embedding.weight"], second["token_embedding.weight"])
    assert not torch.equal(first["visual.conv1.weight"], second["visual.conv1.weight"])
    manifest = (tmp_path / "second" / "manifest.json").read_text(encoding="utf-8")
    assert f'"path": "{tmp_path / "first"}"' in manifest
