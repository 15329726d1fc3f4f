"""LLaVA directories: loaded for training; saved so that transformers, without this package, and vLLM read them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel, SiglipVisionModel

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained, merge_adapters, silence_transformers
from llava_bridge.conversation import resolve_training_template
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower
from llava_bridge.encoders.transformers_source import FAMILIES, check_model_type, image_size_of
from llava_bridge.model.build import build_processor, is_stored_in_bf16, set_generation_config, state_image_tokens
from llava_bridge.model.image_processing import is_anyres_processor
from llava_bridge.model.llava_checks import check_image_token, resolve_llava_dir
from llava_bridge.model.modeling_llava import AnyLlava, register
from llava_bridge.model.modeling_vision import EncoderVisionModel, build_vision_model, load_with_float32_tower

MAX_SHARD_SIZE = "5GB"


def load_for_training(llava: str, chat_template: str, *, keep_bf16: bool = False) -> tuple[Any, Any]:
    """Load (model, processor) from a LLaVA directory for training, in float32, its encoder frozen.

    The LLaVA is this suite's, or any in the transformers format; its template is its own (``auto``) or one by name.
    With ``keep_bf16`` projector and LLM stay in bf16 if they are stored in it.

    Raises:
        UserError: parts are missing or of an unsupported type, or the template cannot be trained on.
    """
    directory = resolve_llava_dir(llava, "llava")
    dtype = torch.bfloat16 if keep_bf16 and is_stored_in_bf16(directory) else torch.float32
    register()
    model = load_with_float32_tower(
        lambda: load_pretrained(AutoModelForImageTextToText, directory, f"llava: {llava}", dtype=dtype)
    )
    model = merge_adapters(model, directory)
    with library_errors_as_user_errors(f"llava: the processor of {llava} cannot be loaded"):
        stored = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
        images = stored.image_processor
        size = image_size_of(images)
    tokenizer = stored.tokenizer
    if size is None:
        raise UserError(f"llava: {llava}: expected square images")
    check_image_token(tokenizer, model.config, f"llava: {llava}")
    if tokenizer.pad_token is None:  # any token serves: those behind a row are not supervised
        tokenizer.pad_token = tokenizer.eos_token
    check_anyres_consistency(model.config, stored.image_processor, llava)
    state_image_tokens(model.config, stored)
    if not isinstance(model.model.vision_tower, EncoderVisionModel):
        # transformers' own tower becomes one of this suite, which can cache features; saving undoes this
        config = model.config
        check_model_type(config.vision_config.model_type, f"llava: the tower of {llava}")
        weights = model.model.vision_tower.state_dict()
        if "add_pooling_layer" in FAMILIES[config.vision_config.model_type].arguments:  # its tower here has none
            weights = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
        encoder = VisionEncoder(
            source="transformers",
            architecture={"config": config.vision_config.to_dict()},
            weights={f"model.{name}": value for name, value in weights.items()},
            # not used: the processor normalizes images
            pixels=ImagePreprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic"),
            parent=llava,
        )
        model.model.vision_tower = build_vision_model(encoder, config.vision_feature_layer)
        model._weight_conversions = None  # by those of its files transformers would save this tower under other names
        config.vision_config = model.model.vision_tower.config
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    own = stored.chat_template or tokenizer.chat_template
    try:
        template = resolve_training_template(own, chat_template, tokenizer)
        processor = build_processor(stored.image_processor, tokenizer, size, model.config.image_seq_length, template)
        set_generation_config(model, processor)
    except UserError as error:
        raise UserError(f"{error} ({llava}); set another chat_template, such as LLaVA-1.5's vicuna_v1") from None
    return model, processor


def check_anyres_consistency(config: Any, image_processor: Any, where: str) -> None:
    """Raise UserError if the model of a LLaVA-NeXT would join tiles differently from its processor."""
    if not is_anyres_processor(image_processor):
        return
    expected, stated = image_processor.image_grid_pinpoints, getattr(config, "image_grid_pinpoints", None)
    if [list(pair) for pair in stated or []] != [list(pair) for pair in expected]:
        raise UserError(
            f"llava: {where}: expected the image_grid_pinpoints of its processor in its config.json, {expected}"
        )


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def save_llava(model: AnyLlava, directory: Path) -> None:
    """Save a LLaVA by ``save_pretrained``; a tower of CLIP or SigLIP with the names that it has in files on the Hub.

    transformers 5 writes ``model.vision_tower.embeddings…`` and also reads the Hub's
    ``model.vision_tower.vision_model.embeddings…``; the LLaVA class of vLLM reads the latter only.
    """
    weights = model.state_dict()
    if type(model.model.vision_tower) in (CLIPVisionModel, SiglipVisionModel):
        tower = "model.vision_tower."
        weights = {name.replace(tower, f"{tower}vision_model.", 1): value for name, value in weights.items()}
    logger = logging.getLogger("DeepSpeed")
    logger.addFilter(_is_error)  # it warns on a machine without a GPU, although it only looks whether it is in use
    try:
        with silence_transformers():
            model.save_pretrained(directory, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)
    finally:
        logger.removeFilter(_is_error)


def convert_tower_to_transformers(model: AnyLlava) -> bool:
    """Replace the tower by transformers' own vision model, if there is one; return whether it was possible.

    The LLaVA then loads without an import of this package.
    """
    tower = model.model.vision_tower
    hf_tower = tower.tower.hf_model() if isinstance(tower, EncoderVisionModel) else None
    if hf_tower is None or _reads_final_norm(model, tower.tower):  # transformers' LLaVA reads layers' outputs only
        return False
    # transformers joins tiles by the tower's config; that of DINOv2 states the image size of its training.
    if hasattr(model.model, "image_newline") and _grid(hf_tower.config) != _grid(tower.config):
        return False
    model.model.vision_tower = tower.hf_model()
    model.config.vision_config = hf_tower.config
    return True


def convert_open_clip_tower(model: AnyLlava, *, clip_only: bool = False) -> None:
    """Replace a ViT of open_clip or timm by the ``CLIPVisionModel`` or ``SiglipVisionModel`` with its hidden states.

    Raises:
        UserError: the tower is another one (with ``clip_only`` any but a ``CLIPVisionModel``), or transformers'
            model does not compute the hidden states that are read.
    """
    from clips.interchange.hf_clip import clip_vision_model
    from clips.interchange.hf_siglip import siglip_vision_model
    from llava_bridge.encoders.open_clip_source import OpenClipVit
    from llava_bridge.encoders.timm_source import TimmVit

    tower, config = getattr(model.model.vision_tower, "tower", None), model.config.vision_config
    if isinstance(tower, OpenClipVit):
        hf_tower = clip_vision_model(tower.visual)
    elif isinstance(tower, TimmVit) and not clip_only:
        hf_tower = siglip_vision_model(tower.trunk)
        if _reads_final_norm(model, tower):
            raise UserError("vision_feature_layer: transformers' last hidden state has no final norm, timm's has")
    else:
        raise UserError(f"expected a ViT of open_clip or timm as vision tower, got {type(tower).__name__}")
    model.model.vision_tower = hf_tower
    if hasattr(model.model, "image_newline") and _grid(hf_tower.config) != _grid(config):
        raise UserError(
            f"transformers joins tiles by the tower's grid, {_grid(hf_tower.config)}; expected {_grid(config)}"
        )
    model.config.vision_config = hf_tower.config


def _reads_final_norm(model: AnyLlava, tower: VisionTower) -> bool:
    layers = model.config.vision_feature_layer
    return any(tower.is_normalized(layer) for layer in (layers if isinstance(layers, list) else [layers]))


def _grid(config: Any) -> tuple[int, int]:
    """Image size, and number of patches in a row."""
    return config.image_size, config.image_size // config.patch_size
