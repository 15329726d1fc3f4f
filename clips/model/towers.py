"""Image and text towers: an open_clip model of a ``model_cfg``, its encoding functions, and its frozen parts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clips.errors import UserError, error_reason
from clips.lazy_import import without_wandb
from clips.model.architectures import ModelConfig, preprocess_cfg
from clips.model.compute import group_by_length, pack_attention
from clips.model.feature_cache import enable_trunk_cache
from clips.model.loading import first_mismatch, read_safetensors, require_finite

Towers = Any  # an open_clip model: CLIP or CustomTextCLIP; or an `ImageTower`


class ImageTower(nn.Module):
    """The image tower of an open_clip model that has no text tower: weights of the same names, no logit scale.

    Its pooling and projection are there for open_clip's layout, but neither trained nor used.

    Args:
        visual: open_clip's image tower.
    """

    logit_scale = logit_bias = None

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, image: Tensor) -> Tensor:
        """Return the mean (B, width) of the patch tokens of images (B, 3, H, W), not normalized."""
        return encode_image(self, image)[1].mean(dim=1)

    def lock_image_tower(self, unlocked_groups: int = 0) -> None:
        """Freeze the tower except for its last groups of layers, as open_clip's models do."""
        self.visual.lock(unlocked_groups=unlocked_groups)

    def freeze_unused(self, size: list[int]) -> None:
        """Freeze the parameters that the patch tokens do not depend on: pooling, last norm and projection."""
        trained = [value for value in self.parameters() if value.requires_grad]
        if not trained:
            return
        was_training, _ = self.training, self.eval()
        with torch.enable_grad():
            tokens = encode_image(self, torch.zeros(1, 3, *size, device=trained[0].device))[1]
            total = tokens.sum()
            frozen = [None] * len(trained)  # the tokens come from a frozen trunk
            gradients = torch.autograd.grad(total, trained, allow_unused=True) if total.requires_grad else frozen
        self.train(was_training)
        for value, gradient in zip(trained, gradients, strict=True):
            value.requires_grad_(gradient is not None)


def build_towers(cfg: dict[str, Any]) -> Towers:
    """Build the open_clip model of a ``model_cfg``, randomly initialized, ``logit_scale`` at ln(1/0.07).

    Without a ``text_cfg`` it is an `ImageTower`.
    """
    with without_wandb():
        import open_clip
        from open_clip.model import _build_vision_tower

    options = {key: value for key, value in cfg.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP
    try:
        if "text_cfg" not in cfg:
            towers = ImageTower(_build_vision_tower(cfg["embed_dim"], cfg["vision_cfg"], bool(cfg.get("quick_gelu"))))
        else:
            towers = kind(**options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"model.architecture: open_clip cannot build it ({error_reason(error)})") from None
    pack_attention(towers)
    size = preprocess_cfg(cfg)[
        "size"
    ]  # may be too small for the strides of the image tower, or not that of its weights
    try:
        with torch.no_grad():
            encode_image(towers.eval(), torch.zeros(1, 3, *size, device=next(towers.parameters()).device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"model.image_size: {size[0]} does not fit this image tower ({error_reason(error)})") from None
    finally:
        towers.train()
    return towers


def load_trunk(towers: Towers, path: str | Path) -> None:
    """Load timm weights (safetensors, any float type) into the trunk; a classifier in them is skipped.

    Raises:
        UserError: no timm trunk, no such file, or names or shapes that do not match.
    """
    trunk = getattr(towers.visual, "trunk", None)
    if trunk is None:
        raise UserError("model.pretrained_trunk: expected an architecture whose image tower is a timm model")
    own = trunk.state_dict()
    weights = {
        name: value
        for name, value in read_safetensors(Path(path), f"model.pretrained_trunk: {path}").items()
        if name in own or not name.startswith(("head.", "classifier.", "fc."))
    }
    if mismatch := first_mismatch(weights, own):
        raise UserError(f"model.pretrained_trunk: {path} {mismatch}; expected weights of this trunk")
    require_finite(weights, f"model.pretrained_trunk: {path}")
    trunk.load_state_dict(weights, strict=False)


def lock_towers(towers: Towers, config: ModelConfig) -> None:
    """Freeze the parts selected by ``config``, by open_clip's own groups of layers.

    Raises:
        UserError: this tower cannot be frozen in part.
    """
    try:
        if config.lock_image:
            with warnings.catch_warnings():  # open_clip imports timm's helpers by a name that timm has removed
                warnings.filterwarnings("ignore", message="Importing from timm", category=FutureWarning)
                towers.lock_image_tower(unlocked_groups=config.lock_image_unlocked_groups)
        if config.lock_text:
            if isinstance(towers, ImageTower):
                raise UserError("model.lock_text: expected false with a recipe that has no text tower")
            towers.lock_text_tower(unlocked_layers=config.lock_text_unlocked_layers)
    except (AssertionError, IndexError) as error:
        raise UserError(f"model.lock_image_unlocked_groups: this tower cannot be frozen in part ({error})") from None


def cache_features(towers: Towers, config: ModelConfig, preprocess: dict[str, Any]) -> None:
    """Cache the outputs of the frozen layers that ``config`` names.

    Raises:
        UserError: these layers cannot be cached.
    """
    if config.cache_trunk_features:
        if not hasattr(towers.visual, "trunk"):
            raise UserError("model.cache_trunk_features: expected an architecture whose image tower is a timm model")
        enable_trunk_cache(towers.visual.trunk, towers.visual.image_size, preprocess["mean"], preprocess["std"])


def encode_image(towers: Towers, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return image features (B, E), not normalized, and the last layer's patch tokens (B, I, width), no class token.

    ``image`` (B, 3, H, W) are normalized pixels, for a cached trunk also uint8.
    """
    visual = towers.visual
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        features = trunk.forward_features(image)
        if features.ndim == 3:
            tokens = features[:, getattr(trunk, "num_prefix_tokens", 0) :]
        elif getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            tokens = features.flatten(1, 2)
        else:
            tokens = features.flatten(2).transpose(1, 2)
        return visual.head(trunk.forward_head(features)), tokens
    if hasattr(visual, "attnpool"):  # CLIP's ResNet
        outputs = visual.forward_intermediates(image, indices=1)
        return outputs["image_features"], outputs["image_intermediates"][0].flatten(2).transpose(1, 2)
    outputs = visual.forward_intermediates(image, indices=1, output_fmt="NLC")
    return outputs["image_features"], outputs["image_intermediates"][0]


def encode_text(towers: Towers, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return text features (B, E), not normalized, and the last layer's tokens (B, L - 1, width), without class token.

    ``text`` (B, L) has the class token last, on any device.
    """
    tower = text_tower(towers)
    text = _to_device_of(tower, text)
    outputs = towers.forward_intermediates(text=text, text_indices=1, normalize=False)
    return outputs["text_features"], outputs["text_intermediates"][0][:, :-1]


def encode_text_features(towers: Towers, text: Tensor) -> Tensor:
    """Return text features (B, E) as `encode_text`, without the work that only its tokens need.

    With a causal mask nothing after a text's end token counts: sequences are truncated there, in groups of similar
    length. Without one, the last block is computed only at the class token. With ``text`` (B, L) on the CPU no length
    has to be read from the device.
    """
    tower = text_tower(towers)
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return encode_text(towers, text)[0]
    pool = text_pool_type(towers)
    if tower.attn_mask is not None and pool in ("eos", "argmax"):
        is_end = text if pool == "argmax" else torch.as_tensor(text == eot_token_id(towers)).int()
        pooled = _encode_up_to(tower, text, is_end.argmax(dim=1))
    elif tower.attn_mask is None and pool == "last" and is_unmodified(tower.transformer.resblocks[-1]):
        pooled = _encode_last_token(tower, text)
    else:
        return encode_text(towers, text)[0]
    pooled, projection = tower.ln_final(pooled), tower.text_projection
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def text_tower(towers: Towers) -> Any:
    """Return the module that holds the text tower's parts: its own, or the open_clip model itself."""
    return towers.text if hasattr(towers, "text") else towers


def text_pool_type(towers: Towers) -> str:
    """Return open_clip's name of the position of a text's feature (last, eos, argmax)."""
    return str(towers.text.pool_type if hasattr(towers, "text") else towers.text_pool_type)


def eot_token_id(towers: Towers) -> int | None:
    """Return the token at whose position a text's feature is; None for the last position."""
    pool = text_pool_type(towers)
    if pool == "argmax":  # OpenAI's end token is the largest
        return int(text_tower(towers).vocab_size) - 1
    return int(towers.text.eos_id if hasattr(towers, "text") else towers.text_eos_id) if pool == "eos" else None


def _to_device_of(tower: Any, value: Tensor) -> Tensor:
    return value.to(tower.positional_embedding.device, non_blocking=True)


def _encode_up_to(tower: Any, text: Tensor, ends: Tensor) -> Tensor:
    """Return the last layer (B, width) at the positions ``ends`` (B,), computed only up to there."""
    order, sizes, lengths = group_by_length(ends + 1, tower.positional_embedding.device, "texts")
    pooled = []
    for rows, end, length in zip(text[order].split(sizes), ends[order].split(sizes), lengths, strict=True):
        x = tower.token_embedding(_to_device_of(tower, rows[:, :length])) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        chosen = torch.arange(len(end), device=end.device) * length + end
        pooled.append(x.flatten(0, 1).index_select(0, _to_device_of(tower, chosen)))
    return torch.cat(pooled).index_select(0, _to_device_of(tower, order.argsort()))


def _encode_last_token(tower: Any, text: Tensor) -> Tensor:
    """Return the last layer (B, width) at the last position; its block needs only keys and values of the others."""
    *_, block = tower.transformer.resblocks
    x = tower.token_embedding(_to_device_of(tower, text)) + tower.positional_embedding
    if tower.transformer.layers > 1:
        before = [tower.transformer.layers - 2]
        x, _ = tower.transformer.forward_intermediates(x, indices=before, stop_early=True)
    y, last = block.ln_1(x), x[:, -1:]
    last = last + block.ls_1(block.attention(y[:, -1:], y, y))
    return (last + block.ls_2(block.mlp(block.ln_2(last))))[:, 0]


def is_unmodified(block: Any) -> bool:
    """Whether a block is neither a variant nor a wrapped one, whose parts may not be called on their own."""
    from open_clip.transformer import ResidualAttentionBlock

    return type(block) is ResidualAttentionBlock


def token_widths(towers: Towers) -> tuple[int, int]:
    """Return the channels of the image tokens and of the text tokens that the ``encode_`` functions return."""
    visual = towers.visual
    if hasattr(visual, "trunk"):
        image = visual.trunk.num_features
    elif hasattr(visual, "attnpool"):
        image = visual.layer4[-1].bn3.num_features
    else:
        image = visual.transformer.width
    return image, text_tower(towers).transformer.width
