"""Encoders that are timm models.

The hidden states of timm's ViTs are the outputs of their blocks, without class and register tokens. All other trunks,
convolutional and hierarchical ones, have one: the last feature map, before any pooling, projection or classifier.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError
from clips.lazy_import import without_wandb
from clips.model.initialization import resize_timm_pos_embed
from clips.model.loading import library_errors_as_user_errors
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower

# Prefixes of classifiers' weights; those of some files differ from the current model's.
_HEADS = ("classifier.", "head.fc.", "fc.", "head.l.", "head_dist.")
_POSITIONS = "trunk.pos_embed"
_DINO = re.compile(r"_dinov[23]")  # DINOv2 and DINOv3 have architectures of their own in timm


class TimmTower(VisionTower):
    """A timm model without its classifier; its only hidden state is the last feature map, (B, G², D)."""

    class_token = False
    default_layer = -1
    depth = 0

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def states(self, pixels: Tensor, deepest: int = 0) -> Iterator[Tensor]:
        """Yield the last feature map as tokens, row by row."""
        features = self.trunk.forward_features(pixels)
        if features.ndim == 3:
            yield features[:, getattr(self.trunk, "num_prefix_tokens", 0) :]
        elif getattr(self.trunk, "output_fmt", "NCHW") == "NHWC":
            yield features.flatten(1, 2)
        else:
            yield features.flatten(2).transpose(1, 2).contiguous()


class TimmVit(VisionTower):
    """timm's ``VisionTransformer`` or ``Eva``: hidden state i is the output of block i, each (B, G², D).

    The last one is timm's last feature map, after the final norm if there is one.
    """

    class_token = False
    default_layer = -2
    final_norm = True

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.depth = len(trunk.blocks)
        if _DINO.search(getattr(trunk, "default_cfg", {}).get("architecture", "")):
            self.default_layer = -1  # see transformers_source._normalized

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the embedded patches, then each block's output."""
        embedded: list[Tensor] = []
        hook = self.trunk.blocks[0].register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
        self.trunk.set_grad_checkpointing(self.recompute and torch.is_grad_enabled())
        blocks = list(range(max(1, deepest)))  # timm computes at least one
        try:
            last, outputs = self.trunk.forward_intermediates(
                pixels, indices=blocks, norm=False, stop_early=True, output_fmt="NLC"
            )
        finally:
            hook.remove()
        prefix = self.trunk.num_prefix_tokens
        if deepest == self.depth:
            outputs[-1] = last[:, prefix:]
        yield from [embedded[0][:, prefix:], *outputs][: deepest + 1]


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the timm trunk ``name``."""
    with without_wandb():
        from timm.models.eva import Eva
        from timm.models.naflexvit import NaFlexVit
        from timm.models.vision_transformer import VisionTransformer

    trunk = _build_trunk(architecture)
    return TimmVit(trunk) if isinstance(trunk, VisionTransformer | Eva | NaFlexVit) else TimmTower(trunk)


def _build_trunk(architecture: Mapping[str, Any]) -> Any:
    name = architecture["name"]
    options = {"img_size": architecture["image_size"]} if architecture.get("fixed_size") else {}
    return _timm(name).create_model(name, pretrained=False, num_classes=0, **options)


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read ``NAME``, ``NAME@weights.safetensors`` or ``NAME@random``.

    Raises:
        UserError: timm has no such model; the file is missing or of another architecture.
    """
    name, _, origin = reference.partition("@")
    pixels = preprocess_of(name, {}, image_size)
    if origin == "random":
        return make_encoder(name, None, pixels, where=None)
    if origin:
        from safetensors.torch import load_file

        if not Path(origin).is_file():
            raise UserError(f"{origin}: no such file (expected safetensors weights, or @random)")
        with library_errors_as_user_errors(f"encoder: {origin} is not a readable safetensors file"):
            stored = load_file(origin)
        return make_encoder(name, stored, pixels, where=origin)
    from huggingface_hub import snapshot_download

    repo, _, revision = (_timm(name).get_pretrained_cfg(name).hf_hub_id or "").partition("@")
    try:
        if repo:  # fails at once without a network or a copy; timm's own request is repeated for a minute
            snapshot_download(repo, revision=revision or None, allow_patterns=[])  # no files: timm loads what it needs
        weights = _timm(name).create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"encoder: no pretrained weights for timm:{name} ({reason}); "
            f"try timm:{name}@FILE, or timm:{name}@random for an untrained encoder"
        ) from None
    return make_encoder(name, weights, pixels, where=None)


def preprocess_of(name: str, stated: Mapping[str, Any], image_size: int | None) -> ImagePreprocess:
    """The preprocessing of timm model ``name``; ``stated`` replaces entries of timm's config.

    Raises:
        UserError: timm has no such model.
    """
    settings = {**_timm(name).get_pretrained_cfg(name).to_dict(), **stated}
    return ImagePreprocess(
        size=settings["input_size"][-1] if image_size is None else image_size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation="bicubic" if settings["interpolation"] == "bicubic" else "bilinear",
    )


def make_encoder(
    name: str, weights: Mapping[str, Tensor] | None, pixels: ImagePreprocess, *, where: str | None
) -> VisionEncoder:
    """The encoder for timm model ``name``; classifier weights among ``weights`` are dropped."""
    settings = _timm(name).get_pretrained_cfg(name)
    fixed = bool(settings.fixed_input_size)
    architecture = {"name": name, "image_size": pixels.size, "fixed_size": fixed}
    own = None
    if weights is not None:
        classifiers = settings.classifier or ()
        classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
        heads = (*_HEADS, *(f"{classifier}." for classifier in classifiers))
        own = {f"trunk.{key}": value for key, value in weights.items() if not key.startswith(heads)}
        if fixed and _POSITIONS in own:
            what = f"image_size: {where or f'timm:{name}'} does not support {pixels.size} px"
            with library_errors_as_user_errors(what), torch.device("meta"):  # of which the number of positions is read
                trunk = _build_trunk(architecture)
            own[_POSITIONS] = resize_timm_pos_embed(own[_POSITIONS], trunk)
    return VisionEncoder(source="timm", architecture=architecture, weights=own, pixels=pixels, parent=where)


def _timm(name: str) -> Any:
    """The library.

    Raises:
        UserError: it has no model ``name``.
    """
    with without_wandb():
        import timm
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"encoder: timm has no model '{name}'{hint}")
    return timm
