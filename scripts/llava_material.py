"""Initial weights for ``compare_with_llava.py`` in LLaVA's format: an LLM, a small untrained tower and projector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
SIDE, PATCH = 56, 14


def write_parts(llm: Path, folder: Path) -> None:
    """Write the initial weights of a LLaVA: ``llm``, ``tower`` and ``projector`` in ``folder``."""
    write_llm(llm, folder / "llm")
    write_tower(folder / "tower")
    write_projector(folder)


def write_llm(source: Path, directory: Path) -> None:
    """Write the LLM with a config and tokenizer that versions 4 and 5 of transformers both read."""
    from transformers import AutoConfig, AutoTokenizer

    shutil.copytree(source, directory, copy_function=shutil.copyfile, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(source)
    stated = {**config.to_dict(), "rope_theta": config.rope_parameters["rope_theta"], "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(stated))
    # SentencePiece's blank is added before the text only, as in Vicuna 1.5's tokenizer, or also after special tokens.
    scheme = AutoTokenizer.from_pretrained(source).backend_tokenizer.pre_tokenizer.prepend_scheme
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "legacy": scheme != "first", **tokens}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def write_tower(directory: Path) -> None:
    """Write an untrained CLIP tower and its preprocessing, with weight names of all versions of transformers."""
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **TOWER)
    config.save_pretrained(directory)
    weights = {f"vision_model.{name}": value for name, value in CLIPVisionModel(config).state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(directory)


def write_projector(folder: Path) -> None:
    """Write an untrained projector in the format of LLaVA-1.5's first stage."""
    import torch
    from torch import nn

    width = json.loads((folder / "llm/config.json").read_text())["hidden_size"]
    layers = nn.Sequential(nn.Linear(TOWER["hidden_size"], width), nn.GELU(), nn.Linear(width, width))
    weights = {f"model.mm_projector.{name}": value for name, value in layers.state_dict().items()}
    directory = folder / "projector"
    directory.mkdir(exist_ok=True)
    torch.save(weights, directory / "mm_projector.bin")
    stated = {
        "model_type": "llava_llama",
        "mm_vision_tower": str(folder / "tower"),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "image_aspect_ratio": "pad",
    }
    (directory / "config.json").write_text(json.dumps(stated))
