"""Read the computation of an open_clip model from the model itself, to select an equivalent class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from clips.errors import UserError
from clips.interchange.hf_files import activation_name

Tower = Any  # an open_clip VisionTransformer, TextTransformer, or the CLIP that holds the parts of a text transformer


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """The transformer of a tower.

    Args:
        width: of a token.
        layers: number of blocks.
        heads: number of attention heads.
        inner: width of the MLP's hidden layer.
        activation: transformers' name of it.
        eps: of every layer norm.
    """

    width: int
    layers: int
    heads: int
    inner: int
    activation: str
    eps: float


def transformer_spec(tower: Tower, side: str, wanted: str) -> TransformerSpec:
    """The blocks of a tower.

    Args:
        tower: has ``transformer``.
        side: image or text, for the message.
        wanted: the target, for the message.

    Raises:
        UserError: blocks, activation or norms that only open_clip has.
    """
    from open_clip.transformer import ResidualAttentionBlock

    blocks = list(tower.transformer.resblocks)
    first = blocks[0]
    norms = {module.eps for module in tower.transformer.modules() if isinstance(module, nn.LayerNorm)}
    if not isinstance(first, ResidualAttentionBlock) or not isinstance(first.ls_1, nn.Identity):
        raise UserError(f"{wanted} has no such blocks as this {side} tower's ({type(first).__name__})")
    activation = activation_name(first.mlp.gelu)
    if activation is None or len(norms) != 1:
        raise UserError(f"{wanted} has no such blocks as this {side} tower's (activation or norms)")
    return TransformerSpec(
        width=tower.transformer.width,
        layers=len(blocks),
        heads=first.attn.num_heads,
        inner=first.mlp.c_fc.out_features,
        activation=activation,
        eps=norms.pop(),
    )


def text_tower(model: Any) -> Tower:
    """Return the module that holds the text tower's parts."""
    return model.text if hasattr(model, "text") else model


def text_prefix(model: Any) -> str:
    """Return the prefix of the text tower's names in the state dict."""
    return "text." if hasattr(model, "text") else ""


def pool_type(model: Any) -> str:
    """Return the position of the text tower that gives the feature."""
    return model.text.pool_type if hasattr(model, "text") else model.text_pool_type


def norm_eps_matches(norm: nn.Module, blocks: TransformerSpec) -> bool:
    """Whether a tower's other norm has the epsilon of its blocks."""
    return isinstance(norm, nn.LayerNorm) and norm.eps == blocks.eps
