"""open_clip's files: directories in its Hub format, training checkpoints, bare state dicts.

Published CLIPS and OpenVision weights have the same format. Their configs were written for the authors' fork of
open_clip, which derived the tokenizer from the model's name; here the config states it (``tokenizer_mode``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clips.errors import UserError, error_reason, unknown_name_error
from clips.interchange.conversion import Features, ImportedEncoder, license_from_card, no_tokenizer
from clips.model import architectures
from clips.model.loading import library_errors_as_user_errors, read_weights, select_model
from clips.model.tokenizer import ClipsTokenizer, copy_tokenizer_files
from clips.model_refs import (
    CAPTIONER_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_PICKLE,
    OPEN_CLIP_WEIGHTS,
    state_tokenizer,
)
from clips.safe_text import log_info
from clips.text_files import safe_json_loads

PREPROCESSING_OF_FILES = "open_clip's for a file of weights"
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def is_supported(path: Path) -> bool:
    """Whether this is a directory in open_clip's Hub format, or a single weights file."""
    return (path / OPEN_CLIP_CONFIG).is_file() if path.is_dir() else path.suffix in _ENDINGS


def load(path: Path, architecture: str | None) -> ImportedEncoder:
    """See `clips.interchange.importing`."""
    where, recorded = path, None
    if path.is_dir():
        usual = (OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", OPEN_CLIP_PICKLE)
        others = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and file.name != CAPTIONER_WEIGHTS)
        files = [file for file in (*(path / name for name in usual), *others) if file.is_file()]
        if not files:
            raise UserError(f"{path}: no weights in it; expected {OPEN_CLIP_WEIGHTS} or {OPEN_CLIP_PICKLE}")
        where, config = files[0], path / OPEN_CLIP_CONFIG
        try:
            recorded = safe_json_loads(config.read_text(encoding="utf-8"))
            recorded["model_cfg"]["vision_cfg"].keys()
            recorded["model_cfg"]["text_cfg"].keys()
            recorded = state_tokenizer(recorded)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{config}: expected open_clip's model_cfg with both towers ({error_reason(error)})"
            ) from None
    weights = select_model(read_weights(where), "visual", where)
    numbers = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's TorchScript archives
    weights = {name: value for name, value in weights.items() if name not in numbers}

    if architecture is not None:
        cfg, preprocess, source = configs_for_architecture(architecture, weights)
    elif recorded is not None:
        cfg, source = recorded["model_cfg"], "open_clip's default"
        preprocess = architectures.complete_preprocess_cfg({}, cfg["vision_cfg"].get("image_size", 224))
    else:
        cfg, preprocess, source = configs_for_architecture(infer_architecture(weights, path), weights)
    if recorded is not None and recorded.get("preprocess_cfg"):
        preprocess = architectures.complete_preprocess_cfg(recorded["preprocess_cfg"], preprocess["size"])
        source = f"that of {OPEN_CLIP_CONFIG}"
    # The text tower's prefix in this architecture is "text." or none.
    parts = ("text_projection", "positional_embedding", "token_embedding", "transformer.", "ln_final", "cls_emb")
    if cfg.get("custom_text"):
        weights = {f"text.{name}" if name.startswith(parts) else name: value for name, value in weights.items()}
    else:
        weights = {name.removeprefix("text."): value for name, value in weights.items()}
    return ImportedEncoder(
        model_cfg=cfg,
        preprocess_cfg=preprocess,
        preprocess_source=source,
        weights=weights,
        write_tokenizer=_tokenizer_writer(path, cfg["text_cfg"]),
        features=library_features(architecture, where) if source == PREPROCESSING_OF_FILES else None,
        license=license_from_card(path),
        where=where,
    )


def library_features(architecture: str | None, weights: Path) -> Features | None:
    """The features of open_clip's own model of a weights file; None if open_clip does not read the file."""
    import open_clip

    try:
        model = open_clip.create_model(str(architecture), pretrained=str(weights), pretrained_text=False).eval()
    except Exception:  # of torch.load, for example, for what `read_weights` reads; or errors that the import names
        return None
    return lambda pixels, tokens: (model.encode_image(pixels), model.encode_text(tokens))


def _tokenizer_writer(path: Path, text: dict[str, Any]) -> Callable[[Path], None]:
    if text.get("tokenizer_mode") == "clips":
        return ClipsTokenizer(text["context_length"]).save
    if not (name := text.get("hf_tokenizer_name")):
        return no_tokenizer
    files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
    if path.is_dir() and any((path / file).is_file() for file in files):
        return lambda directory: copy_tokenizer_files(path, directory)

    def download(directory: Path) -> None:
        from transformers import AutoTokenizer

        with library_errors_as_user_errors(f"tokenizer {name}: cannot be downloaded from the Hub"):
            AutoTokenizer.from_pretrained(str(name), trust_remote_code=False).save_pretrained(directory)

    return download


def parse_released_name(name: str) -> tuple[str, int | None]:
    """Map a published name to architecture and image size (openvision-vit-large-patch14-224, ViT-L-14-CLIPS-224).

    Any other name is returned unchanged, without a size.
    """
    published = (
        r"openvision-vit-(?P<family>[a-z0-9]+)-patch(?P<patch>\d+)-(?P<size>\d+)",
        r"vit-(?P<family>[a-z])-(?P<patch>\d+)-clips-(?P<size>\d+)",
    )
    families = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
    for pattern in published:
        if match := re.fullmatch(pattern, name.lower()):
            architecture = f"clips-{families.get(match['family'], match['family'])}-{match['patch']}"
            if architecture in architectures.list_architectures():
                return architecture, int(match["size"])
    return name, None


def infer_architecture(weights: Mapping[str, Tensor], path: Path) -> str:
    """The only architecture of open_clip with these sizes.

    Raises:
        UserError: there is none, or there are several, as of most that OpenAI trained, with QuickGELU.
    """
    import open_clip

    known, near = {*open_clip.list_models()}, architectures_of_size(weights)
    near += [name for each in near if (name := f"{each}-quickgelu") in known]
    if len(near) == 1:
        log_info(f"{path}: its sizes are those of {near[0]} alone, which is taken as --architecture")
        return near[0]
    sizes = f"; its sizes are those of {' and '.join(near)}" if near else ""
    raise UserError(f"{path}: a weights file does not state its architecture; give --architecture{sizes}")


def architectures_of_size(weights: Mapping[str, Tensor]) -> list[str]:
    """open_clip's ViTs whose config has the sizes of these weights; those with QuickGELU have the same as without."""
    import open_clip
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    shapes = {name.removeprefix("text."): tuple(value.shape) for name, value in weights.items()}
    layers = Counter(name.partition("transformer.")[0] for name in shapes if name.endswith(".attn.in_proj_bias"))
    near = []
    for name in open_clip.list_models():
        cfg = open_clip.get_model_config(name)
        image, text = CLIPVisionCfg(**cfg["vision_cfg"]), CLIPTextCfg(**cfg["text_cfg"])
        if image.timm_model_name or text.hf_model_name or not isinstance(image.layers, int) or "quickgelu" in name:
            continue  # the sizes in the config are not the model's, or it is a ResNet
        expected = {
            "visual.conv1.weight": (image.width, 3, image.patch_size, image.patch_size),
            "visual.positional_embedding": ((image.image_size // image.patch_size) ** 2 + 1, image.width),
            "positional_embedding": (text.context_length, text.width),
            "token_embedding.weight": (text.vocab_size, text.width),
            "text_projection": (text.width, cfg["embed_dim"]),
        }
        if expected.items() <= shapes.items() and [layers["visual."], layers[""]] == [image.layers, text.layers]:
            near.append(name)
    return near


def configs_for_architecture(name: str, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of an architecture, and where the latter is stated.

    The weights determine the sizes of a CLIPS architecture. An architecture of open_clip has the preprocessing that
    open_clip gives to its weights in a file (``pretrained=FILE``), whatever its published weights have.

    Raises:
        UserError: an unknown architecture.
    """
    architecture, size = parse_released_name(name)
    if architecture in architectures.list_architectures():
        table = weights.get("positional_embedding", weights.get("text.positional_embedding"))
        length = len(table) if table is not None and len(table) >= 4 else None
        cfg = architectures.model_cfg(architectures.ModelConfig(architecture=architecture, context_length=length))
        patch = cfg["vision_cfg"].get("patch_size")
        if size is None and patch and "visual.positional_embedding" in weights:
            size = int(patch) * round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
        if size is not None:  # not always a multiple of the patch size: SO400M/14 was published at 384 px
            cfg["vision_cfg"]["image_size"] = size
        if "logit_bias" in weights:
            cfg["init_logit_bias"] = 0.0
        return cfg, architectures.preprocess_cfg(cfg), f"that of {architecture}"
    import open_clip

    open_clip_cfg = open_clip.get_model_config(architecture)
    if open_clip_cfg is None:
        raise unknown_name_error(name, [*architectures.list_architectures(), *open_clip.list_models()], "architecture")
    image_size = open_clip_cfg["vision_cfg"].get("image_size", 224)
    return open_clip_cfg, architectures.complete_preprocess_cfg({}, image_size), PREPROCESSING_OF_FILES
