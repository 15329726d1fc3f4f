"""From a model's config to open_clip's configuration of its towers, the preprocessing of its images, its tokenizer.

tokenize = resolve_architecture(ModelConfig(architecture="imported/clip")).tokenizer
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from clips.errors import UserError, error_reason, unknown_name_error
from clips.lazy_import import without_wandb
from clips.model.tokenizer import (
    CONTEXT_LENGTH,
    EOS,
    ClipsTokenizer,
    OpenClipTokenizer,
    TextTokenizer,
    tokenizer_text_cfg,
)
from clips.model_refs import (
    HF_HUB_PREFIX,
    OPEN_CLIP_CONFIG,
    TIMM_PREFIX,
    is_config_file,
    read_encoder_config,
    require_encoder_config,
    resolve_encoder_dir,
    state_tokenizer,
)
from clips.ranges import FractionBelowOne, NonNegative, Positive
from clips.text_files import safe_json_loads

CONFIG_FIELD = "model.architecture"
OPENAI_VOCAB_SIZE = 49408
"""Of the vocabulary that ships with open_clip, and the size of a table of embeddings whose config states none."""
CONFIG_DIR = Path(__file__).parent / "configs"
_TEXT_CONVENTIONS = {"proj_bias": False, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
_TEXT_ATTENTION: dict[str, dict[str, Any]] = {
    "all": {"no_causal_mask": True, "pool_type": "last"},  # the last position is the class token's
    "causal": {"no_causal_mask": False, "pool_type": "eos", "eos_id": EOS},
}
NORMALIZATIONS: dict[str, tuple[list[float], list[float]]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "openai": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "identity": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}
"""Name → mean and standard deviation of an image's channels, pixels from 0 to 1. Source: open_clip's pretrained."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The towers.

    Args:
        architecture: a CLIPS architecture, as published (clips-ti-16, clips-ti-8, clips-s-16, clips-s-8, clips-b-16,
            clips-b-8, clips-l-14, clips-so400m-14, clips-h-14), of the paper's table (clips-l-16) or small (clips-tiny,
            clips-rn-tiny, clips-efficientnet, clips-tinyvit, clips-tinyvit-tiny), or an open_clip model name or a JSON
            file in the format of its model configs (``./mine.json``): its towers with the tokenizer of this method. Or
            ``timm:NAME``: a timm model, randomly initialized, with the text tower of clips-b-16. Or an encoder
            directory (or ``hf-hub:NAME``), whose towers are built unchanged, with its own tokenizer. The batch norms of
            a ResNet (clips-rn-tiny, RN50) use only the samples of their own process, as in open_clip.
        context_length: tokens of a text; the architecture's if not given.
        image_size: image size in pixels; the architecture's if not given.
        pretrained_trunk: a safetensors file of timm weights for the image tower's trunk, if it is a timm model.
        pretrained: an encoder directory (or ``hf-hub:NAME``) of the same architecture, with the initial weights;
            positions are interpolated to other sizes and lengths, a captioner of the same shape is loaded, too. From an
            encoder with other tokens, such as OpenAI's (`clips import`), only the image tower is loaded, unless it is
            also the ``architecture``.
        normalization: of pixels: imagenet, openai (as CLIP), half (as SigLIP) or identity (as MobileCLIP); null is that
            of the encoder given as ``pretrained`` or ``architecture``, whose resizing is kept as well, or a timm
            trunk's own, else imagenet.
        text_pos_embed_interpolation: interpolation of its text positions: linear, or long_clip, which keeps the first
            20 and interpolates the rest, as Long-CLIP does for full long captions.
        text_attention: all (every token of a text attends to all others, padding included, and the feature is at the
            class token, as in CLIPS) or causal (a token attends to previous ones, and the feature is at the EOT token,
            as in CLIP). Causal training skips the padding, which is faster with short captions and gives the same
            result.
        patch_dropout: ratio of the image's patches that a ViT drops in training, as FLIP does.
        lock_image: freeze the image tower, as LiT does.
        lock_image_unlocked_groups: number of its last layer groups that stay trainable.
        cache_trunk_features: cache the outputs of a timm trunk's frozen layers for each image, in memory and on disk,
            for this and later trainings; for small datasets, without crops and flips.
        lock_text: freeze the text tower.
        lock_text_unlocked_layers: number of its last layers that stay trainable.
    """

    architecture: str = "clips-tiny"
    context_length: Annotated[int, Field(ge=4)] | None = None
    image_size: Positive | None = None
    pretrained_trunk: str | None = None
    pretrained: str | None = None
    normalization: Literal["imagenet", "openai", "half", "identity"] | None = None
    text_pos_embed_interpolation: Literal["linear", "long_clip"] = "linear"
    text_attention: Literal["all", "causal"] = "all"
    patch_dropout: FractionBelowOne = 0.0
    lock_image: bool = False
    lock_image_unlocked_groups: NonNegative = 0
    cache_trunk_features: bool = False
    lock_text: bool = False
    lock_text_unlocked_layers: NonNegative = 0

    def __post_init__(self) -> None:
        if is_encoder_ref(self.architecture) and self.text_attention != "all":
            raise UserError("model.text_attention: expected none with an encoder's own towers")
        if self.pretrained and self.pretrained_trunk:
            raise UserError("model.pretrained_trunk: expected none with model.pretrained, which has its own trunk")
        for lock, name in (("lock_image", "lock_image_unlocked_groups"), ("lock_text", "lock_text_unlocked_layers")):
            if getattr(self, name) and not getattr(self, lock):
                raise UserError(f"model.{name}: expected 0, or more with model.{lock}, got {getattr(self, name)}")
        if self.cache_trunk_features and not self.lock_image:
            raise UserError("model.cache_trunk_features: expected model.lock_image: true")

    def without_initial_weights(self) -> ModelConfig:
        """Return the config of the same towers with random weights, for weights that are read afterwards, or none."""
        return replace(self, pretrained=None, pretrained_trunk=None)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a model's config resolves to, the same with and without initial weights and for every recipe.

    ``model_cfg``, of both towers, is open_clip's.
    """

    model_cfg: dict[str, Any]
    tokenizer: TextTokenizer

    @property
    def image_size(self) -> int:
        """In pixels."""
        return int(self.model_cfg["vision_cfg"]["image_size"])


def resolve_architecture(config: ModelConfig) -> Architecture:
    """Resolve ``config``.

    Raises:
        UserError: the architecture is unknown, sizes do not fit, or another encoder's tokenizer cannot be loaded.
    """
    cfg = model_cfg(config)
    length = int(cfg["text_cfg"]["context_length"])
    tokenizer: TextTokenizer = ClipsTokenizer(length)
    if is_encoder_ref(config.architecture):
        directory = resolve_encoder_dir(config.architecture, CONFIG_FIELD)
        stated = require_encoder_config(directory)
        if state_tokenizer(stated) is stated:
            tokenizer = OpenClipTokenizer(directory, length, int(cfg["text_cfg"].get("vocab_size", OPENAI_VOCAB_SIZE)))
    return Architecture(model_cfg=cfg, tokenizer=tokenizer)


def list_architectures() -> list[str]:
    """Return the names of the architectures that ship with this package."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.json"))


def is_encoder_ref(architecture: str) -> bool:
    """Whether it is an encoder directory rather than a name or a file."""
    if architecture.startswith(TIMM_PREFIX) or is_config_file(architecture):
        return False
    return (
        architecture.startswith(HF_HUB_PREFIX) or "/" in architecture or Path(architecture, OPEN_CLIP_CONFIG).is_file()
    )


def model_cfg(config: ModelConfig) -> dict[str, Any]:
    """Return the open_clip ``model_cfg`` of ``config``: the content of ``open_clip_config.json``.

    Raises:
        UserError: the architecture is unknown, or its text tower cannot read the CLIPS tokens.
    """
    architecture, is_encoder = config.architecture, is_encoder_ref(config.architecture)
    if is_encoder:
        stored = read_encoder_config(resolve_encoder_dir(architecture, CONFIG_FIELD)).get("model_cfg")
        if stored is None or "text_cfg" not in stored:
            raise UserError(f"{CONFIG_FIELD}: {architecture}: expected {OPEN_CLIP_CONFIG} with both towers")
        cfg = {name: value for name, value in stored.items() if not name.startswith("init_logit_")}
    elif architecture in list_architectures():
        cfg = read_config_file(CONFIG_DIR / f"{architecture}.json")
    elif architecture.startswith(TIMM_PREFIX):
        cfg = read_config_file(CONFIG_DIR / "clips-b-16.json")
        cfg["vision_cfg"] = _timm_vision_cfg(architecture.removeprefix(TIMM_PREFIX))
    elif is_config_file(architecture):
        cfg = read_config_file(Path(architecture))
    else:
        with without_wandb():
            import open_clip

        cfg = open_clip.get_model_config(architecture)
        if cfg is None:
            known = [*list_architectures(), *open_clip.list_models()]
            raise unknown_name_error(architecture, known, CONFIG_FIELD)
        # It gets this method's length instead of CLIP's.
        cfg = cfg | {"text_cfg": {key: value for key, value in cfg["text_cfg"].items() if key != "context_length"}}

    text = cfg["text_cfg"]
    if "hf_model_name" in text:
        raise UserError(f"{CONFIG_FIELD}: {architecture}: expected open_clip's own text tower, not one of transformers")
    vision = _vision_cfg(config, cfg["vision_cfg"])
    scale = {"nonscalar_logit_scale": True}  # [C]; and DeepSpeed cannot broadcast a 0-dim parameter
    if is_encoder:
        length = {} if config.context_length is None else {"context_length": config.context_length}
        return cfg | {"vision_cfg": vision, "text_cfg": text | length} | scale
    quick_gelu = {"quick_gelu": True} if cfg.get("quick_gelu") else {}
    sizes = {key: text[key] for key in ("width", "heads", "layers", "mlp_ratio", "ls_init_value") if key in text}
    tokens = tokenizer_text_cfg(config.context_length or text.get("context_length", CONTEXT_LENGTH))
    conventions = {key: value for key, value in _TEXT_CONVENTIONS.items() if not (quick_gelu and key == "act_kwargs")}
    text_cfg = sizes | tokens | conventions | _TEXT_ATTENTION[config.text_attention]
    return {"embed_dim": cfg["embed_dim"], "vision_cfg": vision, "text_cfg": text_cfg} | quick_gelu | scale


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a model config in open_clip's JSON format.

    Raises:
        UserError: the file is missing, or in another format.
    """
    try:
        cfg = safe_json_loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{CONFIG_FIELD}: {path}: cannot be read as JSON ({error_reason(error)})") from None
    parts = [cfg.get(name) for name in ("embed_dim", "vision_cfg", "text_cfg")] if isinstance(cfg, dict) else []
    if [type(part) for part in parts] != [int, dict, dict]:
        raise UserError(
            f"{CONFIG_FIELD}: {path}: expected open_clip's model config: {{embed_dim, vision_cfg, text_cfg}}"
        )
    if not isinstance(cfg["vision_cfg"].get("image_size", 0), int):
        raise UserError(f"{CONFIG_FIELD}: {path}: expected vision_cfg.image_size, pixels of a square's side")
    return dict(cfg)


def _vision_cfg(config: ModelConfig, vision: dict[str, Any]) -> dict[str, Any]:
    trunk = _timm_pretrained_cfg(vision)
    fixed_size = trunk.input_size[-1] if trunk is not None and trunk.fixed_input_size else None
    size = config.image_size or fixed_size or vision.get("image_size", 224)  # open_clip's default
    if isinstance(size, list | tuple):  # as open_clip's own files may state it
        if len({*size}) != 1:
            raise UserError(f"model.architecture: expected a square image size, got {list(size)}")
        size = size[0]
    if fixed_size is not None and size != fixed_size:
        raise UserError(f"model.image_size: expected {fixed_size}, the fixed size of this trunk")
    patch = vision.get("patch_size")
    if isinstance(patch, int) and size % patch:
        raise UserError(f"model.image_size: expected a multiple of the patch size {patch}, got {size}")
    cfg = {key: value for key, value in vision.items() if key != "output_tokens"} | {"image_size": size}
    if config.patch_dropout:
        if isinstance(vision.get("layers"), list):
            raise UserError("model.patch_dropout: expected a ViT, not a ResNet")
        cfg["patch_dropout"] = config.patch_dropout
    return cfg


@functools.cache
def _timm_vision_cfg(name: str) -> dict[str, Any]:
    """The ``vision_cfg`` of a timm model, as open_clip's own architectures have it."""
    import torch

    with without_wandb():
        import timm

    what = f"{TIMM_PREFIX}{name}"
    try:
        if not timm.is_model(name):
            raise unknown_name_error(what, [f"{TIMM_PREFIX}{known}" for known in timm.list_models()], CONFIG_FIELD)
        pretrained = timm.get_pretrained_cfg(name)
        size = 224 if pretrained is None else int(pretrained.input_size[-1])
        with torch.device("meta"), torch.no_grad():
            trunk: Any = timm.create_model(name, num_classes=0)
            features: Any = trunk.eval().forward_features(torch.zeros(1, 3, size, size))
    except RuntimeError as error:  # including an unknown weights tag
        raise UserError(f"{CONFIG_FIELD}: {what}: timm cannot build it ({error_reason(error)})") from None
    if not isinstance(features, torch.Tensor):
        raise UserError(f"{CONFIG_FIELD}: {what}: expected a model with one set of features, not several")
    own_head = getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features
    # A head with its own layers stays, and its classifier is the projection; otherwise open_clip adds a linear one.
    pool, projection = ("avg", "") if own_head else ("", "linear")
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": projection,
        "image_size": size,
    }


def _timm_pretrained_cfg(vision: dict[str, Any]) -> Any | None:
    """timm's config of a trunk's input; None for another tower, or if it has none."""
    if not vision.get("timm_model_name"):
        return None
    with without_wandb():
        import timm

    return timm.get_pretrained_cfg(vision["timm_model_name"])


def preprocess_cfg(cfg: dict[str, Any], normalization: str | None = None) -> dict[str, Any]:
    """Return the open_clip ``preprocess_cfg`` of towers that no encoder's are: squash to the square.

    ``normalization`` is an entry of ``NORMALIZATIONS``; None for the tower's own.
    """
    vision = cfg["vision_cfg"]
    size = vision.get("image_size", 224)
    mean, std = NORMALIZATIONS[normalization or "imagenet"]
    preprocess = {
        "size": [size, size] if isinstance(size, int) else list(size),
        "mean": mean,
        "std": std,
        "mode": "RGB",
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "fill_color": 0,
    }
    if (trunk := _timm_pretrained_cfg(vision)) is not None:
        own = {} if normalization else {"mean": list(trunk.mean), "std": list(trunk.std)}
        preprocess |= own | {"interpolation": trunk.interpolation}
    return preprocess


def resolve_preprocessing(config: ModelConfig, cfg: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the open_clip ``preprocess_cfg`` of a new model, and the encoder that states it, if one does.

    An encoder whose weights or towers are taken over keeps its preprocessing, at the new image size.

    Args:
        config: of the model.
        cfg: its ``model_cfg``.

    Raises:
        UserError: the config's normalization is not the one with which the initial weights were trained, or neither
            states one.
    """
    preprocess = preprocess_cfg(cfg, config.normalization)
    for reference, field in ((config.pretrained, "model.pretrained"), (config.architecture, CONFIG_FIELD)):
        if reference is None or (reference != config.pretrained and not is_encoder_ref(reference)):
            continue
        if not (source := read_encoder_config(resolve_encoder_dir(reference, field))):
            continue
        theirs = complete_preprocess_cfg(source.get("preprocess_cfg") or {}, preprocess["size"])
        if config.normalization is not None:
            mean, std = theirs["mean"], theirs["std"]
            if reference == config.pretrained and not _are_close(mean + std, preprocess["mean"] + preprocess["std"]):
                known = (
                    name for name, values in NORMALIZATIONS.items() if _are_close(mean + std, values[0] + values[1])
                )
                expected = next(known, f"null (mean {mean} and standard deviation {std} of pixels)")
                raise UserError(f"model.normalization: expected {expected}, with which {reference} was trained")
            theirs |= {name: preprocess[name] for name in ("mean", "std")}
        return theirs, reference
    if config.pretrained is not None and config.normalization is None:
        raise UserError(
            f"model.normalization: expected the one with which {config.pretrained} was trained, because it has no "
            f"{OPEN_CLIP_CONFIG}: {', '.join(NORMALIZATIONS)}"
        )
    return preprocess, None


def _are_close(values: list[float], others: list[float]) -> bool:
    return all(abs(value - other) < 1e-3 for value, other in zip(values, others, strict=True))  # ¼ gray level


def describe_preprocessing(preprocess: Mapping[str, Any]) -> str:
    """Return a complete ``preprocess_cfg`` in words."""
    modes = {"shortest": "shorter edge resized, center crop", "longest": "longer edge resized, padded"}
    mean, std = ([round(value, 4) for value in preprocess[name]] for name in ("mean", "std"))
    height, width = preprocess["size"]
    mode = modes.get(preprocess["resize_mode"], "squashed")
    return f"{mode}, {height}x{width}, {preprocess['interpolation']}, mean {mean}, std {std}"


def complete_preprocess_cfg(stated: dict[str, Any], image_size: Any) -> dict[str, Any]:
    """Return a ``preprocess_cfg`` as open_clip completes it: what is not stated is its default, the size the tower's.

    A number as mean or standard deviation is that of all three channels.
    """
    with without_wandb():
        from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = stated | merge_preprocess_dict(PreprocessCfg(), stated)
    for name in ("mean", "std"):
        value = merged[name]
        merged[name] = [float(value)] * 3 if isinstance(value, int | float) else [float(part) for part in value]
    return merged | {"size": [image_size] * 2 if isinstance(image_size, int) else list(image_size)}
