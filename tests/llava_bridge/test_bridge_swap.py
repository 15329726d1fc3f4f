"""Any encoder with any LLM: each pair is trained for five steps, saved, loaded and asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import bridge_world
import clips_world
import pytest
import torch
import transformers

from clips.train import train as train_encoder
from llava_bridge import answer, load_llava
from llava_bridge.projectors import ProjectorConfig

ENCODERS = ("clips", "tiny_vit", "efficientnet", "open_clip", "siglip")
LLMS = ("stories15M", "qwen2", "gemma2")
PROJECTORS = {"clips": "mlp2x_gelu", "tiny_vit": "linear", "efficientnet": "perceiver", "siglip": "pixel_shuffle"}


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory, shared: Path, bridge_llm: Path) -> dict[str, str]:
    folder, tokenizer = tmp_path_factory.mktemp("llms"), transformers.AutoTokenizer.from_pretrained(bridge_llm)
    for kind, more in {"qwen2": {"tie_word_embeddings": True}, "gemma2": {"head_dim": 8}}.items():
        bridge_world.make_llm_of(kind, tokenizer, folder / kind, max_position_embeddings=512, **more)
    return {name: str(folder / name) for name in LLMS[1:]} | {"stories15M": str(shared / "models/stories15M")}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    data = clips_world.write_shards(folder / "data")
    model = {"architecture": "clips-tiny", "image_size": 32, "context_length": 12}
    train_encoder(clips_world.train_config(data, folder / "clips", max_steps=1, model=model))
    released = json.loads((Path(__import__("open_clip").__file__).parent / "model_configs/ViT-S-32.json").read_text())
    bridge_world.make_encoder(folder / "open_clip", released)
    torch.manual_seed(0)
    siglip = transformers.SiglipVisionConfig(num_hidden_layers=2)  # else base's, patch 16 at 224 pixels
    bridge_world.save(folder / "siglip", transformers.SiglipVisionModel(siglip), transformers.SiglipImageProcessor())
    weights = shared / "models"
    return {
        "clips": str(folder / "clips"),
        "tiny_vit": f"timm:tiny_vit_5m_224@{weights}/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors",
        "efficientnet": f"timm:efficientnet_lite0@{weights}/efficientnet_lite0/timm_efficientnet_lite0.safetensors",
        "open_clip": str(folder / "open_clip"),
        "siglip": f"transformers:{folder / 'siglip'}",
    }


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, str], llms: dict[str, str], bridge_talk: Path
) -> Path:
    """A LLaVA of each pair."""
    folder = tmp_path_factory.mktemp("swap")
    sizes = {"global_batch_size": 2, "max_length": 256}
    fields: dict[str, Any] = {
        "stages": ["align", "instruct"],
        "align": bridge_world.stage(bridge_talk, max_steps=2, **sizes),
        "instruct": bridge_world.stage(bridge_talk, learning_rate=1e-3, **sizes),
    }
    configs = []
    for encoder in ENCODERS:
        for llm in LLMS:
            own = {"encoder": encoders[encoder], "llm": llms[llm]}
            own["projector"] = ProjectorConfig(type=PROJECTORS.get(encoder, "mlp2x_gelu"), num_tokens=9)
            configs.append(bridge_world.config_file(folder, f"{encoder}-{llm}", bridge_talk, **fields, **own))
    bridge_world.trained_alone(*configs)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)  # the first waits for all 15 trainings
@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_with_any_llm(encoder: str, llm: str, trained: Path, llms: dict[str, str]) -> None:
    directory = trained / f"{encoder}-{llm}"
    steps = [("align", 1), ("align", 2), ("instruct", 1), ("instruct", 2), ("instruct", 3)]
    assert bridge_world.metrics(directory, "stage", "step") == steps
    assert all(map(math.isfinite, bridge_world.losses(directory)))
    model, processor = load_llava(directory)
    (picture,) = bridge_world.noise((60, 40))
    said = answer(model, processor, [picture, picture], ["What color is it?", "Sure?"], max_new_tokens=4, batch_size=2)
    assert len(said) == 2
    untrained = transformers.AutoModelForCausalLM.from_pretrained(llms[llm]).state_dict()
    now = model.state_dict()
    moved = [
        name
        for name, value in untrained.items()
        if name.startswith("model.layers.")
        and not torch.equal(value, now[name.replace("model.layers.", "model.language_model.layers.")])
    ]
    assert moved  # instruct trained the LLM, and what was saved is that
