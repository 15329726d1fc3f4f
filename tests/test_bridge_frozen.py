"""What is frozen stays as it was: in bf16, beside batches without pictures, and in what is kept of it on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest
import torch
from safetensors.torch import load_file
from test_bridge_fsdp import config

from llava_bridge.data import ConversationSourceConfig
from llava_bridge.encoders import load_encoder
from llava_bridge.model.build import LlavaParts, build_llava
from llava_bridge.model.modeling_vision import build_vision_model
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import split_parts
from llava_bridge.training.sharded_weights import frozen_fits_bf16
from llava_bridge.training.train_config import StageConfig
from llava_bridge.training.trainer import frozen_encoder_apart, recompute_layers


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_frozen_llm_is_bit_for_bit_as_it_was_after_bf16(
    stored: torch.dtype, tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = AutoModelForCausalLM.from_pretrained(bridge_llm).to(stored)
    llm.save_pretrained(tmp_path / "llm")
    AutoTokenizer.from_pretrained(bridge_llm).save_pretrained(tmp_path / "llm")
    stage = StageConfig(
        data=[ConversationSourceConfig(path=str(bridge_talk / "talk.json"))],
        max_steps=2,
        global_batch_size=4,
        learning_rate=1e-2,
        warmup_ratio=0.0,
    )
    world = bridge_encoder, tmp_path / "llm", bridge_talk
    path = config(tmp_path, "run", world, "deepspeed", stages=["align"], align=stage, precision="bf16")
    done = bridge_world.run_python("-m", "llava_bridge", "train", "--config", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    saved = load_file(tmp_path / "run" / "model.safetensors")
    before = {name.partition("layers.")[2]: value for name, value in llm.state_dict().items() if "layers." in name}
    found = {
        name.partition("layers.")[2]: value
        for name, value in saved.items()
        if "language_model" in name and "layers." in name
    }
    assert found.keys() == before.keys()
    for name, value in found.items():
        assert torch.equal(value.float(), before[name].float()), name
    assert {value.dtype for value in found.values()} == {stored}
    stated = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stated["dtype"] == stated["text_config"]["dtype"] == str(stored).removeprefix("torch.")
    assert stated["vision_config"]["dtype"] == "float32"


def test_what_bf16_holds_and_what_not() -> None:
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    assert not frozen_fits_bf16(layer)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(weight.bfloat16())
    assert frozen_fits_bf16(layer)
    assert frozen_fits_bf16(torch.nn.Linear(4, 4))  # it learns


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", ["TRUNK", "RESNET"])
def test_batch_norms_that_learn_are_not_shown_the_blank(
    kind: str, recomputed: bool, tmp_path: Path, bridge_llm: Path
) -> None:
    bridge_world.make_encoder(tmp_path / "trunk", getattr(bridge_world, kind))
    model, _ = build_llava(LlavaParts(encoder=str(tmp_path / "trunk"), llm=str(bridge_llm)))
    model.requires_grad_(True).train()
    if recomputed:
        recompute_layers(model)
    before = {name: value.clone() for name, value in model.model.vision_tower.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    text = torch.tensor([[1, 40, 41, 42]])
    LlavaLoss(model)(input_ids=text, labels=text, attention_mask=torch.ones_like(text))["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in model.model.vision_tower.named_buffers())
    assert all(module.training for module in model.model.vision_tower.modules())
    assert all(weight.grad is not None for weight in model.model.multi_modal_projector.parameters())


def test_an_encoder_that_is_put_apart_is_called_and_comes_back_to_its_place(
    bridge_encoder: Path, bridge_llm: Path
) -> None:
    model, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm)))
    setup: Any = SimpleNamespace(model=model, parts=split_parts(model))
    names = list(model.state_dict())
    pixels = torch.zeros(1, 3, 32, 32)
    before = torch.cat(tuple(model.get_image_features(pixels).pooler_output))
    with frozen_encoder_apart(setup):
        assert not any("vision_tower" in name for name, _ in model.named_parameters())
        model.to(torch.bfloat16)
        assert model.model.vision_tower.dtype == torch.float32
        model.float()
    assert list(model.state_dict()) == names
    after = torch.cat(tuple(model.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(after, before, atol=0.05, rtol=0.05)
    model.requires_grad_(True)
    with frozen_encoder_apart(setup):  # it learns
        assert list(model.state_dict()) == names


def kept(spec: str, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that come through the cache, and those without."""
    tower: Any = build_vision_model(load_encoder(spec, None), None).requires_grad_(False)
    plain = tower(pixels, output_hidden_states=[-1]).hidden_states[-1]
    tower.keep_outputs(-1)
    return tower(pixels, output_hidden_states=[-1]).hidden_states[-1], plain


def test_the_cache_tells_encoders_of_the_same_weights_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("one", "quick"):
        bridge_world.make_encoder(tmp_path / name, bridge_world.VIT)
    file = tmp_path / "quick" / "open_clip_config.json"
    settings = json.loads(file.read_text())
    settings["model_cfg"]["quick_gelu"] = True
    file.write_text(json.dumps(settings))
    one, quick = str(tmp_path / "one"), str(tmp_path / "quick")
    outputs = {}
    for spec in (one, quick, f"several:{one} + {quick}", f"several:interleave:{one} + {quick}"):
        found, plain = kept(spec, pixels)
        assert torch.equal(found, plain), spec
        outputs[spec] = found
    assert not torch.equal(outputs[one], outputs[quick])
    assert torch.equal(kept(one, pixels)[0], outputs[one])  # found again
