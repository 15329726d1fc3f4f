"""Image and text towers: an open_clip model from an architecture's name, with the CLIPS conventions.

An architecture is a file of ``model_configs/`` (open_clip's JSON format) or any of open_clip's own names. Either
way the text side gets what the CLIPS tokenisation needs: its vocabulary, attention without a causal mask, the
feature at the last position, where the class token stands ([C] of the method).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clips.errors import UserError, reason_of, suggest
from clips.lengths import groups_by_length
from clips.tokenizer import EOS, text_config
from clips.trunk_cache import keep_outputs

Towers = Any  # an open_clip model: CLIP or CustomTextCLIP

CONFIGS = Path(__file__).parent / "model_configs"
_TEXT_CONVENTIONS = {
    "proj_bias": False,
    "act_kwargs": {"approximate": "tanh"},
    "norm_kwargs": {"eps": 1e-6},
}
_TEXT_ATTENTION: dict[str, dict[str, Any]] = {
    "all": {"no_causal_mask": True, "pool_type": "last"},
    "causal": {"no_causal_mask": False, "pool_type": "eos", "eos_id": EOS},
}
_CLIPS_PREPROCESS = {
    "mode": "RGB",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "fill_color": 0,
}
_CLASSIFIERS = ("head.fc.", "head.", "classifier.", "fc.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The towers.

    Args:
        architecture: a CLIPS architecture, as released (clips-ti-16, clips-ti-8, clips-s-16, clips-s-8, clips-b-16,
            clips-b-8, clips-l-14, clips-so400m-14, clips-h-14) or small (clips-tiny, clips-rn-tiny, clips-tinyvit,
            clips-tinyvit-tiny), or an open_clip model name. The batch norms of a ResNet (clips-rn-tiny, RN50) see the
            samples of their own process only, as in open_clip.
        context_length: tokens of a text, as the architecture says if not given.
        image_size: pixels of a side, as the architecture says if not given.
        pretrained_trunk: a safetensors file of timm weights for the image tower's trunk, where it is a timm model.
        pretrained: an encoder directory (or ``hf-hub:NAME``) of the same architecture, whose weights training begins
            with; positions are interpolated to other sizes and lengths, a captioner of the same shape comes along.
        text_positions: how its text positions are interpolated: linear, or long_clip, which keeps the first 20 and
            stretches the rest, as Long-CLIP does for whole long captions.
        text_attention: all (every token of a text sees all others, padding too, and the class token's place is the
            feature, as CLIPS) or causal (a token sees those before it, and the end token's place is the feature, as
            CLIP: training leaves the padding out, which is faster with short captions and gives the same).
        patch_dropout: share of the picture's patches that a ViT leaves out in training, as FLIP does.
        lock_image: freeze the image tower, as LiT does.
        unlocked_image_groups: the last so many groups of its layers stay trainable.
        keep_trunk_outputs: remember, in memory and in the user's cache on disk, what a frozen timm trunk makes of each
            picture, for this and later trainings; for small data sets, without crops and flips.
        lock_text: freeze the text tower.
        unlocked_text_groups: the last so many groups of its layers stay trainable.
    """

    architecture: str = "clips-tiny"
    context_length: int | None = None
    image_size: int | None = None
    pretrained_trunk: str | None = None
    pretrained: str | None = None
    text_positions: Literal["linear", "long_clip"] = "linear"
    text_attention: Literal["all", "causal"] = "all"
    patch_dropout: float = 0.0
    lock_image: bool = False
    unlocked_image_groups: int = 0
    keep_trunk_outputs: bool = False
    lock_text: bool = False
    unlocked_text_groups: int = 0

    def __post_init__(self) -> None:
        if self.pretrained and self.pretrained_trunk:
            raise UserError("model.pretrained_trunk: expected none beside model.pretrained, which has its own trunk")
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"model.patch_dropout: expected a share from 0 to below 1, got {self.patch_dropout}")
        for side in ("image", "text"):
            name, groups = f"model.unlocked_{side}_groups", getattr(self, f"unlocked_{side}_groups")
            if groups < 0 or (groups and not getattr(self, f"lock_{side}")):
                raise UserError(f"{name}: expected 0, or more with model.lock_{side}, got {groups}")
        if self.keep_trunk_outputs and (not self.lock_image or self.unlocked_image_groups):
            raise UserError("model.keep_trunk_outputs: expected model.lock_image beside it, and no unlocked groups")
        if self.context_length is not None and self.context_length < 4:
            raise UserError(f"model.context_length: expected at least 4, got {self.context_length}")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"model.image_size: expected a number of pixels, got {self.image_size}")


def architectures() -> list[str]:
    """Names of the architectures that ship with this package."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def model_cfg(config: ModelConfig) -> dict[str, Any]:
    """The open_clip ``model_cfg`` of ``config``: what ``open_clip_config.json`` holds.

    Raises:
        UserError: the architecture is unknown, or its text tower cannot read the CLIPS tokens.
    """
    cfg = _named(config.architecture)
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    if "hf_model_name" in text or "multimodal_cfg" in cfg:
        raise UserError(
            f"model.architecture: expected a text tower trained from scratch, but '{config.architecture}' "
            "brings its own text model and tokens"
        )
    own = config.architecture in architectures()
    length = config.context_length or (text["context_length"] if own else text_config()["context_length"])
    kept = {key: text[key] for key in ("width", "heads", "layers", "mlp_ratio", "ls_init_value") if key in text}
    if config.image_size is not None:
        vision["image_size"] = config.image_size
    fixed = _timm_cfg(vision["timm_model_name"]) if vision.get("timm_model_name") else None
    if fixed is not None and fixed.fixed_input_size and fixed.input_size[-1] != vision["image_size"]:
        raise UserError(f"model.image_size: expected {fixed.input_size[-1]}, which this trunk is fixed to")
    if config.patch_dropout:
        if fixed is not None or isinstance(vision.get("layers"), list):
            raise UserError("model.patch_dropout: expected a ViT of open_clip's own")
        vision["patch_dropout"] = config.patch_dropout
    patch = vision.get("patch_size")
    if isinstance(patch, int) and vision["image_size"] % patch:
        raise UserError(f"model.image_size: expected a multiple of the patch size {patch}, got {vision['image_size']}")
    return {
        "embed_dim": cfg["embed_dim"],
        "vision_cfg": vision,
        "text_cfg": kept | text_config(length) | _TEXT_CONVENTIONS | _TEXT_ATTENTION[config.text_attention],
        "nonscalar_logit_scale": True,  # [C]; and DeepSpeed cannot broadcast a 0-dim parameter
    }


def preprocess_cfg(cfg: dict[str, Any]) -> dict[str, Any]:
    """The open_clip ``preprocess_cfg`` for a ``model_cfg``: squash to the square, the tower's own mean and std."""
    vision = cfg["vision_cfg"]
    size = vision.get("image_size", 224)
    chosen = {"size": [size, size] if isinstance(size, int) else list(size)} | _CLIPS_PREPROCESS
    if vision.get("timm_model_name"):
        found = _timm_cfg(vision["timm_model_name"])
        if found is not None:
            chosen |= {"mean": list(found.mean), "std": list(found.std), "interpolation": found.interpolation}
    return chosen


def build_towers(cfg: dict[str, Any]) -> Towers:
    """The open_clip model of a ``model_cfg``, randomly initialised, ``logit_scale`` at ln(1/0.07)."""
    import open_clip
    from open_clip.model import set_model_preprocess_cfg

    options = {key: value for key, value in cfg.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP
    try:
        towers = kind(**options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"model.architecture: open_clip cannot build it ({reason_of(error)})") from None
    set_model_preprocess_cfg(towers, preprocess_cfg(cfg))
    _try_picture(towers, preprocess_cfg(cfg)["size"])
    return towers


@torch.no_grad()
def _try_picture(towers: Towers, size: list[int]) -> None:
    """Refuse a picture side that the image tower's strides leave nothing of, or other than its weights expect."""
    try:
        encode_image(towers.eval(), torch.zeros(1, 3, *size, device=next(towers.parameters()).device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"model.image_size: {size[0]} does not fit this image tower ({reason_of(error)})") from None
    finally:
        towers.train()


def load_trunk(towers: Towers, path: str | Path) -> None:
    """Load timm weights (safetensors, any float type) into the trunk; a classifier in them is left out.

    Raises:
        UserError: no timm trunk, no such file, or names or shapes that do not match.
    """
    trunk = getattr(towers.visual, "trunk", None)
    if trunk is None:
        raise UserError("model.pretrained_trunk: expected an architecture whose image tower is a timm model")
    weights = _read_safetensors(Path(path))
    wanted = trunk.state_dict()
    extra = [name for name in weights if name not in wanted and not name.startswith(_CLASSIFIERS)]
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    unlike = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    for problem, names in (("lacks", missing), ("has the unknown", extra), ("has another shape of", unlike)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"model.pretrained_trunk: {path} {problem} {names[0]}{more}; expected weights of this trunk"
            )
    trunk.load_state_dict({name: value for name, value in weights.items() if name in wanted}, strict=False)


def lock(towers: Towers, config: ModelConfig) -> None:
    """Freeze what ``config`` wants frozen, by open_clip's own groups of layers.

    Raises:
        UserError: this tower cannot be frozen in part.
    """
    try:
        if config.lock_image:
            towers.lock_image_tower(unlocked_groups=config.unlocked_image_groups)
        if config.lock_text:
            towers.lock_text_tower(unlocked_layers=config.unlocked_text_groups)
    except (AssertionError, IndexError) as error:
        raise UserError(f"model.unlocked_image_groups: this tower cannot be frozen in part ({error})") from None
    if config.keep_trunk_outputs:
        if not hasattr(towers.visual, "trunk"):
            raise UserError("model.keep_trunk_outputs: expected an architecture whose image tower is a timm model")
        keep_outputs(towers.visual.trunk)


def encode_image(towers: Towers, image: Tensor) -> tuple[Tensor, Tensor]:
    """Image features (B, E), not normalised, and the last layer's patch tokens (B, I, width), class token left out.

    Args:
        towers: an open_clip model.
        image: (B, 3, H, W), normalised pixels.
    """
    visual = towers.visual
    if hasattr(visual, "trunk"):
        features = visual.trunk.forward_features(image)
        return visual.head(visual.trunk.forward_head(features)), _flattened(features, visual.trunk)
    if hasattr(visual, "attnpool"):  # CLIP's ResNet
        outputs = visual.forward_intermediates(image, indices=1)
        return outputs["image_features"], outputs["image_intermediates"][0].flatten(2).transpose(1, 2)
    outputs = visual.forward_intermediates(image, indices=1, output_fmt="NLC")
    return outputs["image_features"], outputs["image_intermediates"][0]


def encode_text(towers: Towers, text: Tensor) -> tuple[Tensor, Tensor]:
    """Text features (B, E), not normalised, and the last layer's tokens (B, L - 1, width), class token left out.

    Args:
        towers: an open_clip model.
        text: (B, L) token rows whose last token is the class token.
    """
    outputs = towers.forward_intermediates(text=text, text_indices=1, normalize=False)
    return outputs["text_features"], outputs["text_intermediates"][0][:, :-1]


def text_features(towers: Towers, text: Tensor) -> Tensor:
    """Text features (B, E) as `encode_text` gives, without what only its tokens need.

    With a causal mask nothing behind a text's end token counts: rows are cut there, in groups of like length. Without
    one, the last block is computed at the class token alone.

    Args:
        towers: an open_clip model.
        text: (B, L) token rows whose last token is the class token.
    """
    tower = towers.text if hasattr(towers, "text") else towers
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return encode_text(towers, text)[0]
    pool = tower.pool_type if hasattr(towers, "text") else towers.text_pool_type
    if tower.attn_mask is not None and pool == "eos":
        pooled = _at_end_tokens(tower, text)
    elif tower.attn_mask is None and pool == "last" and _is_plain(tower.transformer.resblocks[-1]):
        pooled = _at_last_token(tower, text)
    else:
        return encode_text(towers, text)[0]
    pooled, projection = tower.ln_final(pooled), tower.text_projection
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _at_end_tokens(tower: Any, text: Tensor) -> Tensor:
    """The last layer (B, width) at each text's end token, computed no further than there."""
    ends = (text == EOS).int().argmax(dim=1)
    order, sizes, longest = groups_by_length(ends + 1)
    found = []
    for rows, end, length in zip(text[order].split(sizes), ends[order].split(sizes), longest, strict=True):
        x = tower.token_embedding(rows[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        found.append(x[torch.arange(len(end), device=end.device), end])
    return torch.cat(found)[order.argsort()]


def _at_last_token(tower: Any, text: Tensor) -> Tensor:
    """The last layer (B, width) at the last place; its block needs keys and values of the others, no more."""
    *_, block = tower.transformer.resblocks
    x = tower.token_embedding(text) + tower.positional_embedding
    if tower.transformer.layers > 1:
        before = [tower.transformer.layers - 2]
        x, _ = tower.transformer.forward_intermediates(x, indices=before, stop_early=True)
    y, last = block.ln_1(x), x[:, -1:]
    last = last + block.ls_1(block.attention(y[:, -1:], y, y))
    return (last + block.ls_2(block.mlp(block.ln_2(last))))[:, 0]


def _is_plain(block: Any) -> bool:
    """Whether a block is open_clip's default one as it stands, not a variant nor one that a wrapper has changed."""
    from open_clip.transformer import ResidualAttentionBlock

    return type(block) is ResidualAttentionBlock


def token_widths(towers: Towers) -> tuple[int, int]:
    """Channels of the image tokens and of the text tokens that the ``encode_`` functions return."""
    visual = towers.visual
    if hasattr(visual, "trunk"):
        image = visual.trunk.num_features
    elif hasattr(visual, "attnpool"):
        image = visual.layer4[-1].bn3.num_features
    else:
        image = visual.transformer.width
    text = towers.text if hasattr(towers, "text") else towers
    return image, text.transformer.width


def authors_positions(side: int, width: int) -> Tensor:
    """(1 + side², width) fixed positions of the released towers: sines and cosines, zeros for the class token.

    Source: [C], ``posemb_sincos_2d``, after MoCo v3. open_clip's own (``sin_cos_2d``) have slightly other frequencies.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x, y = (place.flatten()[:, None] * frequencies for place in (columns, rows))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([table.new_zeros(1, width), table]).float()


def _flattened(features: Tensor, trunk: Any) -> Tensor:
    if features.ndim == 3:
        return features[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _named(architecture: str) -> dict[str, Any]:
    path = CONFIGS / f"{architecture}.json"
    if architecture in architectures():
        return json.loads(path.read_text(encoding="utf-8"))
    import open_clip

    cfg = open_clip.get_model_config(architecture)
    if cfg is None:
        raise suggest(architecture, [*architectures(), *open_clip.list_models()], "model.architecture")
    return cfg


def _timm_cfg(name: str) -> Any | None:
    import timm

    return timm.get_pretrained_cfg(name)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"model.pretrained_trunk: {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"model.pretrained_trunk: {path}: not a safetensors file ({error})") from None
