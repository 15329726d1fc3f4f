"""Tiny LLaVAs in the layout of the Hub's llava-hf repositories: the files, fields and weight names of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from original_world import llama_tokenizer
from safetensors.torch import save_file

_IMAGES_FIRST = (
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}"
)
_TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
TEMPLATES = {
    "llava-1.5": (  # llava-hf/llava-1.5-7b-hf
        "{% for message in messages %}"
        "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
        + _IMAGES_FIRST
        + "{% if message['role'] != 'assistant' %}"
        + _TEXTS
        + "{{ content['text'] + ' '}}{% endfor %}{% else %}"
        + _TEXTS
        + "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "llava-v1.6-mistral": (  # llava-hf/llava-v1.6-mistral-7b-hf, with its "<\s>"
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
        "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
        + _IMAGES_FIRST
        + _TEXTS
        + "{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '<\\\\s> '}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
}
TEMPLATES["llava-interleave-qwen"] = (  # llava-hf/llava-interleave-qwen-0.5b-hf
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    + _IMAGES_FIRST.replace("<image>\n", "<image>")
    + _TEXTS
    + "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZE, PATCH = 32, 8
PADDED_ROWS = 62  # the Hub's LLaVAs have more embeddings than tokens
_GRIDS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
_CLIP: dict[str, Any] = {
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": SIZE},
}


def write_hub_llava(directory: Path, tokenizer: Any = None, *, tiles: bool = False, tied: bool = False) -> Any:
    """Write one as transformers 4 did, and return its model.

    Args:
        directory: for the files.
        tokenizer: of a Llama, without ``<image>``; None: a tiny one.
        tiles: LLaVA-NeXT instead of LLaVA-1.5.
        tied: the LLM's output layer is its embedding, which its own config states alone.
    """
    directory.mkdir(parents=True)
    kind, version = ("LlavaNext", "llava-v1.6-mistral") if tiles else ("Llava", "llava-1.5")
    _write_tokenizer(directory, tokenizer or llama_tokenizer(), kind)
    image, pad = (json.loads((directory / "added_tokens.json").read_text())[name] for name in ("<image>", "<pad>"))
    rows = pad + 1 + PADDED_ROWS
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = {
        "ignore_index": -100,
        "image_token_index": image,
        "model_type": "llava_next" if tiles else "llava",
        "pad_token_id": pad,
        "projector_hidden_act": "gelu",
        "text_config": {"model_type": "llama", "vocab_size": rows, "max_position_embeddings": 512, **sizes}
        | ({"tie_word_embeddings": True} if tied else {}),
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "clip_vision_model", "image_size": SIZE, "patch_size": PATCH, **tower},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": rows,
        **({"image_grid_pinpoints": _GRIDS, "use_image_newline_parameter": True} if tiles else {}),
    }
    stated = {"architectures": [f"{kind}ForConditionalGeneration"], "torch_dtype": "float16"}
    _write(directory, "config.json", {**config, **stated, "transformers_version": "4.36.0"})
    torch.manual_seed(0)
    of_kind = getattr(transformers, f"{kind}Config")(**{**config, "tie_word_embeddings": tied})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(of_kind)
    for weight in model.parameters():
        weight.data = (weight + torch.randn_like(weight) * 0.1).half().float()
    save_file(
        {name: value.half().contiguous() for name, value in _named_as_by_transformers_4(model, tied).items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    _write(directory, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad})
    images = {**_CLIP, "image_processor_type": f"{'LlavaNext' if tiles else 'CLIP'}ImageProcessor"}
    _write(directory, "preprocessor_config.json", images | ({"image_grid_pinpoints": _GRIDS} if tiles else {}))
    _write(directory, "chat_template.json", {"chat_template": TEMPLATES[version]})
    processor = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": PATCH}
    processor |= {"processor_class": f"{kind}Processor", "vision_feature_select_strategy": "default"}
    _write(directory, "processor_config.json", processor)
    return model.eval()


def _named_as_by_transformers_4(model: Any, tied: bool) -> dict[str, torch.Tensor]:
    names = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    names |= {"model.vision_tower.": "vision_tower.vision_model.", "model.": ""}
    weights = {}
    for name, value in model.state_dict().items():
        own = next(name.replace(ours, theirs, 1) for ours, theirs in names.items() if name.startswith(ours))
        if not (tied and "lm_head" in own):
            weights[own] = value
    return weights


def _write_tokenizer(directory: Path, tokenizer: Any, kind: str) -> None:
    """A Llama's tokenizer with the two tokens of llava-hf, in the form of transformers 4: it begins texts with <s>."""
    tokenizer.add_tokens([transformers.AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(directory)
    stated = json.loads((directory / "tokenizer.json").read_text())
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    prepend, replace = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}}
    stated["normalizer"] = {"type": "Sequence", "normalizers": [prepend, {**replace, "content": "▁"}]}
    stated["pre_tokenizer"] = None
    stated["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    _write(directory, "tokenizer.json", stated)
    added = {token["content"]: token["id"] for token in stated["added_tokens"]}
    _write(directory, "added_tokens.json", {name: added[name] for name in ("<image>", "<pad>")})
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(directory, "special_tokens_map.json", names)
    options = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "padding_side": "left"}
    classes = {"tokenizer_class": "LlamaTokenizer", "processor_class": f"{kind}Processor"}
    decoder = {
        str(token.pop("id")): token for token in json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    }
    _write(directory, "tokenizer_config.json", {**options, **classes, **names, "added_tokens_decoder": decoder})


def _write(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(json.dumps(content))
