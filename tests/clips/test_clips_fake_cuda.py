"""Forward pass and losses on a fake GPU: no value is read from it, no tensor stays on the CPU, dtypes match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, pretend_driver, to_fake_cuda
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tasks.encoders import embedding
from clips.method.clips_model import ClipsModel, build_model, compute_losses
from clips.method.recipes import RECIPES, RecipeConfig
from clips.model.architectures import ModelConfig
from clips.training.mfu import full_length_texts

SMALL = str(Path(__file__).with_name("small_towers.json"))
COUNT = 40  # two groups of similar length


def batch_of(model: ClipsModel, device: torch.device | None = None) -> dict[str, Tensor]:
    """Tokens on the CPU, as the trainer leaves them, or on a device."""
    batch = {name: full_length_texts(model, COUNT) for name in model.recipe.encoded}
    if model.captioner is not None:
        length = model.captioner.config.length
        lengths = torch.arange(COUNT) % (length - 1) + 1
        batch["target"] = torch.ones(COUNT, length, dtype=torch.long)
        batch["target_mask"] = torch.arange(length) < lengths[:, None]
    if device is not None:
        batch = {name: value.to(device) for name, value in batch.items()}
    return batch | {"image": torch.empty(COUNT, 3, model.image_size, model.image_size, device=CUDA)}


def model_of(recipe: str, **fields: Any) -> ClipsModel:
    return build_model(ModelConfig(**{"architecture": SMALL, **fields}), RecipeConfig(name=recipe), seed=0)


@pytest.mark.parametrize(
    ("recipe", "fields", "bf16"),
    [
        *((recipe, {}, bf16) for recipe in RECIPES for bf16 in (False, True)),
        *(("clip", {"text_attention": "causal"}, bf16) for bf16 in (False, True)),
        ("clips", {"architecture": "clips-rn-tiny"}, False),  # batch norms in bfloat16 ask for the version of cuDNN
        ("clips", {"architecture": "clips-tinyvit-tiny"}, False),
    ],
)
def test_no_value_is_read_from_the_gpu(recipe: str, fields: dict[str, Any], bf16: bool, monkeypatch) -> None:
    pretend_driver(monkeypatch)
    model = model_of(recipe, **fields)
    with to_fake_cuda(model):
        batch = batch_of(model)
        outputs = model(batch, bf16=bf16)
        losses = compute_losses(model.recipe, outputs)
    for name, value in {**outputs, **losses}.items():
        assert value.device == CUDA, name
        assert value.dtype is (torch.int64 if name == "caption_tokens" else torch.float32), name


def test_the_captioners_flash_attention_is_counted(monkeypatch) -> None:
    """A mask that is a subclass of torch's tensor cannot be made under a counter, nor passed on by DeepSpeed."""
    pretend_driver(monkeypatch)
    model = model_of("clips")
    with to_fake_cuda(model), FlopCounterMode(display=False) as counter:
        model(batch_of(model), bf16=True)
    attention = torch.ops.aten._scaled_dot_product_flash_attention
    assert counter.get_flop_counts()["Global"][attention] > 0


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_an_evaluation_encodes_texts_without_reading_a_length_from_the_gpu(pool: str, monkeypatch) -> None:
    """Of open_clip's usual text tower, which is causal."""
    pretend_driver(monkeypatch)
    towers = CLIP(
        8, CLIPVisionCfg(1, 32, 16, patch_size=8, image_size=16), CLIPTextCfg(16, 60, width=32, heads=2, layers=1)
    )
    towers.text_pool_type, towers.text_eos_id = pool, 59
    tokens = torch.randint(1, 58, (COUNT, 16)).index_fill(1, torch.tensor([9]), 59)
    found: list[Tensor] = []
    monkeypatch.setattr(embedding, "unit_vectors", lambda features, *_: found.append(features) or torch.zeros(COUNT, 8))
    encoder = embedding.DualEncoder(
        model=towers.eval(),
        preprocess=lambda image: image,
        tokenizer=lambda _: tokens,
        preprocessing={},
        device=CUDA,  # type: ignore[arg-type]  # of which the mode knows
        precision="float32",
    )
    with to_fake_cuda(towers):
        embedding.embed_texts(encoder, ["a text"] * COUNT, COUNT)
    assert found[0].shape == (COUNT, 8)


def test_reading_a_length_from_the_gpu_is_noticed(monkeypatch) -> None:
    pretend_driver(monkeypatch)
    model = model_of("clips")
    with (
        to_fake_cuda(model),
        pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
    ):
        model(batch_of(model, CUDA))
