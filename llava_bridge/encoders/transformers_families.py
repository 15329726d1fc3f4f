"""transformers' vision models by type: what differs between them, as one table."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError

_TABLE = "embeddings.position_embedding.weight"
_VISUAL, _VISION_TOWER = r"^(model\.)?visual\.", r"^(model\.)?vision_tower\."
_QWEN_SIZE = 448


def _class_token(config: Any) -> int:
    return 1


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


def _patch_side(config: Any) -> int:
    return square_side(config.patch_size, "patch_size")


def _merged_side(config: Any) -> int:
    return _patch_side(config) * int(config.spatial_merge_size)


def _forward_pixels(model: Any, pixels: Tensor) -> Sequence[Tensor]:
    return model(pixels, output_hidden_states=True).hidden_states


def _forward_patches(model: Any, pixels: Tensor) -> Sequence[Tensor]:
    """Call SigLIP 2 NaFlex with squares; their grids stay on the CPU, where transformers reads them."""
    side = model.config.patch_size
    cells = pixels.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    grids = torch.tensor([[cells.shape[2], cells.shape[4]]] * len(pixels), device="cpu")
    patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return model(patches, None, grids, output_hidden_states=True).hidden_states


def _forward_blocks(model: Any, pixels: Tensor) -> Sequence[Tensor]:
    """Call a tower of Qwen-VL with its patches in blocks of merged ones; return its states row by row.

    Grid sizes and sequence lengths stay on the CPU, so no layer waits for the device to read them.
    """
    vision_utils = importlib.import_module("transformers.vision_utils")
    config = model.config
    side, merge, batch = config.patch_size, config.spatial_merge_size, len(pixels)
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    grid = (rows // merge, merge, columns // merge, merge)
    patches = pixels.reshape(batch, -1, *grid[:2], side, *grid[2:], side).permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = patches.unsqueeze(6).expand(*[-1] * 6, config.temporal_patch_size, -1, -1)  # an image is a still video
    with torch.device("cpu"):
        shapes = torch.tensor([[1, rows, columns]] * batch)
        known = {"position_ids": vision_utils.get_vision_position_ids(shapes, merge)}
        order = None
        if hasattr(config, "window_size"):  # Qwen2.5-VL orders blocks by windows of attention
            order, lengths = vision_utils.get_vision_window_index(shapes, merge, config.window_size, side)
            known |= {"window_index": order, "cu_window_seqlens": lengths}
        if hasattr(config, "num_position_embeddings"):  # Qwen3-VL
            known["interp_indices"], known["interp_weights"] = (
                vision_utils.get_vision_interpolation_indices_and_weights(
                    shapes, model.num_grid_per_side, model.interpolation_mode, model.interpolation_align_corners, merge
                )
            )
    known |= {name: value.to(pixels.device) for name, value in known.items() if name != "cu_window_seqlens"}
    states = model(frames.reshape(batch * rows * columns, -1), shapes, output_hidden_states=True, **known).hidden_states
    return [_row_by_row(state, order, (batch, grid[0], grid[2], merge, merge)) for state in states]


def _row_by_row(state: Tensor, order: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Return tokens (B · N, D) in blocks of ``shape``, permuted by ``order``, as rows of the grid, (B, N, D)."""
    blocks = state.unflatten(0, (-1, shape[-1] ** 2))
    if order is not None:
        blocks = blocks[order.argsort().to(state.device)]
    return blocks.reshape(*shape, -1).transpose(2, 3).flatten(1, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A type of vision model.

    Args:
        model: the class in transformers, by its path.
        prefix: number of tokens before those of the patches, by its config; the first is the class token.
        positions: name of the learned positions, if another image size needs interpolation; None if the model itself
            interpolates.
        forward: its hidden states from pixels (B, 3, S, S), each (B, prefix + G², D), patches row by row.
        in_hf_llava: whether transformers' own LLaVA supports the unmodified model.
        default_layer: the hidden state that LLaVAs read by default.
        final_norm: path of the norm through which the last hidden state passes, as its authors read it; None if they
            read the last layer's output itself, or LLaVAs an earlier one.
        size_step: the image size must be a multiple of it, by its config.
        image_size: the default image size of a model that has none of its own.
        prefix_in_vlm: prefix of its weights in a vision-language model, as a pattern, if transformers does not know it.
    """

    model: str
    prefix: Callable[[Any], int] = lambda config: 0
    positions: str | None = None
    forward: Callable[[Any, Tensor], Sequence[Tensor]] = _forward_pixels
    in_hf_llava: bool = False
    default_layer: int = -2
    final_norm: str | None = None
    size_step: Callable[[Any], int] = _patch_side
    image_size: int | None = None
    prefix_in_vlm: str | None = None

    def model_class(self) -> Any:
        """Return the class. Raises UserError if the installed transformers lacks it."""
        module, _, name = f"transformers.{self.model}".rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            version = importlib.import_module("transformers").__version__
            raise UserError(f"encoder: transformers {version} has no {name}; expected a later version") from None


def _normalized(model: str, final_norm: str = "layernorm", **fields: Any) -> ModelFamily:
    """A model whose authors read the patch tokens of the last layer behind its norm.

    Before the norm a few channels dwarf the others, and a released policy that reads DINOv3's tokens there solves 60 %
    of its tasks instead of 97 (github.com/H-EmbodVis/TurboVLA, pull request 6). The authors' code:
    ``x_norm_patchtokens`` of DINOv2 and DINOv3 (``forward_features``), AIMv2's ``post_trunk_norm``; of the others
    transformers' own ``last_hidden_state``.
    """
    return ModelFamily(model=model, default_layer=-1, final_norm=final_norm, **fields)


def _qwen(model: str, final_norm: str) -> ModelFamily:
    """A tower whose states are those of the blocks; only the norm of its merger is used.

    That norm acts on each token before neighbors are merged (``PatchMerger`` in transformers' modeling files).
    """
    return ModelFamily(
        model=model,
        forward=_forward_blocks,
        default_layer=-1,
        final_norm=final_norm,
        size_step=_merged_side,
        image_size=_QWEN_SIZE,
        prefix_in_vlm=_VISUAL,
    )


FAMILIES: dict[str, ModelFamily] = {
    "clip_vision_model": ModelFamily(model="CLIPVisionModel", prefix=_class_token, positions=_TABLE, in_hf_llava=True),
    "metaclip_2_vision_model": ModelFamily(model="MetaClip2VisionModel", prefix=_class_token, positions=_TABLE),
    "mlcd_vision_model": ModelFamily(model="MLCDVisionModel", prefix=_class_token, in_hf_llava=True),
    "siglip_vision_model": ModelFamily(model="SiglipVisionModel", positions=_TABLE, in_hf_llava=True),
    "siglip2_vision_model": ModelFamily(model="Siglip2VisionModel", forward=_forward_patches),
    "aimv2_vision_model": _normalized("Aimv2VisionModel", "rms_norm", positions=_TABLE, in_hf_llava=True),
    "vit": _normalized("ViTModel", prefix=_class_token, positions="embeddings.position_embeddings"),
    "ijepa": _normalized("IJepaModel", positions="embeddings.position_embeddings"),
    "dinov2": _normalized("Dinov2Model", prefix=_class_token, in_hf_llava=True),
    "dinov2_with_registers": _normalized("Dinov2WithRegistersModel", prefix=_registers),
    "dinov3_vit": _normalized("DINOv3ViTModel", "norm", prefix=_registers),
    "pixio": _normalized("PixioModel", prefix=lambda config: int(config.n_cls_tokens)),
    "radio": ModelFamily(
        model="RadioModel", prefix=lambda config: int(config.num_summary_tokens), default_layer=-1
    ),  # no norm after the last layer: its output is RADIO's features
    "tipsv2_vision_model": _normalized("Tipsv2VisionModel", prefix=_registers),
    "internvl_vision": ModelFamily(
        model="InternVLVisionModel", prefix=_class_token, default_layer=-1, prefix_in_vlm=_VISION_TOWER
    ),
    "qwen2_vl_vision": _qwen("models.qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel", "merger.ln_q"),
    "qwen2_5_vl_vision": _qwen(
        "models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel", "merger.ln_q"
    ),
    "qwen3_vl_vision": _qwen("Qwen3VLVisionModel", "merger.norm"),
}
"""``model_type`` of the vision config → its model."""


def square_side(value: Any, what: str) -> int:
    """Return the side of a square that a config states as a number or as two equal ones.

    Raises:
        UserError: two different numbers.
    """
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise UserError(f"encoder: expected a square {what}, got {value}")
    return int(sides.pop())
