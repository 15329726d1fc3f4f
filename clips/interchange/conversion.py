"""What the formats share: an encoder in open_clip's terms, and its weights under the names of both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from clips.errors import UserError
from clips.model.loading import first_mismatch, require_finite
from clips.model.towers import build_towers

Features = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ImportedEncoder:
    """An encoder read from another format.

    Args:
        model_cfg: open_clip's configuration of the towers.
        preprocess_cfg: open_clip's preprocessing.
        preprocess_source: where it is stated, as text.
        weights: under open_clip's names.
        write_tokenizer: writes the tokenizer's files into a directory.
        features: the source's own image and text features of pixels and tokens, if its library is installed.
        approximation: a known small difference of open_clip's towers, as text.
        license: the license that the source states.
        where: the file or directory of the weights, for messages.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    preprocess_source: str
    weights: Weights
    write_tokenizer: Callable[[Path], None]
    features: Features | None = None
    approximation: str | None = None
    license: str | None = None
    where: Path = field(default_factory=Path)


def no_tokenizer(directory: Path) -> None:
    """Write nothing: the tokenizer ships with open_clip."""


def tower_tensors(cfg: Mapping[str, Any], where: str | Path) -> Weights:
    """Return the tensors of the towers that ``cfg`` describes, without values.

    Raises:
        UserError: open_clip cannot build the two towers from it.
    """
    if "multimodal_cfg" in cfg:
        raise UserError(f"{where}: expected image and text towers, but this architecture has CoCa's decoder")
    if "hf_model_name" in cfg["text_cfg"]:
        raise UserError(f"{where}: expected open_clip's own text tower, but this architecture has one of transformers")
    with torch.device("meta"):
        return build_towers(dict(cfg)).state_dict()


def license_from_card(path: Path) -> str | None:
    """Return the license in the front matter of a directory's model card."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        front = card.read_text(encoding="utf-8").split("---")[1]
        stated = yaml.safe_load(front).get("license")
    except (OSError, ValueError, IndexError, AttributeError, RecursionError, yaml.YAMLError):
        return None
    return str(stated) if stated else None


@dataclass(frozen=True)
class WeightLink:
    """Tensors of open_clip and of another format with the same values.

    Args:
        ours: open_clip's name, or names whose tensors are concatenated by rows.
        theirs: the same of the other format.
        transposed: whether one is the transpose of the other.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


def weight_link(ours: str, theirs: str, *, transposed: bool = False) -> WeightLink:
    """Map one tensor to one."""
    return WeightLink((ours,), (theirs,), transposed)


def weight_bias_links(ours: str, theirs: str) -> list[WeightLink]:
    """Map a weight and a bias; ``{}`` in the names is replaced by either."""
    return [weight_link(ours.format(kind), theirs.format(kind)) for kind in ("weight", "bias")]


@dataclass(frozen=True)
class BlockNames:
    """A format's names of the parts of a transformer block; ``{}`` is replaced by weight or bias."""

    norm1: str
    qkv: tuple[str, ...]
    out: str
    norm2: str
    up: str
    down: str


OPEN_CLIP = BlockNames("ln_1.{}", ("attn.in_proj_{}",), "attn.out_proj.{}", "ln_2.{}", "mlp.c_fc.{}", "mlp.c_proj.{}")
TRANSFORMERS = BlockNames(
    "layer_norm1.{}",
    ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    "self_attn.out_proj.{}",
    "layer_norm2.{}",
    "mlp.fc1.{}",
    "mlp.fc2.{}",
)
TIMM = BlockNames("norm1.{}", ("attn.qkv.{}",), "attn.proj.{}", "norm2.{}", "mlp.fc1.{}", "mlp.fc2.{}")


def block_links(ours: tuple[str, BlockNames], theirs: tuple[str, BlockNames], layers: int) -> list[WeightLink]:
    """Map all blocks of a transformer; each side is a prefix, ``{}`` for the layer index, and its names."""
    (our_prefix, our_names), (their_prefix, their_names) = ours, theirs
    links = []
    for layer in range(layers):
        our_block, their_block = our_prefix.format(layer), their_prefix.format(layer)
        for part in ("norm1", "out", "norm2", "up", "down"):
            links += weight_bias_links(our_block + getattr(our_names, part), their_block + getattr(their_names, part))
        for kind in ("weight", "bias"):
            our_qkv = tuple(our_block + name.format(kind) for name in our_names.qkv)
            links.append(WeightLink(our_qkv, tuple(their_block + name.format(kind) for name in their_names.qkv)))
    return links


def to_open_clip(weights: Mapping[str, Tensor], links: Iterable[WeightLink], expected: Mapping[str, Tensor]) -> Weights:
    """Return tensors under open_clip's names; an unmapped tensor's name is unchanged, and `conform` rejects it."""
    return from_open_clip(weights, [WeightLink(link.theirs, link.ours, link.transposed) for link in links], expected)


def from_open_clip(
    weights: Mapping[str, Tensor], links: Iterable[WeightLink], expected: Mapping[str, Tensor]
) -> Weights:
    """Return tensors under the other format's names; as `to_open_clip`."""
    unmapped = dict(weights)
    mapped: Weights = {}
    for link in links:
        sources, targets = link.ours, link.theirs
        if any(name not in unmapped for name in sources) or len({unmapped[name].shape[1:] for name in sources}) > 1:
            continue
        parts = [unmapped.pop(name) for name in sources]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        joined = joined.t() if link.transposed else joined
        rows = [len(expected[name]) for name in targets if name in expected and expected[name].ndim]
        if len(targets) == 1 or len(rows) < len(targets) or sum(rows) != len(joined):
            mapped[targets[0]] = joined
        else:
            mapped |= zip(targets, joined.split(rows), strict=True)
    return {name: _reshape(value, expected.get(name)) for name, value in (unmapped | mapped).items()}


def _reshape(value: Tensor, like: Tensor | None) -> Tensor:
    # Only axes of length 1 may differ.
    if like is not None and [size for size in value.shape if size != 1] == [size for size in like.shape if size != 1]:
        return value.reshape(like.shape)
    return value


def conform(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str | Path) -> Weights:
    """Return ``weights`` in the order, shapes and float type of an open_clip model, whose tensors are ``expected``.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or kind of numbers, or not finite.
    """
    require_finite(weights, str(where))
    shaped = {name: _reshape(value, expected.get(name)) for name, value in weights.items()}
    if mismatch := first_mismatch(shaped, expected):
        raise UserError(f"{where}: not of this architecture: it {mismatch}")
    taken = {name: shaped[name].detach().cpu() for name in expected if name in shaped}
    # A clone, because tensors that share memory cannot be saved.
    return {
        name: (value.float() if value.is_floating_point() else value).contiguous().clone()
        for name, value in taken.items()
    }
