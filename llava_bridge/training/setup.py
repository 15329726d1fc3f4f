"""What a stage starts with: model, processor, data."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, default_data_collator

from clips.data.formats.dataset_format import Conversation
from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors
from llava_bridge.conversation import ConversationEncoder, resolve_chat_template
from llava_bridge.data import read_samples, read_texts
from llava_bridge.data.collator import ConversationCollator, ConversationDataset, PackedTextDataset, TextCollator
from llava_bridge.model.anyres import is_anyres_processor, max_image_tokens
from llava_bridge.model.build import (
    LlavaParts,
    add_tokens,
    build_llava,
    load_llm,
    load_tokenizer,
    make_conversation_encoder,
)
from llava_bridge.model.image_processing import with_aspect_ratio
from llava_bridge.model.load_llava import load_for_training
from llava_bridge.model.modeling_llava import MultimodalConnector
from llava_bridge.model.small_llama import new_llama, train_tokenizer
from llava_bridge.training.distributed import barrier
from llava_bridge.training.launch import is_main_process
from llava_bridge.training.train_config import LlavaTrainConfig, Part, StageConfig
from llava_bridge.training.work_dir import stage_start_dir

_LONGEST = 2048


@dataclasses.dataclass
class StageSetup:
    """A stage's model (in float32), what is saved beside it, its parts by name, its data, and how these are mixed."""

    model: Any
    processor: Any
    parts: dict[Part, nn.Module]
    dataset: PackedTextDataset | ConversationDataset
    collator: Any
    mixture: Sequence[str] = ()


def setup_stage(config: LlavaTrainConfig, name: str, work: Path) -> StageSetup:
    """Load or build what stage ``name`` starts with; called in every process.

    Raises:
        UserError: parts or data are missing or do not fit.
    """
    return _text(config, work) if name == "llm_pretrain" else _llava(config, name, work)


def _text(config: LlavaTrainConfig, work: Path) -> StageSetup:
    stage = config.llm_pretrain
    spoken = [data.format != "text" for data in stage.data]
    if any(spoken) != all(spoken):
        raise UserError("llm_pretrain.data: expected either text, of which all is learned, or conversations; got both")
    samples, mixture = _samples(stage, config.seed) if any(spoken) else ([], [])
    if shown := next((sample for sample in samples if sample.images), None):
        raise UserError(f"llm_pretrain.data: expected conversations without pictures, but {shown.name} has one")
    texts = [sample.text for sample in samples]
    texts = texts or [text for data in stage.data for text in read_texts(data, config.seed)]
    if config.llm:
        tokenizer, model = load_tokenizer(config.llm), load_llm(config.llm)
        add_tokens(tokenizer, model)
        tokenizer.chat_template = resolve_chat_template(tokenizer.chat_template, config.chat_template)
    else:
        folder = work / "llm_pretrain" / "tokenizer"
        if is_main_process() and not folder.is_dir():
            partial = folder.with_name("tokenizer.partial")
            shutil.rmtree(partial, ignore_errors=True)
            train_tokenizer(texts, config.llm_from_scratch).save_pretrained(partial)
            partial.replace(folder)
        barrier()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(config.seed)
        model = new_llama(config.llm_from_scratch, tokenizer)
    length = _max_length(model.config, "llm_pretrain", stage.max_length)
    if samples:
        chat = ConversationEncoder(tokenizer, tokenizer.chat_template, image_tokens=0)
        return StageSetup(
            model,
            tokenizer,
            {"llm": model},
            ConversationDataset(samples, chat, length),
            TextCollator(tokenizer.pad_token_id),
            mixture,
        )
    enough = None if stage.max_steps is None else stage.max_steps * stage.global_batch_size
    dataset = PackedTextDataset(texts, tokenizer, length, seed=config.seed, enough=enough)
    return StageSetup(model, tokenizer, {"llm": model}, dataset, default_data_collator)


def _llava(config: LlavaTrainConfig, name: str, work: Path) -> StageSetup:
    stage = config.stage(name)
    samples, mixture = _samples(stage, config.seed)
    before = stage_start_dir(config, name, work)
    model: Any
    if before is not None and before.parent.name == "align":
        model = AutoModelForImageTextToText.from_pretrained(before, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(before)
    elif config.llava is not None:
        model, processor = load_for_training(config.llava, config.chat_template)
    else:
        assert config.encoder is not None
        model, processor = build_llava(
            LlavaParts(
                encoder=config.encoder,
                llm=str(before or config.llm),
                image_size=config.image_size,
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                projector=config.projector,
                image_aspect_ratio=config.image_aspect_ratio,
                image_grid_pinpoints=config.image_grid_pinpoints,
                chat_template=config.chat_template,
                seed=config.seed,
            )
        )
    if config.attn_implementation is not None:
        with library_errors_as_user_errors(
            f"attn_implementation: {config.attn_implementation} does not serve this LLM here"
        ):
            model.model.language_model.set_attn_implementation(config.attn_implementation)
    images, longest = processor.image_processor, _LONGEST
    if is_anyres_processor(images):
        longest += max_image_tokens(processor)
        if stage.image_aspect_ratio is not None:
            raise UserError(f"{name}.image_aspect_ratio: expected null, since {config.llava} has tiles in all stages")
    elif stage.image_aspect_ratio is not None:
        images = with_aspect_ratio(images, stage.image_aspect_ratio)
    length = _max_length(model.config.text_config, name, stage.max_length, longest)
    return StageSetup(
        model,
        processor,
        split_parts(model),
        ConversationDataset(samples, make_conversation_encoder(model, processor, stage.chat_template), length),
        ConversationCollator(images, processor.tokenizer.pad_token_id, _room(model, length, name, stage)),
        mixture,
    )


def _samples(stage: StageConfig, seed: int) -> tuple[list[Conversation], list[str]]:
    """Those of all sources of a stage; of a mixture also what to tell of where they are from."""
    found: list[Conversation] = []
    told = []
    for data in stage.data:
        found += (some := read_samples(data, seed))
        if len(stage.data) > 1 or data.weight != 1:
            told.append(f"{len(some):,} samples an epoch from {data.path} (weight {data.weight:g})")
    return found, told


def _room(model: Any, length: int, name: str, stage: StageConfig) -> int | None:
    """Tokens of a packed row; None where nothing is packed.

    Raises:
        UserError: the LLM does not keep packed samples apart.
    """
    if not stage.packing:
        return None
    if not supports_packing(model):
        kind = model.config.text_config.model_type
        raise UserError(f"{name}.packing: expected false, since this LLM ({kind}) mixes samples that share a row")
    flash = str(model.config.text_config._attn_implementation).startswith("flash")
    return sys.maxsize if flash else length  # FlashAttention tells samples of a single row apart, of several not


@torch.no_grad()
def supports_packing(model: Any) -> bool:
    """Whether what a LLaVA makes of a sample is the same alone and behind another one in a packed row."""
    llm, count = model.model.language_model, 6
    tokens = torch.arange(1, 2 * count + 1, device=llm.device)[None]
    places = torch.arange(count, device=llm.device)[None]
    learns, _ = llm.training, llm.eval()
    way = llm.config._attn_implementation
    if str(way).startswith("flash"):  # its kernels take neither float32 nor a CPU, and know samples by their positions
        llm.config._attn_implementation = "eager"
    try:
        packed = llm(input_ids=tokens, position_ids=places.repeat(1, 2), use_cache=False).last_hidden_state
        alone = llm(input_ids=tokens[:, count:], position_ids=places, use_cache=False).last_hidden_state
    finally:
        llm.train(learns)
        llm.config._attn_implementation = way
    return torch.allclose(packed[:, count:], alone, atol=1e-4, rtol=1e-3)


def split_parts(model: Any) -> dict[Part, nn.Module]:
    """The parts of a LLaVA that train or are frozen as one."""
    return {
        "vision": model.model.vision_tower,
        "projector": MultimodalConnector(model),
        "llm": nn.ModuleList([model.model.language_model, model.lm_head]),
    }


def _max_length(config: Any, name: str, wanted: int | None, longest: int = _LONGEST) -> int:
    limit = getattr(config, "max_position_embeddings", None)
    if wanted is None:
        return min(limit or longest, longest)
    if limit is not None and wanted > limit:
        raise UserError(f"{name}.max_length: this LLM takes at most {limit} tokens, got {wanted}")
    return wanted
