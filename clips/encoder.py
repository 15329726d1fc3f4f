"""Encoders that are loaded: directories in open_clip's Hub format, which open_clip alone reads too, or transformers'.

python -c "import open_clip; open_clip.create_model_and_transforms('local-dir:encoders/clips')"
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clips.core.durable import atomic_write
from clips.data.images import to_rgb
from clips.errors import UserError, error_reason
from clips.lazy_import import without_wandb
from clips.method.clips_model import ClipsModel
from clips.model.captioner import Captioner, CaptionerDims
from clips.model.loading import (
    library_errors_as_user_errors,
    load_pretrained,
    read_weights,
    require_finite,
    require_float_weights,
)
from clips.model.tokenizer import ClipsTokenizer, require_rows, truncate_text
from clips.model.towers import build_towers, text_tower
from clips.model_refs import (
    CAPTIONER_CONFIG,
    CAPTIONER_WEIGHTS,
    DUAL_MODELS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    find_open_clip_weights,
    require_encoder_config,
    state_tokenizer,
)
from clips.text_files import safe_json_loads


def write_encoder(model: ClipsModel, directory: Path) -> None:
    """Write towers, tokenizer, preprocessing and the captioner, if any, into ``directory``."""
    config = {"model_cfg": model.model_cfg, "preprocess_cfg": model.preprocess_cfg}
    atomic_write(directory / OPEN_CLIP_CONFIG, json.dumps(config, indent=2) + "\n")
    _write_weights(model.clip, directory / OPEN_CLIP_WEIGHTS)
    if "text_cfg" in model.model_cfg:
        model.tokenizer.save(directory)
    if model.captioner is not None:
        shape = dataclasses.asdict(model.captioner.config)
        atomic_write(directory / CAPTIONER_CONFIG, json.dumps(shape, indent=2) + "\n")
        _write_weights(model.captioner, directory / CAPTIONER_WEIGHTS)


def _write_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path)


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """A loaded encoder directory.

    Args:
        model: the open_clip model, or an `clips.model.towers.ImageTower`, in evaluation mode, on CPU, float32.
        preprocess: image of any mode, made RGB by `clips.data.images.to_rgb` → (3, size, size) float tensor.
        tokenizer: list of n strings, and optionally another context length → (n, context length) int64 tokens; raises
            UserError without a text tower.
        config: the directory's open_clip_config.json.
    """

    model: Any
    preprocess: Any
    tokenizer: Any
    config: dict[str, Any]


def load_encoder(directory: str | Path) -> LoadedEncoder:
    """Load an encoder directory of this suite, or any other in open_clip's Hub format.

    Raises:
        UserError: the directory or its config or weights are missing, invalid, not finite or do not match.
    """
    directory = Path(directory)
    config = require_encoder_config(directory)
    stated = state_tokenizer(config)
    weights = find_open_clip_weights(directory)
    if not weights.is_file():
        raise UserError(f"{weights}: missing; expected the encoder's weights")
    require_float_weights(weights, str(directory))
    with without_wandb():
        import open_clip

    if "text_cfg" not in config["model_cfg"]:
        from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

        def reject_texts(texts: Sequence[str]) -> torch.Tensor:
            raise UserError(f"{directory}: this encoder has no text tower")

        with library_errors_as_user_errors(f"{directory}: this image tower cannot be loaded"):
            tower = build_towers(config["model_cfg"])
            tower.load_state_dict(read_weights(weights))
            known = merge_preprocess_dict(config["preprocess_cfg"], {})
            preprocess = image_transform_v2(PreprocessCfg(**known), is_train=False)
        require_finite(tower.state_dict(), str(directory))
        return LoadedEncoder(tower.eval(), _of_any_mode(preprocess), reject_texts, config)
    text = config["model_cfg"]["text_cfg"]
    if isinstance(text, dict) and text.get("hf_pooler_type") == "last_pooler":  # which open_clip does not have
        raise UserError(
            f"{directory}: its text tower is a language model of an earlier version of this suite, which is no longer "
            "read; LLaVAs still read its image tower"
        )
    try:
        changed = {}
        if "hf_model_name" in text and (directory / "config.json").is_file():
            # A language model as text tower: its own directory may be gone, and its config is here as well.
            changed = {"text_cfg": text | {"hf_model_name": str(directory.absolute())}}
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}", **changed)
        tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{directory}") if stated is config else ClipsTokenizer()
    except Exception as error:  # open_clip raises the exceptions of its dependencies: torch, safetensors, transformers
        raise UserError(f"{directory}: open_clip cannot load this encoder ({error_reason(error)})") from None
    require_finite(model.state_dict(), str(directory))
    tower = text_tower(model)
    table = tower.token_embedding if hasattr(tower, "token_embedding") else tower.transformer.get_input_embeddings()
    require_rows(tokenizer, table.num_embeddings, str(directory))
    return LoadedEncoder(model.eval(), _of_any_mode(preprocess), TruncatingTokenizer(tokenizer), stated)


def _of_any_mode(preprocess: Any) -> Any:
    """open_clip's preprocessing after `to_rgb`: its own shows what is below transparent pixels, often black."""
    from torchvision.transforms import Compose

    return Compose([to_rgb, *preprocess.transforms])


class TruncatingTokenizer:
    """open_clip's tokenizer, with `truncate_text` for strings of any length."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Token ids (N, L) of N texts."""
        length = context_length or self._tokenizer.context_length
        return self._tokenizer([truncate_text(text, length) for text in texts], length)

    def __getattr__(self, name: str) -> Any:
        if name == "_tokenizer":  # of an empty copy, as `copy` and `pickle` create it
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


def load_captioner(directory: str | Path) -> Captioner:
    """The captioner of an encoder directory, in evaluation mode.

    Raises:
        UserError: the directory has none, or it is invalid.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    if not (directory / CAPTIONER_WEIGHTS).is_file():
        expected = f"an encoder directory with {CAPTIONER_WEIGHTS} (a recipe with a captioner)"
        raise UserError(f"{directory}: expected {expected}")
    try:
        shape = safe_json_loads((directory / CAPTIONER_CONFIG).read_text(encoding="utf-8"))
        captioner = Captioner(CaptionerDims(**shape))
        captioner.load_state_dict(load_file(directory / CAPTIONER_WEIGHTS))
    except Exception as error:  # JSON, safetensors and torch each raise their own
        raise UserError(f"{directory}: its captioner cannot be loaded ({error_reason(error)})") from None
    return captioner.eval()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformersEncoder:
    """A loaded directory in the transformers format, with the interface of `LoadedEncoder`.

    Args:
        model: both towers, in evaluation mode, on CPU, float32.
        preprocess: image of any mode, made RGB by `clips.data.images.to_rgb` → (3, size, size) float tensor.
        tokenizer: list of n strings, and optionally another length → (n, length) int64 tokens.
        processor: transformers' image processor.
        cleaning: open_clip's name of the function that cleans texts, if there is one.
    """

    model: TransformersTowers
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Callable[..., torch.Tensor]
    processor: Any
    cleaning: str | None


def load_transformers_encoder(path: str | Path) -> TransformersEncoder:
    """Load image and text tower of a directory in the transformers format, with its own preprocessing and tokenizer.

    Raises:
        UserError: it is of another type, or its files are incomplete.
    """
    from open_clip.tokenizer import get_clean_fn
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    with library_errors_as_user_errors(f"encoder: {path}: expected a directory in the transformers format"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type not in DUAL_MODELS:
        expected = f"expected a text tower as well, that of a {', '.join(DUAL_MODELS)}"
        raise UserError(f"encoder: {path} is a {config.model_type}; {expected}")
    length = config.text_config.max_position_embeddings
    # AIMv2's texts are causal, but under SDPA transformers ignores it in a batch without padding.
    options = {"attn_implementation": "eager"} if config.model_type == "aimv2" else {}
    model = load_pretrained(AutoModel, Path(path), f"encoder: {path}", dtype=torch.float32, **options)
    require_finite(model.state_dict(), f"encoder: {path}")
    with library_errors_as_user_errors(f"encoder: {path}: expected the files of its preprocessing and tokenizer"):
        images = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    require_rows(tokenizer, config.text_config.vocab_size, f"encoder: {path}")

    # As in open_clip's configs. transformers keeps the curly quotes that OpenAI's code and open_clip replace, and the
    # tokenizer of SigLIP 2 keeps case and punctuation at a fixed resolution.
    cleaning = {"clip": "whitespace", "siglip": "canonicalize", "siglip2": "canonicalize"}.get(config.model_type)
    clean = get_clean_fn(cleaning) if cleaning else str

    def tokenize(texts: list[str], context_length: int | None = None) -> torch.Tensor:
        most = context_length or length
        shortened = [clean(truncate_text(text, most)) for text in texts]
        return tokenizer(
            shortened, padding="max_length", truncation=True, max_length=most, return_tensors="pt"
        ).input_ids

    # The text towers of the other types were trained with visible or later padding.
    padding = tokenizer.pad_token_id if config.model_type == "tipsv2" else None

    def preprocess(image: Any) -> torch.Tensor:
        image = to_rgb(image)
        if config.model_type == "siglip2":  # NaFlex, whose processor would keep the aspect ratio
            side = math.isqrt(images.max_num_patches)
            square = image.resize([side * images.patch_size] * 2, images.resample)
            return images(square, return_tensors="pt").pixel_values[:, : side**2]
        return images(image, return_tensors="pt").pixel_values[0]

    return TransformersEncoder(
        model=TransformersTowers(model.eval(), padding),
        preprocess=preprocess,
        tokenizer=tokenize,
        processor=images,
        cleaning=cleaning,
    )


class TransformersTowers:
    """A transformers model with the functions of open_clip's.

    Args:
        model: with ``get_image_features`` and ``get_text_features``.
        padding: the token that texts do not attend to; None if padding has no effect or is part of the text.
    """

    def __init__(self, model: Any, padding: int | None) -> None:
        self.model = model
        self.padding = padding

    def to(self, **options: Any) -> TransformersTowers:
        """Move or convert the model, in place."""
        self.model.to(**options)
        return self

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, E) of pixels (B, 3, S, S), or of a square's patches (B, 1, N, P · P · 3), for SigLIP 2 NaFlex."""
        grid: dict[str, torch.Tensor] = {}
        if pixels.shape[1] == 1:
            pixels = pixels[:, 0]
            mask = pixels.new_ones(pixels.shape[:2]).long()
            grid = {"pixel_attention_mask": mask, "spatial_shapes": mask[:, :2] * math.isqrt(pixels.shape[1])}
        return self.model.get_image_features(pixel_values=pixels, **grid).pooler_output

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, E) of tokens (B, L)."""
        mask = tokens.new_ones(tokens.shape) if self.padding is None else (tokens != self.padding).long()
        return self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
