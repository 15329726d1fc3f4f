"""A step's forward pass and loss on a fake GPU, as each stage runs it in bf16: the bridge reads no value from it.

Torch's autograd does not run on fake tensors of a GPU without a driver, so the backward pass is not covered.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import bridge_world
import pytest
import torch
from bridge_world import Parts
from fake_cuda import CUDA, FakeCuda, pretend_driver, to_fake_cuda
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from llava_bridge.data import read_samples
from llava_bridge.data.batches import ConversationCollator, ConversationDataset
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.model.modeling_llava import AnyLlava
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import recompute_layers, set_trainable_parts, split_parts
from llava_bridge.training.train_config import LoraConfig

EVERY = ["vision", "projector", "llm"]
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "align": ("align", {}),
    "align, cached": ("align", {"cache_vision_features": True}),
    "instruct": ("instruct", {}),
    "packed": ("instruct", {"packing": True}),
    "packed, cached": ("instruct", {"packing": True, "cache_vision_features": True}),
    "tunable encoder": ("instruct", {"tunable_parts": EVERY, "activation_checkpointing": True}),
    "lora": ("instruct", {"lora": LORA, "packing": True}),
}


def rehearsed(case: str, fit: str, parts: Parts, *, text: bool = False) -> tuple[AnyLlava, dict[str, Any]]:
    """The model of a stage, and a batch of it on the CPU."""
    name, settings = CASES[case]
    stage = bridge_world.stage(parts.talk, **settings)
    model, processor = build_llava(
        LlavaParts(encoder=str(parts.encoder), llm=str(parts.llm), image_aspect_ratio=fit)  # type: ignore[arg-type]
    )
    chat = make_conversation_encoder(model, processor)
    data = ConversationDataset(read_samples(*bridge_world.source(parts.talk)), chat, 2000)
    setup: Any = SimpleNamespace(model=model, parts=split_parts(model), square_images=False)
    set_trainable_parts(setup, stage, name)
    if stage.activation_checkpointing:
        recompute_layers(model)
    collator = ConversationCollator(
        processor.image_processor, processor.tokenizer.pad_token_id, 2000 if stage.packing else None
    )
    ids = [1, 40, 41, 42]
    talk = {"input_ids": ids, "labels": ids, "images": [], "invalid_samples": []}
    batch = collator([talk, talk] if text else [data[0], data[2], talk])
    del batch["invalid_samples"]
    if stage.cache_vision_features:
        tower: Any = model.model.vision_tower
        layer = model.config.vision_feature_layer
        tower.cached_layers = sorted(tower.layer_indices(layer))
        pixels = batch["pixel_values"].flatten(0, -4)
        states = tower(pixels, output_hidden_states=layer).hidden_states
        batch |= {"feature_keys": ["key"] * len(pixels), "cached_features": states[layer][:, None]}
    return model.train(), batch


def run(model: Any, batch: dict[str, Any]) -> tuple[Tensor, FakeCuda]:
    """The loss on the fake GPU, of weights and inputs in bf16 but for a frozen encoder, as under DeepSpeed."""
    tower = model.model.vision_tower
    learns = any(weight.requires_grad for weight in tower.parameters())
    for module in model.modules():
        if learns or module not in set(tower.modules()):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.bfloat16()
    objective = LlavaLoss(model)

    def samples_of(positions: Tensor) -> Tensor | None:
        """What transformers' masks read from the GPU."""
        return torch.zeros_like(positions) if "position_ids" in batch else None

    reading = patch("transformers.masking_utils.find_packed_sequence_indices", samples_of)
    with to_fake_cuda(objective) as fake, reading:
        sent = {
            key: value.to(CUDA, torch.bfloat16 if value.is_floating_point() else value.dtype)
            if isinstance(value, Tensor)
            else value
            for key, value in batch.items()
        }
        count = torch.ones((), dtype=torch.long, device=CUDA)
        fake.copies.clear()
        return objective(**sent, num_items_in_batch=count)["loss"], fake


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_driver(monkeypatch)
    # transformers reads no values of fake tensors, as if they were traced
    monkeypatch.setattr("transformers.utils.import_utils.is_fake_tensor", lambda _: False, raising=False)
    own = torch.nn.functional.scaled_dot_product_attention

    def flash(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """SDPA's flash kernel: to choose it, torch would ask the driver."""
        if query.device != CUDA:
            return own(query, key, value, attn_mask, dropout_p, is_causal, **options)
        assert query.dtype == torch.bfloat16
        if attn_mask is not None:  # of packed rows
            assert attn_mask.device == CUDA
            return torch.empty_like(query)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        return kernel(query, key, value, dropout_p, is_causal, scale=options.get("scale"))[0]

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", flash)


@pytest.mark.parametrize(
    ("case", "fit"),
    [*((case, "squash") for case in CASES), *((case, "anyres") for case in ("align", "packed, cached", "lora"))],
)
def test_no_value_is_read_from_the_gpu(case: str, fit: str, bridge_parts: Parts) -> None:
    loss, fake = run(*rehearsed(case, fit, bridge_parts))
    assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())
    assert fake.copies == (["tensor"] if fit == "anyres" else [])  # transformers counts the tokens of tiles


@pytest.mark.parametrize("fit", ["squash", "anyres"])
def test_nor_for_text_alone(fit: str, bridge_parts: Parts) -> None:
    loss, fake = run(*rehearsed("instruct", fit, bridge_parts, text=True))
    assert loss.device == CUDA
    assert fake.copies == (["tensor"] if fit == "anyres" else [])


@pytest.mark.parametrize("cause", ["positions", "sizes"])
def test_a_read_is_noticed(cause: str, bridge_parts: Parts) -> None:
    model, batch = rehearsed("instruct", "anyres", bridge_parts)
    if cause == "positions":
        del batch["supervised"]
    else:
        batch["image_sizes"] = torch.tensor(batch["image_sizes"])
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        run(model, batch)
