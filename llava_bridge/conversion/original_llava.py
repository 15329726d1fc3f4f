"""The original LLaVA format: the entries of its ``config.json``, and its weight names.

Source: haotian-liu/LLaVA, ``llava_arch.py`` and both ``builder.py`` below ``llava/model``; ``mm_utils.py`` for tiles.
The LLM is ``model.*`` and ``lm_head.*``, the projector ``model.mm_projector.*``. ``mm_vision_tower`` names the tower;
some checkpoints also contain it as ``model.vision_tower.vision_tower.*``. LLaVA-1.6 (LLaVA-NeXT) also has
``model.image_newline``, the token at the end of a row of tiles; its pinpoints are (width, height), those of
transformers (height, width).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, read_weights
from clips.safe_text import log_info
from clips.text_files import safe_json_loads
from llava_bridge.model.image_processing import is_anyres_processor
from llava_bridge.model.llava_checks import is_original_llava, read_config

LLM_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llama": "llama",
    "mistral": "mistral",
}
"""``model_type`` of the config → the LLM's in transformers. The last two are LLMs stored with a separate projector."""
MODEL_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral"}
ARCHITECTURES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
PROJECTOR_FILE = "mm_projector.bin"
_PROJECTOR, _TOWER, _NEWLINE = "mm_projector.", "model.vision_tower.vision_tower.", "model.image_newline"
_LLM_ENDS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
# Buffers that older versions of the libraries saved and newer ones compute.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|(^|\.)position_ids$")
# Fields that transformers writes for every model.
_GENERAL = {"chunk_size_feed_forward", "id2label", "is_encoder_decoder", "label2id", "output_attentions"}
_GENERAL |= {"output_hidden_states", "problem_type", "return_dict", "_name_or_path", "dtype", "rope_parameters"}
# Settings of the original LLaVA → the values that transformers' LLaVA supports.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "image_aspect_ratio": ("pad", "square", "anyres"),
    "mm_use_im_start_end": (False,),
    "s2": (False,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginalCheckpoint:
    """An original checkpoint; the weights of its LLM and tower have transformers' names."""

    config: Mapping[str, Any]
    llm: Mapping[str, Tensor]
    projector: Mapping[str, Tensor]  # without prefix
    projector_name: str
    tower: Mapping[str, Tensor]  # empty if the config only names the tower
    newline: Tensor | None  # (D,), the token at the end of a row of tiles; None without tiles

    @property
    def pinpoints(self) -> list[list[int]] | None:
        """Heights and widths in pixels that images are fitted into before they are cut; None without tiles."""
        return _swap_pairs(_pinpoints(self.config) or []) if is_anyres(self.config) else None


def is_anyres(config: Mapping[str, Any]) -> bool:
    """Whether an original ``config.json`` is of LLaVA-1.6, whose images are cut into tiles."""
    return bool(config.get("image_aspect_ratio") == "anyres")


def _swap_pairs(pinpoints: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[second, first] for first, second in pinpoints]


def read_original(source: Path, llm: str | None) -> OriginalCheckpoint:
    """Read a checkpoint: a directory with all weights, or with only a projector, for which ``llm`` is given.

    Raises:
        UserError: files are missing or would run code; the checkpoint is another LLaVA variant.
    """
    config = read_config(source)
    if not is_original_llava(source):
        raise UserError(f"{source}: expected a LLaVA: mm_vision_tower in config.json, or {PROJECTOR_FILE}")
    _check_supported(config, source)
    weights = _read_weights_dir(source)
    if not any(_PROJECTOR in name for name in weights) and (source / PROJECTOR_FILE).is_file():
        weights |= read_weights(source / PROJECTOR_FILE)
    projector = {name.rpartition(_PROJECTOR)[2]: value for name, value in weights.items() if _PROJECTOR in name}
    tower = {
        name.removeprefix(_TOWER).removeprefix("vision_model."): value
        for name, value in weights.items()
        if name.startswith(_TOWER)
    }
    newline = weights.pop(_NEWLINE, None)
    if (newline is None) == is_anyres(config):
        fault = f"no {_NEWLINE} in it, which LLaVA's tiles need" if newline is None else f"{_NEWLINE}, but no anyres"
        raise UserError(f"{source}: {fault}")
    own = {name: value for name, value in weights.items() if _PROJECTOR not in name and not name.startswith(_TOWER)}
    if unknown := sorted(name for name in own if not name.startswith(("model.layers.", *_LLM_ENDS))):
        raise UserError(f"{source}: transformers' LLaVA has no weight '{unknown[0]}'")
    if bool(llm) == any(name.startswith("model.layers.") for name in own):
        fault = "has an LLM of its own; expected no" if llm else "has no weights of an LLM; expected its directory as"
        raise UserError(f"llm: {source} {fault} --llm")
    return OriginalCheckpoint(
        config=config,
        llm=_read_weights_dir(Path(llm)) if llm else own,
        projector=projector,
        projector_name=_projector_name(projector, source, config.get("mm_projector_type")),
        tower={name: value for name, value in tower.items() if not _COMPUTED.search(name)},
        newline=newline,
    )


def _check_supported(config: Mapping[str, Any], source: Path) -> None:
    if (source / "adapter_config.json").is_file():
        raise UserError(f"{source}: a LoRA adapter; expected a whole model (from LLaVA's merge_lora_weights.py)")
    model_type = config.get("model_type")
    if model_type not in LLM_TYPES:
        raise UserError(f"{source}: model_type: expected one of {', '.join(LLM_TYPES)}, got {model_type}")
    for field, values in _SUPPORTED.items():
        value = config.get(field)
        if value is not None and value not in values:
            expected = " or ".join(map(str, values))
            raise UserError(f"{source}: {field}: transformers' LLaVA supports only {expected}, got {value}")
    tiles = is_anyres(config)
    merge, expected = config.get("mm_patch_merge_type", "flat"), "spatial_unpad" if tiles else "flat"
    if merge != expected:
        aspect = f"with image_aspect_ratio {config.get('image_aspect_ratio')}"
        raise UserError(
            f"{source}: mm_patch_merge_type: transformers' LLaVA supports only {expected} {aspect}, got {merge}"
        )
    if tiles and not _pinpoints(config):
        stated = config.get("image_grid_pinpoints")
        raise UserError(f"{source}: image_grid_pinpoints: expected pairs of width and height, got {stated}")


def _pinpoints(config: Mapping[str, Any]) -> list[list[int]] | None:
    """The pairs of width and height, maybe as a Python literal in a string; None if missing or malformed."""
    stated: Any = config.get("image_grid_pinpoints")
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        pairs = [list(pair) for pair in (ast.literal_eval(stated) if isinstance(stated, str) else stated)]
        if all(len(pair) == 2 and all(isinstance(length, int) for length in pair) for pair in pairs):
            return pairs
    return None


def _read_weights_dir(directory: Path) -> dict[str, Tensor]:
    """All weights of a directory, from safetensors rather than pickles; empty without weight files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if index.is_file():
            files = sorted(set(safe_json_loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif (directory / name).is_file():
            files = [name]
        else:
            continue
        weights: dict[str, Tensor] = {}
        for file in files:
            if not (directory / file).is_file():
                raise UserError(f"{directory / file}: no such file, although {index.name} names it")
            log_info(f"reading {directory / file}")
            weights |= read_weights(directory / file)
        return {name: value for name, value in weights.items() if not _COMPUTED.search(name)}
    return {}


def _projector_name(weights: Mapping[str, Tensor], source: Path, stated: str | None) -> str:
    if weights.keys() == {"weight", "bias"}:
        return "linear"
    layers = len(weights) // 2
    if layers and weights.keys() == {f"{2 * layer}.{name}" for layer in range(layers) for name in ("weight", "bias")}:
        return f"mlp{layers}x_gelu"
    if not weights:
        raise UserError(f"{source}: no weights of a projector (mm_projector) in it")
    raise UserError(f"{source}: mm_projector_type: expected linear or mlpNx_gelu, got {stated}")


def llm_config(config: Mapping[str, Any]) -> Any:
    """The LLM's config in transformers, from the known entries of an original ``config.json``.

    Raises:
        UserError: they are not a valid config.
    """
    model_type = LLM_TYPES[config["model_type"]]
    excluded = {"model_type", "architectures", "transformers_version", "dtype"}
    known = AutoConfig.for_model(model_type).to_dict().keys() - excluded
    own = {key: config[key] for key in config.keys() & known}
    if "rope_parameters" not in own:
        scaling = dict(config.get("rope_scaling") or {"type": "default"})
        rope_type = scaling.pop("type", None) or scaling.pop("rope_type")
        own["rope_parameters"] = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": rope_type, **scaling}
    with library_errors_as_user_errors("config.json does not describe an LLM"):
        return AutoConfig.for_model(model_type, **own)


def original_config(model: Any, processor: Any, tower: str) -> dict[str, Any]:
    """The original ``config.json`` of a LLaVA in transformers, with the field names of the original code's version.

    Raises:
        UserError: the original format does not support this LLaVA.
    """
    text, vision = model.config.text_config, model.config.vision_config
    if text.model_type not in MODEL_TYPES:
        raise UserError(f"the original LLaVA has no class for this LLM ({text.model_type}); expected llama or mistral")
    if vision.model_type != "clip_vision_model":
        raise UserError(f"the original LLaVA has no class for this tower ({vision.model_type}); expected CLIP's")
    layer = model.config.vision_feature_layer
    if not isinstance(layer, int):
        raise UserError(f"the original LLaVA reads one feature layer; this one reads {list(layer)}")
    own_projector = getattr(model.config, "projector", None)
    projector = own_projector["type"] if own_projector else "mlp2x_gelu"
    if projector != "linear" and not re.fullmatch(r"mlp\d+x_gelu", projector):
        raise UserError(f"the original LLaVA has no projector {projector}; expected linear or mlpNx_gelu")
    if not own_projector and (
        model.config.projector_hidden_act != "gelu" or not model.config.multimodal_projector_bias
    ):
        raise UserError("the original LLaVA's projector has GELU and biases; this one does not")
    rope = dict(text.rope_parameters or {})
    scaling = {"type": rope.pop("rope_type", "default"), **{k: v for k, v in rope.items() if k != "rope_theta"}}
    images = processor.image_processor
    tiles: dict[str, Any] = {
        "image_aspect_ratio": "pad" if getattr(images, "do_pad", None) else "square",
        "mm_patch_merge_type": "flat",
    }
    if is_anyres_processor(images):
        tiles = {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": _swap_pairs(images.image_grid_pinpoints),
            "mm_patch_merge_type": "spatial_unpad",
        }
    select_feature = "patch" if model.config.vision_feature_select_strategy == "default" else "cls_patch"
    return {
        **{key: value for key, value in text.to_dict().items() if key not in _GENERAL},
        "architectures": [ARCHITECTURES[text.model_type]],
        "model_type": MODEL_TYPES[text.model_type],
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": None if scaling["type"] == "default" else scaling,
        "use_mm_proj": True,
        "mm_vision_tower": tower,
        "mm_projector_type": projector,
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": select_feature,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        **tiles,
    }


def original_weights(model: Any) -> dict[str, Tensor]:
    """LLM, projector and ``image_newline`` (with tiles) of a LLaVA, by their original names."""
    weights = {f"model.{name}": value for name, value in model.model.language_model.state_dict().items()}
    if not model.config.tie_word_embeddings:
        weights["lm_head.weight"] = model.lm_head.weight
    if hasattr(model.model, "image_newline"):
        weights[_NEWLINE] = model.model.image_newline.data
    projector = rename_hf_projector(model.model.multi_modal_projector.state_dict())
    return weights | {f"model.{_PROJECTOR}{name}": value for name, value in projector.items()}


def rename_hf_projector(projector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A projector's weights by their original names, if they have those of transformers' LLaVA."""
    return {name.replace("linear_1.", "0.").replace("linear_2.", "2."): value for name, value in projector.items()}
