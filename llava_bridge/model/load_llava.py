"""Load an existing LLaVA for training: its tower behind this suite's interface, its template adapted."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.model_refs import resolve_model_dir
from llava_bridge.conversation import IMAGE, resolve_chat_template_with_spaces
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder
from llava_bridge.encoders.transformers_source import FAMILIES, image_size_of
from llava_bridge.model.anyres import is_anyres_processor
from llava_bridge.model.build import build_processor, set_generation_config
from llava_bridge.model.configuration_llava import BridgeLlavaConfig, BridgeLlavaNextConfig
from llava_bridge.model.llava_checks import check_llava_dir
from llava_bridge.model.modeling_vision import EncoderVisionModel, build_vision_model


def load_for_training(llava: str, chat_template: str) -> tuple[Any, Any]:
    """Load (model, processor) from a LLaVA directory for training, in float32, its encoder frozen.

    Args:
        llava: written by this suite, or any LLaVA in the transformers format; a directory, or a Hub repo id.
        chat_template: ``auto`` (its own) or a template's name.

    Raises:
        UserError: parts are missing or of an unsupported type; its template cannot be trained on.
    """
    check_llava_dir(llava)
    directory = resolve_model_dir(llava, "llava")
    model = load_pretrained(AutoModelForImageTextToText, directory, f"llava: {llava}", dtype=torch.float32)
    with library_errors_as_user_errors(f"llava: the processor of {llava} cannot be loaded"):
        theirs = AutoProcessor.from_pretrained(directory)
        size = image_size_of(theirs.image_processor)
    tokenizer = theirs.tokenizer
    if size is None or tokenizer.convert_tokens_to_ids(IMAGE) != model.config.image_token_index:
        wrong = "square images" if size is None else f"{IMAGE} in its tokenizer as its config.json says"
        raise UserError(f"llava: {llava}: expected {wrong}")
    check_anyres_consistency(model.config, theirs.image_processor, llava)
    _use_our_tower(model, size, llava)
    template = resolve_chat_template_with_spaces(
        theirs.chat_template or tokenizer.chat_template, chat_template, tokenizer
    )
    processor = build_processor(theirs.image_processor, tokenizer, size, model.config.image_seq_length, template)
    try:
        set_generation_config(model, processor)
    except UserError as error:
        raise UserError(f"{error}; of {llava}. Name another, such as vicuna_v1, LLaVA-1.5's") from None
    return model, processor


def check_anyres_consistency(config: Any, images: Any, where: str) -> None:
    """Reject a LLaVA-NeXT whose model would join tiles differently from its processor."""
    if not is_anyres_processor(images):
        return
    told, made = getattr(config, "image_grid_pinpoints", None), images.image_grid_pinpoints
    if [list(pair) for pair in told or []] != [list(pair) for pair in made]:
        raise UserError(
            f"llava: {where}: expected the image_grid_pinpoints of its processor in its config.json, {made}"
        )


def _use_our_tower(model: Any, size: int, where: str) -> None:
    """Wrap transformers' vision model in this suite's interface, which can cache features on disk.

    It is the inverse of :func:`llava_bridge.model.build.convert_tower_to_transformers`.
    """
    config = model.config
    if not isinstance(model.model.vision_tower, EncoderVisionModel):
        if config.vision_config.model_type not in FAMILIES:
            kind = config.vision_config.model_type
            raise UserError(f"llava: the tower of {where} is a {kind}; expected one of {', '.join(FAMILIES)}")
        encoder = VisionEncoder(
            source="transformers",
            architecture={"config": config.vision_config.to_dict()},
            weights={f"model.{name}": value for name, value in model.model.vision_tower.state_dict().items()},
            # the processor normalizes images
            pixels=ImagePreprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic"),
            parent=where,
        )
        model.model.vision_tower = build_vision_model(encoder, config.vision_feature_layer)
        config.vision_config = tower = model.model.vision_tower.config
        if not isinstance(
            config, BridgeLlavaConfig | BridgeLlavaNextConfig
        ):  # others may not state the number of tokens of an image
            whole = tower.class_token and config.vision_feature_select_strategy == "full"
            config.image_seq_length = (tower.image_size // tower.patch_size) ** 2 + int(whole)
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
