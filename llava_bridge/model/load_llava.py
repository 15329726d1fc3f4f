"""Load an existing LLaVA for training."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.model_refs import resolve_model_dir
from llava_bridge.conversation import resolve_training_template
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder
from llava_bridge.encoders.transformers_source import check_model_type, image_size_of
from llava_bridge.model.anyres import is_anyres_processor
from llava_bridge.model.auto_registration import register
from llava_bridge.model.build import build_processor, is_stored_in_bf16, set_generation_config, state_image_tokens
from llava_bridge.model.llava_checks import check_image_token, check_llava_dir
from llava_bridge.model.modeling_vision import EncoderVisionModel, build_vision_model, load_with_float32_tower


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
    register()
    model = load_with_float32_tower(
        lambda: load_pretrained(AutoModelForImageTextToText, directory, f"llava: {llava}", dtype=dtype)
    )
    with library_errors_as_user_errors(f"llava: the processor of {llava} cannot be loaded"):
        stored = AutoProcessor.from_pretrained(directory)
        images = stored.image_processor
        size = image_size_of(images)
    tokenizer = stored.tokenizer
    if size is None:
        raise UserError(f"llava: {llava}: expected square images")
    check_image_token(tokenizer, model.config, f"llava: {llava}")
    check_anyres_consistency(model.config, stored.image_processor, llava)
    state_image_tokens(model.config, stored)
    _wrap_tower(model, size, llava)
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
        config.vision_config = model.model.vision_tower.config
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
