"""Small random models of the real architectures, in the formats that other libraries write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TEXTS = ["A red square.", "two dogs, running!", ""]
ODD_TEXTS = [
    "the dog’s toy",
    "“Curly” quotes – and … ‘dashes’",
    "résumé, ÎLE, ΟΔΟΣ",
    "emoji 🙂👍🏽 家",
    "ﬁne ＡＢＣ, ½",
    "&lt;b&gt; &amp;amp; co",
    "  two  spaces,\ta tab\n",
    "\ufeffbom \x00 null \x85 c1",
    "repaired: cafÃ©",
    "",
    "A word " * 50,
]
WORDS = ["[PAD]", "[BEGIN]", "[UNK]", "a", "red", "square", "two", "dogs", "running", ".", ",", "!", "[END]"]
VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
PREPROCESS = {
    "size": [32, 32],
    "mode": "RGB",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}


def shaken(model: torch.nn.Module) -> Any:
    """``model`` away from what a fresh one holds, its zeros and ones above all; in evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def open_clip_model(cfg: dict[str, Any]) -> Any:
    import open_clip

    torch.manual_seed(1)
    options = {key: value for key, value in cfg.items() if key != "custom_text"}
    return shaken((open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP)(**options))


def open_clip_directory(folder: Path, cfg: dict[str, Any] = VIT, preprocess: dict[str, Any] | None = None) -> Any:
    """Write an encoder directory as stock open_clip has them, without a manifest; returns the model."""
    folder.mkdir(parents=True)
    model = open_clip_model(cfg)
    config = {"model_cfg": cfg, "preprocess_cfg": preprocess or PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def word_tokenizer(folder: Path) -> Any:
    """Lower-cased words between a begin and an end token, the end token last of all, as in CLIP."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[BEGIN]", ids["[BEGIN]"]), ("[END]", ids["[END]"])]
    words.post_processor = processors.TemplateProcessing(single="[BEGIN] $A [END]", special_tokens=ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BEGIN]", "eos_token": "[END]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def clip_tokenizer(folder: Path) -> Any:
    """OpenAI's vocabulary as the Hub's directories of CLIP have it."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    openai = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(word, word): token for word, token in openai.encoder.items()}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(openai.bpe_ranks), model_max_length=10)
    tokenizer.save_pretrained(folder)
    return tokenizer


def transformers_config(**fields: Any) -> dict[str, Any]:
    """Two small towers: the entries that CLIPConfig and SiglipConfig share."""
    tower = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = tower | {"vocab_size": len(WORDS), "max_position_embeddings": 10, **fields.get("text", {})}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": len(WORDS) - 1}
    vision = tower | {"image_size": 32, "patch_size": 8, **fields.get("vision", {})}
    return {"text_config": ids | text, "vision_config": vision}


def image_processor(folder: Path, **fields: Any) -> None:
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], resample=3, **fields).save_pretrained(
        folder
    )


def hf_clip(folder: Path, **fields: Any) -> Any:
    """Write a small CLIPModel with tokenizer and preprocessing; returns it."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(2)
    model = shaken(CLIPModel(CLIPConfig(projection_dim=24, **transformers_config(**fields))))
    model.save_pretrained(folder)
    word_tokenizer(folder)
    image_processor(folder, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model


def hf_siglip(folder: Path, **fields: Any) -> Any:
    """Write a small SiglipModel with tokenizer and preprocessing; returns it."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(3)
    model = shaken(SiglipModel(SiglipConfig(**transformers_config(**fields))))
    model.save_pretrained(folder)
    word_tokenizer(folder)
    image_processor(folder, size={"height": 32, "width": 32}, do_center_crop=False)
    return model


def register_small_siglip_tower() -> str:
    """A timm model as its SigLIP towers are, of the size of `hf_siglip`."""
    import timm
    from timm.models import generate_default_cfgs, register_model, vision_transformer
    from timm.models.vision_transformer import VisionTransformer, _cfg, _create_vision_transformer

    name = "vit_small0_patch8_siglip_32"

    def vit_small0_patch8_siglip_32(pretrained: bool = False, **options: Any) -> VisionTransformer:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 72 / 32}
        own = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
        return _create_vision_transformer(name, pretrained=pretrained, **(sizes | own | options))

    if name not in timm.list_models():
        vision_transformer.default_cfgs |= generate_default_cfgs({name: _cfg(input_size=(3, 32, 32), num_classes=0)})
        vit_small0_patch8_siglip_32.__module__ = vision_transformer.__name__
        register_model(vit_small0_patch8_siglip_32)
    return name
