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
from PIL import Image

from clips.train import train as train_encoder
from llava_bridge import answer, load_llava
from llava_bridge.conversation import resolve_chat_template
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.projectors import ProjectorConfig
from llava_bridge.training.train_config import StageConfig

ENCODERS = ("clips", "tiny_vit", "efficientnet", "open_clip", "siglip")
LLMS = ("stories15M", "qwen2", "llama_3")
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
# Qwen 2.5 writes a turn of the system where there is none.
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
PROJECTORS = {"clips": "mlp2x_gelu", "tiny_vit": "linear", "efficientnet": "perceiver", "siglip": "pixel_shuffle"}


def make_llm(directory: Path, name: str) -> None:
    """Random weights in the shapes of the family, its tokens for the ends of turns, its template."""
    from tokenizers import AddedToken

    from llava_bridge.model.small_llama import SmallLlamaConfig, train_tokenizer

    tokenizer = train_tokenizer(bridge_world.TEXTS, SmallLlamaConfig(vocab_size=320))
    marks = ("<|im_start|>", "<|im_end|>") if name == "qwen2" else ("<|start_header_id|>", "<|end_header_id|>")
    end = "<|im_end|>" if name == "qwen2" else "<|eot_id|>"
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in {*marks, end}])
    tokenizer.eos_token = end
    if name == "qwen2":
        tokenizer.bos_token = None
    tokenizer.chat_template = QWEN_TEMPLATE if name == "qwen2" else resolve_chat_template(None, "llama_3")
    torch.manual_seed(0)
    sizes = {**TINY, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = (
        transformers.Qwen2Config(**sizes, tie_word_embeddings=True)
        if name == "qwen2"
        else transformers.LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("llms")
    for name in ("qwen2", "llama_3"):
        make_llm(folder / name, name)
    return {"stories15M": str(shared / "models/stories15M"), "qwen2": str(folder / "qwen2")} | {
        "llama_3": str(folder / "llama_3")
    }


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    data = clips_world.write_shards(folder / "data")
    model = {"architecture": "clips-tiny", "image_size": 32, "context_length": 12}
    train_encoder(clips_world.train_config(data, folder / "clips", steps=1, model=model))
    released = json.loads((Path(__import__("open_clip").__file__).parent / "model_configs/ViT-S-32.json").read_text())
    bridge_world.make_encoder(folder / "open_clip", released)
    siglip = transformers.SiglipVisionConfig(num_hidden_layers=2)  # else base's, patch 16 at 224 pixels
    torch.manual_seed(0)
    transformers.SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
    transformers.SiglipImageProcessor().save_pretrained(folder / "siglip")
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
    data = [ConversationSourceConfig(path=str(bridge_talk / "talk.json"))]
    configs = []
    for encoder in ENCODERS:
        for llm in LLMS:
            name = PROJECTORS.get(encoder, "mlp2x_gelu")
            fields: dict[str, Any] = {
                "stages": ["align", "instruct"],
                "encoder": encoders[encoder],
                "llm": llms[llm],
                "projector": ProjectorConfig(type=name, num_tokens=9, num_layers=1),
                "align": StageConfig(data=data, max_steps=2, global_batch_size=2, max_length=256),
                "instruct": StageConfig(
                    data=data, max_steps=3, global_batch_size=2, max_length=256, learning_rate=1e-3
                ),
            }
            configs.append(bridge_world.config_file(folder, f"{encoder}-{llm}", bridge_talk, **fields))
    bridge_world.trained_alone(*configs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_with_any_llm(encoder: str, llm: str, trained: Path, llms: dict[str, str]) -> None:
    directory = trained / f"{encoder}-{llm}"
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in logged] == [
        *(("align", step) for step in (1, 2)),
        *(("instruct", step) for step in (1, 2, 3)),
    ]
    assert all(math.isfinite(row["loss"]) for row in logged)
    model, processor = load_llava(directory)
    picture = Image.effect_noise((60, 40), 80).convert("RGB")
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
