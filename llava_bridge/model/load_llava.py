"""Load an existing LLaVA for training."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.model_refs import resolve_model_dir
from llava_bridge.conversation import IMAGE, resolve_chat_template_with_spaces
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder
from llava_bridge.encoders.transformers_source import check_model_type, image_size_of
from llava_bridge.model.anyres import is_anyres_processor
from llava_bridge.model.build import build_processor, is_stored_in_bf16, set_generation_config
from llava_bridge.model.configuration_llava import BridgeLlavaConfig, BridgeLlavaNextConfig
from llava_bridge.model.llava_checks import check_llava_dir
from llava_bridge.model.modeling_vision import EncoderVisionModel, build_vision_model, load_with_float32_tower
from llava_bridge.model.native_aspect import patch_budget, square_size


def load_for_training(llava: str, chat_template: str, *, keep_bf16: bool = False) -> tuple[Any, Any]:
    """Load (model, processor) from a LLaVA directory for training, in float32, its encoder frozen.

    Args:
        llava: written by this suite, or any LLaVA in the transformers format; a directory, or a Hub repo id.
        chat_template: ``auto`` (its own) or a template's name.
        keep_bf16: whether projector and LLM stay in bf16 if they are stored in it.

    Raises:
        UserError: parts are missing or of an unsupported type; its template cannot be trained on.
    """
    check_llava_dir(llava)
    directory = resolve_model_dir(llava, "llava")
    dtype = torch.bfloat16 if keep_bf16 and is_stored_in_bf16(directory) else torch.float32
    model = load_with_float32_tower(
        lambda: load_pretrained(AutoModelForImageTextToText, directory, f"llava: {llava}", dtype=dtype)
    )
    with library_errors_as_user_errors(f"llava: the processor of {llava} cannot be loaded"):
        stored = AutoProcessor.from_pretrained(directory)
        images = stored.image_processor
        size = image_size_of(images) if patch_budget(images) is None else square_size(images)
    tokenizer = stored.tokenizer
    if size is None or tokenizer.convert_tokens_to_ids(IMAGE) != model.config.image_token_index:
        expected = "square images" if size is None else f"{IMAGE} in its tokenizer as its config.json states"
        raise UserError(f"llava: {llava}: expected {expected}")
    check_anyres_consistency(model.config, stored.image_processor, llava)
    _wrap_tower(model, size, llava)
    own_template = stored.chat_template or tokenizer.chat_template
    template = resolve_chat_template_with_spaces(own_template, chat_template, tokenizer)
    processor = build_processor(stored.image_processor, tokenizer, size, model.config.image_seq_length, template)
    try:
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


def _wrap_tower(model: Any, size: int, where: str) -> None:
    """Inverse of ``save_llava.convert_tower_to_transformers``: makes feature caching possible."""
    config = model.config
    if not isinstance(model.model.vision_tower, EncoderVisionModel):
        check_model_type(config.vision_config.model_type, f"llava: the tower of {where}")
        encoder = VisionEncoder(
            source="transformers",
            architecture={"config": config.vision_config.to_dict()},
            weights={f"model.{name}": value for name, value in model.model.vision_tower.state_dict().items()},
            # not used: the processor normalizes images
            pixels=ImagePreprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic"),
            parent=where,
        )
        model.model.vision_tower = build_vision_model(encoder, config.vision_feature_layer)
        model._weight_conversions = None  # by those of its files transformers would save this tower under other names
        config.vision_config = tower = model.model.vision_tower.config
        # transformers' own configs may not state the number of tokens of an image.
        if not isinstance(config, BridgeLlavaConfig | BridgeLlavaNextConfig):
            use_class_token = tower.class_token and config.vision_feature_select_strategy == "full"
            config.image_seq_length = (tower.image_size // tower.patch_size) ** 2 + int(use_class_token)
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
