"""What cannot be converted is rejected in one line, and no output is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bridge_world
import original_world as world
import pytest
import torch
from original_world import expect_no_conversion as rejected

from llava_bridge.projectors import ProjectorConfig


@pytest.fixture
def parts(original_parts: world.Parts) -> world.Parts:
    return original_parts


@pytest.fixture
def tower(original_tower: Path) -> Path:
    return original_tower


@pytest.fixture
def original(parts: world.Parts, tower: Path, tmp_path: Path) -> Path:
    return world.write_original(parts, tmp_path / "original", str(tower), shards=2)


FIELDS: dict[str, tuple[Any, str]] = {
    "model_type": ("llava_mpt", "model_type: expected one of llava, llava_llama, .* got llava_mpt"),
    "mm_patch_merge_type": ("spatial_unpad", "mm_patch_merge_type: .* only flat with image_aspect_ratio pad, got spa"),
    "image_aspect_ratio": ("anyres", "mm_patch_merge_type: .* only spatial_unpad with image_aspect_ratio anyres, got"),
    "mm_use_im_start_end": (True, "mm_use_im_start_end: .* supports only False, got True"),
    "mm_vision_tower": ("./nowhere", r"vision_tower: nowhere is not|vision_tower: \./nowhere.*--vision_tower DIR"),
    "mm_vision_select_layer": (-7, "vision_feature_layer: this encoder has -4 to 3, got -7"),
    "num_hidden_layers": (3, r"its LLM lacks weights that its config\.json needs: 'model\.layers\.2"),
    "num_key_value_heads": (4, r"weights that do not fit its config\.json: 'model\.layers\.\d.self_attn\.[kv]_proj"),
    "num_hidden_layers ": (1, r"its LLM has weights that its config\.json does not describe: 'model\.layers\.1"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_settings_that_the_llava_of_transformers_lacks(name: str, original: Path) -> None:
    value, match = FIELDS[name]
    rejected(world.restated(original, {name.strip(): value}, original.with_name("other")), match)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("file", ["mm_projector.bin", "pytorch_model-00002-of-00002.bin"])
def test_pickles_that_would_run_code_are_not_read(file: str, parts: world.Parts, original: Path) -> None:
    mark = original.parent / "exploded"
    if file == "mm_projector.bin":
        for shard in original.glob("pytorch_model*"):
            shard.unlink()
    torch.save({**world.projector_weights(parts), "more": Bomb(mark)}, original / file)
    rejected(original, f"{file}: rejected: it needs")
    assert not mark.exists()


def test_files_that_are_missing_or_of_another_kind(parts: world.Parts, original: Path, tmp_path: Path) -> None:
    rejected(tmp_path / "nothing", "nothing: no such directory")
    (tmp_path / "empty").mkdir()
    rejected(tmp_path / "empty", "expected a LLaVA: mm_vision_tower in config.json, or mm_projector.bin")
    rejected(tmp_path / "empty", "empty is no LLaVA in the transformers format", format="original")
    rejected(original, "is no LLaVA in the transformers format; `llava-bridge convert` writes one", format="original")
    (original / "pytorch_model-00002-of-00002.bin").rename(tmp_path / "second.bin")
    rejected(
        original, r"pytorch_model-00002-of-00002\.bin: no such file, although pytorch_model\.bin\.index\.json names"
    )
    (original / "adapter_config.json").write_text("{}")
    rejected(original, "a LoRA adapter; expected a whole model")


def test_the_llm_is_given_once(parts: world.Parts, original: Path, tmp_path: Path) -> None:
    rejected(original, "llm: .*original has an LLM of its own; expected no --llm", llm=str(original))
    for shard in original.glob("pytorch_model*"):
        shard.unlink()
    torch.save(world.projector_weights(parts), original / "mm_projector.bin")
    rejected(original, "llm: .*original has no weights of an LLM; expected its directory as --llm")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ({"0.weight": "norm.weight"}, "mm_projector_type: expected linear or mlpNx_gelu, got mlp2x_gelu"),
        ({"2.weight": None}, "mm_projector_type: expected linear or mlpNx_gelu"),
        (dict.fromkeys(("0.weight", "0.bias", "2.weight", "2.bias")), "no weights of a projector"),
    ],
)
def test_projectors_of_another_kind(names, match, parts, tower, tmp_path):
    source = world.write_original(parts, tmp_path / "original", str(tower), shards=1)
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    for name, other in names.items():
        value = weights.pop(f"model.mm_projector.{name}")
        if other is not None:
            weights[f"model.mm_projector.{other}"] = value
    torch.save(weights, source / "pytorch_model.bin")
    rejected(source, match)


def test_a_tower_of_another_width(parts: world.Parts, original: Path, tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sizes = {**world.TOWER, "hidden_size": 48}
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(tmp_path / "wide")
    CLIPImageProcessor(**world.preprocessing()).save_pretrained(tmp_path / "wide")
    rejected(original, r"mm_projector: .*has shape \(32, 24\), not \(32, 48\)", vision_tower=str(tmp_path / "wide"))


def test_models_without_an_original_equivalent_are_not_converted(
    bridge_encoder: Path, bridge_llm: Path, tower: Path, tmp_path: Path
) -> None:
    def saved(name: str, encoder: str, **fields: Any) -> Path:
        return bridge_world.make_llava(tmp_path / name, encoder, bridge_llm, **fields)  # type: ignore[arg-type]

    own_tower, clip = saved("tower", str(bridge_encoder)), f"transformers:{tower}"
    rejected(
        own_tower, "has CLIP's towers only; transformers' CLIPVisionModel norms the patches before", format="original"
    )
    rejected(
        own_tower, r"already .*, and loads after `llava_bridge\.register\(\)`; .* norms the patches before the first"
    )
    perceiver = ProjectorConfig(type="perceiver", num_tokens=4)
    match = "has no projector perceiver"
    rejected(saved("resampled", str(bridge_encoder), projector=perceiver), match)
    resnet = tmp_path / "resnet"
    bridge_world.make_encoder(resnet, bridge_world.RESNET)
    rejected(
        saved("resnet-llava", str(resnet)), "expected a ViT of open_clip or timm as vision tower, got OpenClipResNet"
    )
    rejected(saved("perceiver", clip, projector=perceiver), match, format="original")
    match = r"reads one feature layer; this one reads \[-2, -1\]"
    rejected(saved("layers", clip, vision_feature_layer=[-2, -1]), match, format="original")


def test_a_conversion_replaces_nothing(original: Path, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        status, _, told = bridge_world.run_cli("convert", *words)
        return status, told

    hf = str(tmp_path / "hf")
    assert run(str(original), "--output", hf)[0] == 0
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    for words, told in (
        ((str(original), "--output", hf), "hf: exists already; choose another output or remove it"),
        ((hf, "--output", "again"), "already in the transformers format; --format original writes the other"),
        ((str(original), "--output", str(tmp_path / "thesis")), "not empty, and not an artifact with a manifest"),
        ((hf, "--output", "x", "--format", "original", "--vision_tower", "y"), "vision_tower: expected none with"),
        ((str(original), "--output", "none", "--chat_template", "vicuna_v"), "'vicuna_v'; did you mean 'vicuna_v1'?"),
    ):
        status, complaint = run(*words)
        assert status == 2
        assert told in complaint
