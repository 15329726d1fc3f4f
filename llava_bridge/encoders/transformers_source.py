"""Encoders that are transformers vision models, also the image towers of CLIPs, SigLIPs and vision-language models.

What differs between their types is an entry of :data:`FAMILIES`. Models that transformers wraps from timm are timm's.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError
from clips.interchange.hf_files import read_normalization
from clips.model.initialization import resize_pos_embed
from clips.model.loading import library_errors_as_user_errors, load_pretrained, read_safetensors
from llava_bridge.encoders import require_transformers_dir, timm_source
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's constants
_TABLE = "embeddings.position_embedding.weight"
_VISUAL, _VISION_TOWER = r"^(model\.)?visual\.", r"^(model\.)?vision_tower\."


def _class_token(config: Any) -> int:
    return 1


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


def _patch_side(config: Any) -> int:
    return square_side(config.patch_size, "patch_size")


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

    def row_by_row(state: Tensor) -> Tensor:  # (B · N, D) in permuted blocks to (B, N, D)
        cells = state.unflatten(0, (-1, merge**2))
        if order is not None:
            cells = cells[order.argsort().to(state.device)]
        return cells.reshape(batch, grid[0], grid[2], merge, merge, -1).transpose(2, 3).flatten(1, 4)

    return [row_by_row(state) for state in states]


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
        size_step: an image size other than the checkpoint's must be a multiple of it, by its config.
        image_size: the default image size of a model that has none of its own.
        prefix_in_vlm: prefix of its weights in a vision-language model, as a pattern, if transformers does not know it.
        arguments: of the class, besides the config.
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
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def model_class(self) -> Any:
        """The class.

        Raises:
            UserError: the installed transformers lacks it.
        """
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
        size_step=lambda config: _patch_side(config) * int(config.spatial_merge_size),
        image_size=448,
        prefix_in_vlm=_VISUAL,
    )


FAMILIES: dict[str, ModelFamily] = {
    "clip_vision_model": ModelFamily(model="CLIPVisionModel", prefix=_class_token, positions=_TABLE, in_hf_llava=True),
    "metaclip_2_vision_model": ModelFamily(model="MetaClip2VisionModel", prefix=_class_token, positions=_TABLE),
    "mlcd_vision_model": ModelFamily(model="MLCDVisionModel", prefix=_class_token, in_hf_llava=True),
    "siglip_vision_model": ModelFamily(model="SiglipVisionModel", positions=_TABLE, in_hf_llava=True),
    "siglip2_vision_model": ModelFamily(model="Siglip2VisionModel", forward=_forward_patches),
    "aimv2_vision_model": _normalized("Aimv2VisionModel", "rms_norm", positions=_TABLE, in_hf_llava=True),
    "vit": _normalized(
        "ViTModel",
        prefix=_class_token,
        positions="embeddings.position_embeddings",
        arguments={"add_pooling_layer": False},  # classifiers are saved without, and it is not read
    ),
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
    """The side of a square that a config states as a number or as two equal ones.

    Raises:
        UserError: two different numbers.
    """
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise UserError(f"encoder: expected a square {what}, got {value}")
    return int(sides.pop())


class TransformersTower(VisionTower):
    """A transformers vision model with its own hidden states; of several class and register tokens the first is kept.

    ``architecture`` has ``config``, a vision config or that of a model with one, and ``final_norm``, whether the last
    hidden state passes through the family's final norm. LLaVAs of transformers lack the latter: they read the last
    layer's output.
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        config = vision_config(architecture["config"])
        self.family = FAMILIES[config.model_type]
        self.prefix = self.family.prefix(config)
        self.class_token = self.prefix > 0
        self.default_layer = self.family.default_layer
        self.final_norm = architecture.get("final_norm", False)
        self.depth = getattr(config, "num_hidden_layers", None) or config.depth  # Qwen's in transformers 5.17
        self.model = self.family.model_class()(config, **self.family.arguments)

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the embedded tokens, then each layer's output, (B, G² + 1, D); without class token (B, G², D).

        transformers always computes all layers.
        """
        for index, state in enumerate(self.family.forward(self.model, pixels)[: deepest + 1]):
            if index == self.depth and self.final_norm:
                state = self.model.get_submodule(self.family.final_norm)(state)
            yield state if self.prefix <= 1 else torch.cat([state[:, :1], state[:, self.prefix :]], dim=1)

    def hf_model(self) -> Any | None:
        """See :meth:`VisionTower.hf_model`."""
        return self.model if self.family.in_hf_llava else None


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the model of the stored vision config."""
    return TransformersTower(architecture)


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read a directory in the transformers format, or a model of the Hub by its repo id.

    Raises:
        UserError: it is missing, incomplete, or its type is not in :data:`FAMILIES`.
    """
    from transformers import AutoConfig

    from llava_bridge.model.modeling_llava import register

    register()  # the tower may be that of a LLaVA
    directory = require_transformers_dir(reference)
    with library_errors_as_user_errors(f"encoder: {reference}: expected a directory in the transformers format"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if config.model_type == "timm_wrapper":  # its config has timm's preprocessing
        if others := sorted((config.model_args or {}).keys() - {"img_size"}):  # maybe without effect on weights' shapes
            raise UserError(f"encoder: {reference}: config.json: model_args: expected img_size alone, got {others[0]}")
        path = directory / "model.safetensors"
        stored = read_safetensors(path, f"encoder: {path}")
        pixels = timm_source.preprocess_of(config.architecture, getattr(config, "pretrained_cfg", {}), image_size)
        own = {name.removeprefix("timm_model."): value for name, value in stored.items()}
        return timm_source.make_encoder(config.architecture, own, pixels, where=str(directory))
    config = getattr(config, "vision_config", config)
    check_model_type(config.model_type, f"encoder: {reference}")
    family = FAMILIES[config.model_type]
    options: dict[str, Any] = {"dtype": torch.float32, **family.arguments}
    if family.prefix_in_vlm is not None:
        options |= {"config": config, "key_mapping": {family.prefix_in_vlm: ""}}
    model = load_pretrained(family.model_class(), directory, f"encoder: {reference}", **options)
    pixels = own_pixels = _pixels(directory, config)
    if image_size is not None:
        pixels = dataclasses.replace(pixels, size=image_size)
    # A convolution drops what is left beyond the last patch: 6 pixels of SigLIP's 384 with patches of 14.
    drops_rest = family.forward is _forward_pixels and pixels.size == own_pixels.size
    if pixels.size % (step := family.size_step(config)) and not drops_rest:
        raise UserError(f"image_size: expected a multiple of {step}, the patch size of {reference}, got {pixels.size}")
    weights = model.state_dict()
    if family.positions in weights:
        config = type(config).from_dict({**config.to_dict(), "image_size": pixels.size})
        patches = (pixels.size // step) ** 2
        table = weights[family.positions]
        weights[family.positions] = resize_pos_embed(table, patches, family.prefix(config), antialias=False)
    return VisionEncoder(
        source="transformers",
        architecture={"config": config.to_dict(), "final_norm": family.final_norm is not None},
        weights={f"model.{name}": value for name, value in weights.items()},
        pixels=pixels,
        parent=str(directory),
    )


def vision_config(values: Mapping[str, Any]) -> Any:
    """transformers' config of a vision model from its values, or from those of a model with one.

    Raises:
        UserError: its type is not in :data:`FAMILIES`, or its values do not fit the type.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    values = dict(values)
    model_type = values.pop("model_type", "model without a model_type")
    if model_type not in CONFIG_MAPPING:
        check_model_type(model_type, "encoder")
    with library_errors_as_user_errors(f"encoder: expected the config of a {model_type}"):
        config = AutoConfig.for_model(model_type, **values)
    config = getattr(config, "vision_config", config)
    check_model_type(config.model_type, "encoder")
    return config


def check_model_type(model_type: str, what: str) -> None:
    """Raise UserError, which begins with ``what``, for a type that is not in :data:`FAMILIES`."""
    if model_type not in FAMILIES:
        raise UserError(f"{what} is a {model_type}; expected one of {', '.join(FAMILIES)}")


def _pixels(directory: Path, config: Any) -> ImagePreprocess:
    """The preprocessing of the checkpoint, with the image size after cropping."""
    from transformers import AutoImageProcessor

    with library_errors_as_user_errors(
        f"encoder: {directory}: expected a preprocessor_config.json that states how images are normalized"
    ):
        processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)
        # The processors of models without an image size state numbers of pixels.
        size = FAMILIES[config.model_type].image_size or image_size_of(processor)
        if not size and (stated := getattr(config, "image_size", None)) is not None:
            size = square_side(stated, "image_size")
        elif not size and hasattr(config, "num_patches"):  # SigLIP 2 NaFlex
            size = square_side(config.patch_size, "patch_size") * math.isqrt(config.num_patches)
        if size is None:
            raise UserError(f"image_size: expected a number of pixels, as {directory} states none")
        if (resample := int(processor.resample)) not in _RESAMPLE:
            expected = " or ".join(f"{number} ({name})" for number, name in _RESAMPLE.items())
            raise UserError(
                f"encoder: {directory}: preprocessor_config.json: resample: expected {expected}, got {resample}"
            )
        channels = read_normalization(processor.to_dict())
        return ImagePreprocess(
            size=size,
            mean=tuple(channels["mean"]),
            std=tuple(channels["std"]),
            interpolation=_RESAMPLE[resample],
        )


def image_size_of(processor: Any) -> int | None:
    """The size of the square that an image processor produces; None if it does not state one.

    Raises:
        UserError: it is not square.
    """
    crops = getattr(processor, "do_center_crop", True)  # None, as SigLIP's, does not
    size = (getattr(processor, "crop_size", None) if crops else None) or getattr(processor, "size", None)
    if size is None:
        return None
    sides = {key: value for key, value in dict(size).items() if value is not None}
    if sides.get("height") != sides.get("width"):
        raise UserError(f"expected square images, got {sides}")
    side = sides.get("height") or sides.get("shortest_edge")
    return None if side is None else int(side)
