"""What the formats of transformers share: configs, preprocessing, tokenizers, activations, blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clips.errors import UserError
from clips.model.architectures import NORMALIZATIONS, complete_preprocess_cfg
from clips.model.loading import library_errors_as_user_errors, require_float_weights
from clips.model.tokenizer import require_rows
from clips.text_files import safe_json_loads

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
_PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
_PROCESSOR_ENTRIES = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
    # without effect on RGB images:
    *("do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class", "data_format"),
    *("default_to_square", "pad_size"),
}
_ACTIVATIONS: dict[str, tuple[bool, dict[str, Any]]] = {
    "quick_gelu": (True, {}),
    "gelu": (False, {}),
    "gelu_new": (False, {"act_kwargs": {"approximate": "tanh"}}),
    "gelu_pytorch_tanh": (False, {"act_kwargs": {"approximate": "tanh"}}),
}
"""transformers' name → open_clip's ``quick_gelu``, and other entries of a tower's config."""
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"  # OpenAI's special tokens


def model_type(path: Path) -> str | None:
    """Return the model type in a directory's config.json; None if there is none."""
    try:
        config = safe_json_loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def from_pretrained(kind: Any, path: Path) -> Any:
    """Load the model of class ``kind`` from a directory, in evaluation mode and float32.

    Raises:
        UserError: it cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    import torch

    require_float_weights(path, str(path))
    safe = any(path.glob("*.safetensors")) or None
    with library_errors_as_user_errors(f"{path}: transformers cannot read a {kind.__name__}"):
        model, info = kind.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, use_safetensors=safe, weights_only=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(problem) or ())):
            raise UserError(f"{path}: its weights do not fit its config.json: {problem.replace('_', ' ')}: {names[0]}")
    return model.eval()


def activation_options(vision: str, text: str, where: Path) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """Return ``quick_gelu`` of both towers and the extra entries of each one's config.

    Raises:
        UserError: open_clip has no such activation, or the towers need different ones.
    """
    for name in (vision, text):
        if name not in _ACTIVATIONS:
            raise UserError(f"{where}: open_clip has no activation '{name}'; expected {', '.join(_ACTIVATIONS)}")
    (quick, vision_options), (text_quick, text_options) = _ACTIVATIONS[vision], _ACTIVATIONS[text]
    if quick != text_quick:
        raise UserError(f"{where}: open_clip has quick_gelu in both towers or in none, not {vision} and {text}")
    return quick, vision_options, text_options


def activation_name(act: Any) -> str | None:
    """Return transformers' name of an activation module of open_clip or timm; None if there is none."""
    from open_clip.transformer import QuickGELU
    from timm import layers
    from torch import nn

    if isinstance(act, QuickGELU | layers.QuickGELU):
        return "quick_gelu"
    if isinstance(act, layers.GELUTanh) or (isinstance(act, nn.GELU) and act.approximate == "tanh"):
        return "gelu_pytorch_tanh"
    return "gelu" if isinstance(act, nn.GELU) else None


def transformer_config(tower: Any, modality: str, target: str) -> dict[str, Any]:
    """Return the entries of transformers' config for a tower's ``transformer``.

    ``modality`` (image or text) and ``target``, the class to export to, are for the message.

    Raises:
        UserError: blocks, activation or norms that only open_clip has.
    """
    from open_clip.transformer import ResidualAttentionBlock
    from torch import nn

    blocks = list(tower.transformer.resblocks)
    first = blocks[0]
    norms = {module.eps for module in tower.transformer.modules() if isinstance(module, nn.LayerNorm)}
    if not isinstance(first, ResidualAttentionBlock) or not isinstance(first.ls_1, nn.Identity):
        raise UserError(f"{target} does not support the blocks of this {modality} tower ({type(first).__name__})")
    activation = activation_name(first.mlp.gelu)
    if activation is None or len(norms) != 1:
        raise UserError(f"{target} does not support the blocks of this {modality} tower (activation or norms)")
    return {
        "hidden_size": tower.transformer.width,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": activation,
        "layer_norm_eps": norms.pop(),
    }


def reject_unsupported(target: str, problems: Iterable[tuple[bool, str]]) -> None:
    """Raise a UserError with the first of ``problems`` whose condition holds."""
    for unsupported, reason in problems:
        if unsupported:
            raise UserError(f"{target} {reason}")


def mlp_ratio(inner: int, width: int) -> float:
    """Return the ratio from which open_clip and timm, which truncate decimals, compute a hidden layer of ``inner``."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def has_image_processor(path: Path) -> bool:
    """Whether a directory states its preprocessing."""
    return any((path / name).is_file() for name in _PROCESSOR_NAMES)


def load_image_processor(path: Path) -> Any:
    """Load a directory's image processor.

    Raises:
        UserError: transformers cannot read it.
    """
    from transformers import AutoImageProcessor

    with library_errors_as_user_errors(f"{path}: transformers cannot read this image processor"):
        return AutoImageProcessor.from_pretrained(path, trust_remote_code=False)


def read_preprocessing(
    path: Path, size: int, family: str, normalization: str, resize_mode: str
) -> tuple[dict[str, Any], str]:
    """Return open_clip's preprocess_cfg that equals a directory's image processor, and where that is stated.

    Without an image processor it is that of the model's ``family``, for images of ``size`` pixels.

    Raises:
        UserError: open_clip has no preprocessing with the effect of one of its entries.
    """
    mean, std = NORMALIZATIONS[normalization]
    cfg: dict[str, Any] = {"size": [size, size], "mode": "RGB", "mean": mean, "std": std, "interpolation": "bicubic"}
    cfg |= {"resize_mode": resize_mode, "fill_color": 0}
    if not has_image_processor(path):
        return cfg, f"{family}'s, because it has no image processor"
    entries = load_image_processor(path).to_dict()

    def reject(name: str, expected: str) -> UserError:
        where = next(path / file for file in _PROCESSOR_NAMES if (path / file).is_file())
        return UserError(
            f"{where}: {name}: open_clip computes only {expected}, got {entries.get(name)}; "
            f"benchmarks read the model as it is, as transformers:{path}"
        )

    square, crops = {"height": size, "width": size}, bool(entries.get("do_center_crop"))
    sides, crop = (dict(entries.get(name) or {}) for name in ("size", "crop_size"))
    if not entries.get("do_resize"):
        raise reject("do_resize", "true")
    if crops and crop != square:
        raise reject("crop_size", f"{square}, the size of the model's images")
    if sides != square and not (crops and sides == {"shortest_edge": size}):
        raise reject("size", f"{square}, or with a center crop {{'shortest_edge': {size}}}")
    if entries.get("resample") not in _RESAMPLING:
        raise reject("resample", "2 (bilinear) and 3 (bicubic)")
    for name, value in entries.items():
        if name not in _PROCESSOR_ENTRIES and value:
            raise reject(name, "processors without it")
    with library_errors_as_user_errors(f"{path}: expected numbers as rescale_factor, image_mean and image_std"):
        if entries.get("do_rescale") and not float(entries["rescale_factor"]) > 0:
            raise reject("rescale_factor", "a positive number")
        cfg |= read_normalization(entries)
    cfg |= {"interpolation": _RESAMPLING[int(entries["resample"])]}
    return cfg | {"resize_mode": "squash" if sides == square else "shortest"}, "its image processor's"


def read_normalization(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``mean`` and ``std`` of pixels from 0 to 1 that equal an image processor's entries."""
    # Its own pixels are from 0 to this:
    top = 255 * float(entries["rescale_factor"]) if entries.get("do_rescale") else 255.0
    top = 1.0 if abs(top - 1) < 1e-6 else top
    mean, std = (entries["image_mean"], entries["image_std"]) if entries.get("do_normalize") else (0.0, 1.0)
    return {
        name: [float(value) / top for value in np.broadcast_to(values, 3)]
        for name, values in (("mean", mean), ("std", std))
    }


def write_preprocessing(preprocess: Mapping[str, Any], directory: Path) -> None:
    """Write preprocessor_config.json of an open_clip preprocess_cfg.

    Raises:
        UserError: transformers has no such preprocessing.
    """
    from transformers import CLIPImageProcessor

    cfg = complete_preprocess_cfg(dict(preprocess), preprocess["size"])
    (height, width), mode = cfg["size"], cfg["resize_mode"]
    if mode == "longest" or (mode == "shortest" and height != width):
        raise UserError(f"preprocess_cfg: transformers has no resize mode '{mode}' to {height}x{width}")
    crops = mode == "shortest"
    resampling = {name: number for number, name in _RESAMPLING.items()}
    CLIPImageProcessor(
        size={"shortest_edge": height} if crops else {"height": height, "width": width},
        crop_size={"height": height, "width": width},
        do_center_crop=crops,
        resample=resampling.get(cfg["interpolation"], resampling["bicubic"]),  # open_clip's "random" is of training
        image_mean=cfg["mean"],
        image_std=cfg["std"],
    ).save_pretrained(directory)


def has_tokenizer(path: Path) -> bool:
    """Whether a directory contains the files of a tokenizer."""
    return any((path / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"))


def save_tokenizer(path: Path, directory: Path, rows: int) -> None:
    """Write the tokenizer of a directory of transformers into ``directory``.

    Raises:
        UserError: transformers cannot read it, or it has ids beyond the ``rows`` of the table of embeddings.
    """
    from transformers import AutoTokenizer

    with library_errors_as_user_errors(f"{path}: transformers cannot read this tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    require_rows(tokenizer, rows, str(path))
    tokenizer.save_pretrained(directory)


def cleaning_name(text_cfg: Mapping[str, Any]) -> str:
    """Return open_clip's name of the function that cleans texts before the tokenizer of a ``text_cfg``."""
    default = "whitespace" if text_cfg.get("hf_tokenizer_name") else "lower"
    return str((text_cfg.get("tokenizer_kwargs") or {}).get("clean", default))


def write_tokenizer(tokenizer: Any, text_cfg: Mapping[str, Any], directory: Path) -> None:
    """Write the tokenizer of a loaded encoder in transformers' format, with open_clip's cleaning of texts.

    It is of transformers' general class: ``CLIPTokenizer`` builds its normalizer anew and would drop the cleaning.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    if not hasattr(tokenizer, "tokenizer"):
        backend = _openai_backend(tokenizer)
        options: dict[str, Any] = {"split_special_tokens": True}
        options |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), _END) | {"bos_token": _BEGIN}
    elif hasattr(tokenizer.tokenizer, "backend_tokenizer"):
        own = tokenizer.tokenizer
        backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
        options = {"split_special_tokens": own.split_special_tokens, "padding_side": own.padding_side}
        options |= own.special_tokens_map
    else:  # sentencepiece's, which cleans texts itself
        tokenizer.tokenizer.save_pretrained(directory)
        return
    before = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*cleaning_normalizers(cleaning_name(text_cfg)), *before])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=tokenizer.context_length, **options
    ).save_pretrained(directory)


def _openai_backend(tokenizer: Any) -> Any:
    """Return open_clip's ``SimpleTokenizer`` without its cleaning, as a tokenizer of the library tokenizers."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {_BEGIN: tokenizer.sot_token_id, _END: tokenizer.eot_token_id}
    words = {word: token for word, token in tokenizer.encoder.items() if token not in ids.values()}
    bpe = models.BPE(words | ids, list(tokenizer.bpe_ranks), end_of_word_suffix="</w>", unk_token=_END)
    backend = Tokenizer(bpe)
    words_and_signs = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words_and_signs, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}", special_tokens=list(ids.items())
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in ids])
    return backend


def cleaning_normalizers(name: str) -> list[Any]:
    """Return the normalizers of the library tokenizers that clean texts as open_clip does.

    Without what needs more than one character's replacement: repaired encodings, HTML entities but for the usual ones.
    """
    import string

    from ftfy import chardata
    from tokenizers import Regex, normalizers

    def any_of(signs: Iterable[str]) -> Any:
        return Regex("[" + "".join(f"\\x{{{ord(sign):04x}}}" for sign in signs) + "]")

    replace = normalizers.Replace
    entities = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&apos;": "'", "&nbsp;": " "}
    undefined = (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # of Windows' code page, as which ftfy reads C1 controls
    controls = {code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in undefined}
    signs = chardata.LIGATURES | chardata.WIDTH_MAP | controls
    steps: list[Any] = [replace("&amp;", "&"), replace("&amp;", "&")]  # entities are resolved twice
    steps += [replace(entity, sign) for entity, sign in entities.items()]
    steps += [replace(chr(code), text) for code, text in signs.items()]
    steps += [replace(Regex("[ʼ‘-‛]"), "'"), replace(Regex("[“-‟]"), '"')]
    steps += [replace(any_of(map(chr, chardata.CONTROL_CHARS)), ""), normalizers.NFC()]
    if name == "canonicalize":
        steps += [replace("_", " "), replace(any_of(string.punctuation), "")]
    if name in ("canonicalize", "lower"):
        steps += [replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()]  # Python's final sigma
    return [*steps, replace(Regex(r"\s+"), " "), normalizers.Strip()]
