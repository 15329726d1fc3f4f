"""Read the computation of an open_clip model from the model itself, to select an equivalent class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from clips.errors import UserError
from clips.interchange.hf_files import activation_name


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """The transformer of a tower.

    Args:
        width: of a token.
        layers: number of blocks.
        heads: number of attention heads.
        inner: width of the MLP's hidden layer.
        activation: its name in transformers.
        eps: of all layer norms.
    """

    width: int
    layers: int
    heads: int
    inner: int
    activation: str
    eps: float

    @property
    def hf_config(self) -> dict[str, Any]:
        """The entries of a config of transformers."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_act": self.activation,
            "layer_norm_eps": self.eps,
        }


def transformer_spec(tower: Any, modality: str, target: str) -> TransformerSpec:
    """Return the sizes of a tower's transformer.

    Args:
        tower: has ``transformer``.
        modality: image or text, for the message.
        target: the class to export to, for the message.

    Raises:
        UserError: blocks, activation or norms that only open_clip has.
    """
    from open_clip.transformer import ResidualAttentionBlock

    blocks = list(tower.transformer.resblocks)
    first = blocks[0]
    norms = {module.eps for module in tower.transformer.modules() if isinstance(module, nn.LayerNorm)}
    if not isinstance(first, ResidualAttentionBlock) or not isinstance(first.ls_1, nn.Identity):
        raise UserError(f"{target} does not support the blocks of this {modality} tower ({type(first).__name__})")
    activation = activation_name(first.mlp.gelu)
    if activation is None or len(norms) != 1:
        raise UserError(f"{target} does not support the blocks of this {modality} tower (activation or norms)")
    return TransformerSpec(
        width=tower.transformer.width,
        layers=len(blocks),
        heads=first.attn.num_heads,
        inner=first.mlp.c_fc.out_features,
        activation=activation,
        eps=norms.pop(),
    )


def reject_unsupported(target: str, problems: Iterable[tuple[bool, str]]) -> None:
    """Raise a UserError with the first of ``problems`` whose condition holds."""
    for unsupported, reason in problems:
        if unsupported:
            raise UserError(f"{target} {reason}")
