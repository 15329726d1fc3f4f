"""What a stage trains on: its model, the parts of it that train, and its data."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.utils import is_flash_attn_2_available
from transformers.utils.generic import is_flash_attention_requested

from clips.core.cache import TensorShards, tensor_digest
from clips.core.identity import digest
from clips.data.formats.dataset_format import Conversation
from clips.errors import UserError
from clips.model.compute import repeated_layers
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.parallel.distributed import all_gather_objects, from_main
from llava_bridge.data import read_conversations, read_samples
from llava_bridge.data.batches import ConversationCollator, ConversationDataset
from llava_bridge.data.sources import join_samples, split_questions
from llava_bridge.model.build import (
    LlavaParts,
    build_llava,
    computing_in_float32,
    is_stored_in_bf16,
    make_conversation_encoder,
    without_flash_attention,
)
from llava_bridge.model.image_processing import is_anyres_processor, max_image_tokens, with_aspect_ratio
from llava_bridge.model.llava_files import load_for_training
from llava_bridge.model.modeling_llava import MultimodalConnector, register
from llava_bridge.model.modeling_vision import EncoderVisionModel, load_with_float32_tower
from llava_bridge.training.inputs import Inputs
from llava_bridge.training.launch import log_rank0
from llava_bridge.training.lora import add_lora, quantize
from llava_bridge.training.train_config import LlavaTrainConfig, Part, StageConfig, ValidationConfig

_COMPARED = 16  # values at each end of a weight, and samples


@dataclasses.dataclass
class StageSetup:
    """A stage's model and its processor, its parts by name, its data, log lines about a mixture, held-out samples.

    With ``square_images`` a LLaVA with tiles reads one square for each image.
    ``held_out`` has those of ``validation.source`` by the name "", and the questions of each benchmark by its own, if
    this is the last stage.
    """

    model: Any
    processor: Any
    parts: dict[Part, nn.Module]
    dataset: ConversationDataset
    collator: Any
    mixture: Sequence[str] = ()
    square_images: bool = False
    held_out: Mapping[str, ConversationDataset] = dataclasses.field(default_factory=dict)


def load_stage_model(inputs: Inputs, name: str, *, keep_bf16: bool = False) -> tuple[Any, Any]:
    """The model in float32, and its processor, with which stage ``name`` begins: of the stage before, or of its parts.

    With ``keep_bf16`` an LLM that is stored in bf16 stays in it, in memory that the processes of a machine share.

    Raises:
        UserError: parts are missing or incompatible.
    """
    config, models = inputs.config, inputs.models
    stages: list[str] = list(config.stages)
    if position := stages.index(name):
        before = inputs.work / stages[position - 1] / "model"
        dtype = torch.bfloat16 if keep_bf16 and is_stored_in_bf16(before) else torch.float32
        where = f"{before}: the LLaVA of stage align"
        register()
        model = load_with_float32_tower(
            lambda: load_pretrained(AutoModelForImageTextToText, before, where, dtype=dtype)
        )
        return model, AutoProcessor.from_pretrained(before, trust_remote_code=False)
    if "llava" in models:
        return load_for_training(models["llava"].reference, config.chat_template, keep_bf16=keep_bf16)
    parts = LlavaParts.of(config, encoder=models["encoder"].reference, llm=models["llm"].reference)
    return build_llava(parts, keep_bf16=keep_bf16)


def setup_stage(inputs: Inputs, name: str, *, keep_bf16: bool = False) -> StageSetup:
    """Model and data of stage ``name``; called in every process. For ``keep_bf16`` see `load_stage_model`.

    Raises:
        UserError: parts or data are missing or incompatible.
    """
    config = inputs.config
    stage = config.stage(name)
    sources = [read_samples(data, config.seed) for data in stage.data]
    mixture = [
        f"{len(samples):,} samples per epoch from {data.path} (repeats {data.repeats:g})"
        for samples, data in zip(sources, stage.data, strict=True)
        if len(stage.data) > 1 or data.repeats != 1
    ]
    for samples, data in zip(sources, stage.data, strict=True):
        if keys := samples.describe_unread():
            mixture.append(f"{data.path}: keys that are not read: {keys}")
    held_out = _read_held_out(config.validation) if name == config.stages[-1] else {}

    model, processor = load_stage_model(inputs, name, keep_bf16=keep_bf16)
    tower, layers = model.model.vision_tower.tower, model.config.vision_feature_layer
    states = " and ".join(tower.describe(layer) for layer in (layers if isinstance(layers, list) else [layers]))
    token = ""
    if tower.class_token:
        token = f", {'with' if model.config.vision_feature_select_strategy == 'full' else 'without'} the class token"
    seen = f"{model.config.image_seq_length} tokens for each square, of the encoder: {states}{token}"
    log_rank0(f"{name}: the LLM sees {seen}")
    set_attention(model.model.language_model, config)

    # How it reads images and conversations.
    images, template, aspect_ratio = processor.image_processor, None, None
    if name == "align":
        template, aspect_ratio = config.align.chat_template, config.align.image_aspect_ratio
    tiles = is_anyres_processor(images)
    square = tiles and aspect_ratio is not None
    if aspect_ratio is not None:
        images = with_aspect_ratio(images, aspect_ratio)
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    length = stage.max_length
    if length is None:
        length = 2048 + (max_image_tokens(processor) if tiles and not square else 0)
        length = min(limit or length, length)
    elif limit is not None and length > limit:
        raise UserError(f"{name}.max_length: expected at most {limit}, the LLM's context, got {length}")
    chat = make_conversation_encoder(model, processor, template, square_images=square)
    return StageSetup(
        model,
        processor,
        split_parts(model),
        ConversationDataset(join_samples(sources), chat, length),
        ConversationCollator(images, processor.tokenizer.pad_token_id, packed_length(model, length, name, stage)),
        mixture,
        square,
        {key: ConversationDataset(samples, chat, length) for key, samples in held_out.items()},
    )


def check_same_everywhere(setup: StageSetup, name: str) -> None:
    """Raise UserError if a process has other weights or data than rank 0. A collective call.

    A node may have another file under the same name, and DeepSpeed sends no frozen encoder to the other processes. Of
    each weight the first and last values are compared, of the data their number and some samples.
    """
    ends, samples = [], setup.dataset.samples
    for value in setup.model.state_dict().values():
        flat = value.detach().flatten()
        ends.append(torch.cat([flat[:_COMPARED], flat[-_COMPARED:]]).float().cpu().numpy())
    weights = np.concatenate(ends)
    some = [samples[index] for index in np.linspace(0, len(samples) - 1, min(_COMPARED, len(samples))).astype(int)]
    data = digest([len(samples), [[sample.name, repr(sample.turns)] for sample in some]])
    first_weights, first_data = from_main(lambda: (weights, data))
    # some weights are computed when they are loaded, which differs in the last digits between types of CPUs
    is_equal = weights.shape == first_weights.shape and np.allclose(weights, first_weights, 1e-4, 1e-6, equal_nan=True)
    difference = "" if is_equal and data == first_data else "data" if is_equal else "weights"
    for rank, other in enumerate(all_gather_objects(difference)):
        if other:
            raise UserError(
                f"{name}: the process of rank {rank} has read other {other} than that of rank 0: expected the same "
                "models and data on all nodes"
            )


def _read_held_out(config: ValidationConfig) -> dict[str, list[Conversation]]:
    """The selected samples of the source, by the name "", and the questions of each benchmark."""
    held_out = {}
    for field, name, source in config.sources():
        try:
            samples: Sequence[Conversation] = read_conversations(source)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None
        if name and not (samples := [question for sample in samples for question in split_questions(sample)]):
            raise UserError(f"{field}: {source.path}: no question with an answer")
        # A thousand answers tell an exact match to 3 points (95 %), in the time of some steps.
        selected = np.linspace(0, len(samples) - 1, min(1000, len(samples))).round().astype(int)
        held_out[name] = [samples[index] for index in selected]
    return held_out


def set_attention(llm: Any, config: LlavaTrainConfig) -> None:
    """Let the LLM attend as configured; else by FlashAttention instead of SDPA, in bf16 on a GPU with the package."""
    wanted = config.attn_implementation
    uses_sdpa = llm.config._attn_implementation == "sdpa" and llm._supports_flash_attn
    if wanted is None and uses_sdpa and config.precision == "bf16" and is_flash_attn_2_available():
        wanted = "flash_attention_2"
    if wanted is not None:
        with library_errors_as_user_errors(f"attn_implementation: this LLM does not support {wanted} here"):
            llm.set_attn_implementation(wanted)


def packed_length(model: Any, length: int, name: str, stage: StageConfig) -> float | None:
    """Tokens of a packed row; None without packing.

    Raises:
        UserError: the LLM does not separate packed samples.
    """
    if not stage.packing:
        return None
    if not supports_packing(model):
        model_type = model.config.text_config.model_type
        raise UserError(f"{name}.packing: expected false, since this LLM ({model_type}) mixes samples that share a row")
    # FlashAttention reads the bounds of the samples, SDPA a mask of all pairs of tokens of a row.
    return math.inf if is_flash_attention_requested(model.config.text_config) else length


@torch.no_grad()
def supports_packing(model: Any) -> bool:
    """Whether the LLM's output for a sample is the same alone and after another one in a packed row."""
    llm, count = model.model.language_model, 6
    tokens = torch.arange(1, 2 * count + 1, device=llm.device)[None]
    positions = torch.arange(count, device=llm.device)[None]
    was_training, _ = llm.training, llm.eval()
    try:
        with computing_in_float32(llm), without_flash_attention(llm):
            packed = llm(input_ids=tokens, position_ids=positions.repeat(1, 2), use_cache=False).last_hidden_state
            alone = llm(input_ids=tokens[:, count:], position_ids=positions, use_cache=False).last_hidden_state
    finally:
        llm.train(was_training)
    return torch.allclose(packed[:, count:], alone, atol=1e-4, rtol=1e-3)


def split_parts(model: Any) -> dict[Part, nn.Module]:
    """The parts of a LLaVA that are trained or frozen as one."""
    return {
        "vision": model.model.vision_tower,
        "projector": MultimodalConnector(model),
        "llm": nn.ModuleList([model.model.language_model, model.lm_head]),
    }


def set_trainable_parts(setup: StageSetup, stage: StageConfig, name: str, compute: torch.dtype = torch.float32) -> None:
    """Set ``requires_grad`` for the trained parts, or their adapters, and for nothing else.

    Quantized weights are multiplied in the dtype ``compute``.
    """
    setup.model.requires_grad_(False)
    if stage.lora is not None:
        if stage.lora.quantization is not None:
            quantize(setup.model, stage.lora.quantization, compute)
        add_lora(setup.model, stage.lora)
    for part in stage.trained_parts(name):
        if part != "llm" or stage.lora is None:
            setup.parts[part].requires_grad_(True)
    if setup.square_images:
        setup.model.model.image_newline.requires_grad_(False)  # not used


def recompute_layers(model: Any) -> None:
    """Enable activation checkpointing of a transformers model."""
    new_name = "activation_checkpointing_enable"  # in newer versions of transformers
    getattr(model, new_name, model.gradient_checkpointing_enable)()


def modules_to_compile(model: Any) -> list[nn.Module]:
    """Return what ``distributed.torch_compile`` compiles: the layers of a transformers LLaVA, and the projector."""
    return [*repeated_layers(model), model.model.multi_modal_projector]


@contextlib.contextmanager
def detached_frozen_encoder(setup: StageSetup) -> Iterator[None]:
    """Meanwhile a frozen encoder is an attribute of the model, but no submodule.

    DeepSpeed would round its weights to bf16, and shard them under ZeRO-3. Detached, every process has all of them in
    the dtype in which they were loaded.
    """
    tower = setup.parts["vision"]
    if any(weight.requires_grad for weight in tower.parameters()):
        yield
        return
    model = setup.model.model
    before = dict(model._modules)
    tower.to(torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu")
    del model.vision_tower
    model.__dict__["vision_tower"] = tower.eval()
    try:
        yield
    finally:
        del model.__dict__["vision_tower"]
        model._modules.update({name: model._modules.pop(name, tower) for name in before})  # in the initial order


def enable_feature_cache(setup: StageSetup, dtype: torch.dtype, name: str) -> TensorShards:
    """Read the frozen encoder's features from the cache in the loader's workers, and add the missing ones.

    Returns the cache. Logs the space that they need, as a disk that is full would end a training of hours. UserError:
    the tower is transformers' own.
    """
    tower = setup.model.model.vision_tower
    if not isinstance(tower, EncoderVisionModel):
        raise UserError("cache_vision_features: expected false, as the vision tower of this LLaVA is transformers' own")
    shards = tower.cache_features(setup.model.config.vision_feature_layer, dtype)
    setup.collator.read_features = FeatureReader(shards, dtype, setup.model.config)
    needed = len(setup.dataset) * tower.feature_bytes(dtype)
    free = shutil.disk_usage(next(path for path in (shards.directory, *shards.directory.parents) if path.is_dir())).free
    log_rank0(
        f"{name}: caches features in {shards.directory}, {needed / 1e9:,.2f} GB for one image or tile of each sample; "
        f"{free / 1e9:,.1f} GB are free"
    )
    return shards


class FeatureReader:
    """Finds the features of a batch's images in the loader's workers, so that no step waits for a file or a hash.

    The keys of ``shards`` are hashes of the pixels in the training's ``dtype``; the values are L hidden states of N
    tokens of width D.
    """

    def __init__(self, shards: TensorShards, dtype: torch.dtype, config: Any) -> None:
        self.shards, self.dtype = shards, dtype
        self.pinpoints = getattr(config, "image_grid_pinpoints", None)
        self.size = config.vision_config.image_size

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``feature_keys``, and ``cached_features`` (P, L, N, D) if all P images or tiles have some; empty without."""
        if "pixel_values" not in batch:
            return {}
        images: Tensor = batch["pixel_values"]
        if images.ndim == 5:  # with tiles: transformers' LLaVA-NeXT drops the empty ones before the encoder
            counts = [image_size_to_num_patches(size, self.pinpoints, self.size) for size in batch["image_sizes"]]
            images = torch.cat([tiles[:count] for tiles, count in zip(images, counts, strict=True)])
        keys = [tensor_digest(pixels) for pixels in images.to(self.dtype)]
        stored = [self.shards.get(key) for key in keys]
        known = [features for features in stored if features is not None]
        cached = {"cached_features": torch.stack(known)} if len(known) == len(keys) else {}
        return {"feature_keys": keys, **cached}
