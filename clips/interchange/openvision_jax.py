"""Weights of the reference JAX code (CLIPS, OpenVision): a ``.npz`` of its parameters under their flax names.

Names: ``img/…`` and ``txt/…`` are the towers, ``t`` the log-scale, below ``params/`` or at the top; the captioner
(``txt_decoder/…``) is skipped. Kernels are input × output. The sinusoidal image positions are not stored; they follow
MoCo v3, whose frequencies differ slightly from open_clip's. Source: ``src/models/vit.py`` and
``src/convert_upload/transfer_jax2hf.py`` of https://github.com/UCSC-VLAA/OpenVision.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clips.errors import UserError, error_reason
from clips.interchange.imported_encoder import ImportedEncoder, configs_for_architecture, tower_shapes
from clips.interchange.weight_mapping import (
    OPEN_CLIP,
    BlockNames,
    Weights,
    block_links,
    to_open_clip,
    weight_bias_links,
    weight_link,
)
from clips.model.pos_embed import openvision_sincos_pos_embed
from clips.model.tokenizer import ClipsTokenizer

_ATTENTION = "MultiHeadDotProductAttention_0"
_FLAX = BlockNames(
    "LayerNorm_0.{}",
    (f"{_ATTENTION}.query.{{}}", f"{_ATTENTION}.key.{{}}", f"{_ATTENTION}.value.{{}}"),
    f"{_ATTENTION}.out.{{}}",
    "LayerNorm_1.{}",
    "MlpBlock_0.Dense_0.{}",
    "MlpBlock_0.Dense_1.{}",
)
_DECODER = "txt_decoder/"


def is_supported(path: Path) -> bool:
    """Whether this is a ``.npz`` file."""
    return path.is_file() and path.suffix == ".npz"


def load(path: Path, architecture: str | None) -> ImportedEncoder:
    """See `clips.interchange.importing`."""
    if architecture is None:
        raise UserError(f"{path}: a weights file does not state its architecture; give --architecture")
    stored = _as_torch(_read_parameters(path))
    table = stored.get("txt.pos_embedding", torch.empty(1, 0, 0))[0]
    cfg, preprocess, source = configs_for_architecture(architecture, {"positional_embedding": table})
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    if "img.pos_embedding" not in stored:
        side = vision["image_size"] // vision["patch_size"]
        stored["img.pos_embedding"] = openvision_sincos_pos_embed(side, vision["width"])
    links = [
        weight_link("visual.positional_embedding", "img.pos_embedding"),
        weight_link("visual.class_embedding", "img.cls"),
        weight_link("visual.conv1.weight", "img.embedding.weight"),
        *weight_bias_links("visual.ln_post.{}", "img.encoder_norm.{}"),
        weight_link("visual.proj", "img.head.weight", transposed=True),
        *block_links(
            ("visual.transformer.resblocks.{}.", OPEN_CLIP),
            ("img.Transformer.encoderblock_{}.", _FLAX),
            vision["layers"],
        ),
        weight_link("positional_embedding", "txt.pos_embedding"),
        weight_link("token_embedding.weight", "txt.Embed_0.embedding"),
        *weight_bias_links("ln_final.{}", "txt.encoder_norm.{}"),
        weight_link("text_projection", "txt.head.weight", transposed=True),
        *block_links(
            ("transformer.resblocks.{}.", OPEN_CLIP), ("txt.Transformer.encoderblock_{}.", _FLAX), text["layers"]
        ),
        weight_link("logit_scale", "t"),
    ]
    return ImportedEncoder(
        model_cfg=cfg,
        preprocess_cfg=preprocess,
        preprocess_source=source,
        weights=to_open_clip(stored, links, tower_shapes(cfg, path)),
        write_tokenizer=ClipsTokenizer(text["context_length"]).save,
        where=path,
    )


def _read_parameters(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .npz of arrays ({error_reason(error)})") from None
    for prefix in ("params/", "opt/target/"):
        inner = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        stored = inner or stored
    if not any(name.startswith("img/") for name in stored):
        raise UserError(f"{path}: expected the parameters of the authors' two towers, img/… and txt/…")
    return {name: value for name, value in stored.items() if not name.startswith(_DECODER)}


def _as_torch(stored: dict[str, np.ndarray]) -> Weights:
    """Convert to torch's axis order and dotted names, with kernels and scales called weights."""
    weights = {}
    for name, value in stored.items():
        *modules, last = name.split("/")
        tensor = torch.from_numpy(np.asarray(value, dtype=np.float32))
        if last == "kernel":
            tensor = _transpose_kernel(tensor, modules)
        elif last == "bias":
            tensor = tensor.flatten()  # attention biases may be heads × head width
        weights[".".join([*modules, "weight" if last in ("kernel", "scale") else last])] = tensor
    return weights


def _transpose_kernel(kernel: Tensor, modules: list[str]) -> Tensor:
    """Return a convolution's kernel as output × input × height × width, a dense one as output × input."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1)
    if kernel.ndim == 3:  # attention kernels, split by heads
        kernel = kernel.flatten(0, 1) if modules[-1] == "out" else kernel.flatten(1, 2)
    return kernel.t()
