"""One stage of training: trainable parts, HF's Trainer under DeepSpeed, the saved model."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback

from clips.commandline.signals import StopRequest, exit_status_for_signal
from clips.core import durable
from clips.core.tensor_shards import TensorShards
from clips.core.trackers import Trackers
from clips.errors import UserError
from clips.model.layers import compile_modules, repeated_layers
from llava_bridge.data.sampler import LengthGroupedSampler, RandomOrder
from llava_bridge.model.cached_features import FeatureReader, FlushCallback
from llava_bridge.model.modeling_vision import EncoderVisionModel
from llava_bridge.training.callback import StageCallback, StageProgress
from llava_bridge.training.checkpoints import (
    convert_to_universal,
    last_checkpoint,
    load_elapsed_seconds,
    load_invalid_samples,
    needs_universal_conversion,
)
from llava_bridge.training.launch import deepspeed_config, log_rank0
from llava_bridge.training.lora import add_lora, numel_unpacked, quantize
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.save_model import save_stage_model
from llava_bridge.training.setup import StageSetup, precision, setup_stage
from llava_bridge.training.sharded_weights import finer_than_bf16, frozen_fits_bf16, set_masters
from llava_bridge.training.stage_config import StageConfig, ValidationConfig
from llava_bridge.training.stage_trainer import StageTrainer
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.validation import StageValidation
from llava_bridge.training.work_dir import CHECKPOINTS_DIR, MAX_GRAD_NORM

_BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def train_stage(config: LlavaTrainConfig, name: str, work: Path, stop: StopRequest, trackers: Trackers) -> None:
    """Run stage ``name`` and write its model to ``work/name/model``; called in every process.

    Raises:
        UserError: parts or data are incompatible, too many samples are invalid, or the loss is not finite.
        SystemExit: the run was stopped; its state is saved.
    """
    started = time.monotonic()
    stage, folder = config.stage(name), work / name
    bf16 = precision(config) == "bf16"
    setup = setup_stage(config, name, work, keep_bf16=bf16)  # DeepSpeed rounds to bf16 itself
    torch.manual_seed(config.seed)  # for adapters, regardless of earlier stages
    set_trainable_parts(setup, stage, name, torch.bfloat16 if bf16 else torch.float32)
    if stage.cache_vision_features:
        enable_feature_cache(setup, torch.bfloat16 if bf16 else torch.float32, name)
    if stage.activation_checkpointing:
        recompute_layers(setup.model)
    if config.distributed.torch_compile:
        compile_modules(modules_to_compile(setup.model))
    steps = num_training_steps(len(setup.dataset), stage)
    _log_stage(setup, config, name, steps)
    parts = [module for part, module in setup.parts.items() if part != "vision"]  # the encoder keeps its own dtype
    rounded = bf16 and not all(frozen_fits_bf16(module) for module in parts)
    durable.make_directory(folder / CHECKPOINTS_DIR)
    checkpoint = last_checkpoint(folder / CHECKPOINTS_DIR)
    start_time = started - load_elapsed_seconds(checkpoint)
    progress = StageProgress(name, stage.global_batch_size, work / "metrics.jsonl", start_time, trackers)
    model = LlavaLoss(setup.model, setup.square_images)
    masters = finer_than_bf16(setup.model) if bf16 else {}
    trainer = _make_trainer(config, name, setup, model, steps, checkpoint, folder / CHECKPOINTS_DIR)
    callback = _add_callback(trainer, setup, config.validation, progress, stop, masters)
    del masters
    flush = _flush_each_pass(trainer, setup) if stage.cache_vision_features else lambda: None
    with detached_frozen_encoder(setup):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.check_losses()
    if callback.stop_signal:
        flush()
        log_rank0(f"{name}: stopped after step {trainer.state.global_step}; the same command resumes it")
        raise SystemExit(exit_status_for_signal(callback.stop_signal))
    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would shard every model that it loads
    summary = _summary(trainer, stage, progress)
    last = name == config.stages[-1]
    initial = functools.partial(setup_stage, config, name, work)
    save_stage_model(
        setup, folder, summary, lora=stage.lora, load_initial=initial, rounded=rounded, bf16=bf16, last=last
    )
    flush()  # last: the model must not be lost if the cache's disk is full
    _free(trainer, setup)


def _make_trainer(
    config: LlavaTrainConfig,
    name: str,
    setup: StageSetup,
    model: nn.Module,
    steps: int,
    checkpoint: Path | None,
    checkpoints: Path,
) -> StageTrainer:
    """The trainer of a stage; ``checkpoint``, if it resumes from one, becomes readable for this number of processes."""
    if universal := checkpoint is not None and needs_universal_conversion(checkpoint):
        convert_to_universal(checkpoint)
    stage, args = config.stage(name), training_arguments(config, name, steps, checkpoints, universal=universal)
    return StageTrainer(
        stage=stage,
        stage_name=name,
        parts=setup.parts,
        sampler=make_sampler(setup.dataset, stage, steps, config.seed, args.per_device_train_batch_size),
        invalid=load_invalid_samples(checkpoint),
        max_invalid_ratio=config.max_invalid_ratio,
        model=model,
        args=args,
        train_dataset=setup.dataset,
        data_collator=setup.collator,
    )


def _add_callback(
    trainer: StageTrainer,
    setup: StageSetup,
    validation: ValidationConfig,
    progress: StageProgress,
    stop: StopRequest,
    masters: Mapping[str, Tensor],
) -> StageCallback:
    """Add the callback of a stage, in place of HF's printed log, and that of its validation."""
    vocab_size = setup.model.get_input_embeddings().num_embeddings
    begin = functools.partial(set_masters, setup.model, masters)
    callback = StageCallback(progress, trainer.gather_invalid, setup.parts, vocab_size, stop, begin)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    if setup.held_out:
        trainer.add_callback(StageValidation(validation, setup.held_out, trainer, progress, stop))
    return callback


def _flush_each_pass(trainer: StageTrainer, setup: StageSetup) -> Callable[[], None]:
    """Write the cached features after each pass over the data; return the function that does."""
    shards: TensorShards = setup.model.model.vision_tower.feature_shards
    trainer.add_callback(FlushCallback(shards, math.ceil(len(setup.dataset) / trainer.stage.global_batch_size)))
    return shards.flush


def set_trainable_parts(setup: StageSetup, stage: StageConfig, name: str, compute: torch.dtype = torch.float32) -> None:
    """Set ``requires_grad`` for the trained parts, or their adapters, and for nothing else.

    Args:
        setup: of the stage.
        stage: its settings.
        name: its name.
        compute: dtype of matrix products with quantized weights.
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


def enable_feature_cache(setup: StageSetup, dtype: torch.dtype, name: str) -> None:
    """Read the frozen encoder's features from the cache in the loader's workers, and add the missing ones.

    Logs the space that they need, as a disk that is full would end a training of hours.

    Raises:
        UserError: the tower is transformers' own.
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


def _log_stage(setup: StageSetup, config: LlavaTrainConfig, name: str, steps: int) -> None:
    stage = config.stage(name)
    for line in setup.mixture:
        log_rank0(f"{name}: {line}")
    for part, module in setup.parts.items():
        count = sum(numel_unpacked(weight) for weight in module.parameters())
        trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        if trainable in (0, count):
            log_rank0(f"{name}: {part} {'trainable' if trainable else 'frozen'}, {count:,} parameters")
        else:
            kind = "adapter parameters" if stage.lora is not None and part == "llm" else "parameters"
            log_rank0(f"{name}: {part} has {trainable:,} trainable {kind}, {count - trainable:,} frozen")
    log_rank0(
        f"{name}: {len(setup.dataset):,} samples, {steps} steps of {stage.global_batch_size}, {precision(config)}"
    )


def num_training_steps(samples: int, stage: StageConfig) -> int:
    """Optimizer steps of a stage; a batch may have samples of two epochs."""
    return stage.max_steps or max(1, math.ceil(stage.num_epochs * samples / stage.global_batch_size))


def make_sampler(dataset: Any, stage: StageConfig, steps: int, seed: int, micro_batch_size: int) -> Sampler[int]:
    """The sampler of a stage with this number of ``steps``."""
    total = steps * stage.global_batch_size
    if not stage.group_by_modality_length:
        return RandomOrder(len(dataset), total, seed)
    return LengthGroupedSampler(
        dataset.sizes(), stage.global_batch_size, total, seed, stage.global_batch_size // micro_batch_size
    )


def training_arguments(
    config: LlavaTrainConfig, name: str, steps: int, folder: Path, *, universal: bool = False
) -> TrainingArguments:
    """HF Trainer's arguments for the stage ``name`` of this number of ``steps``, with its checkpoints in ``folder``.

    ``universal``: it resumes from a checkpoint of :func:`convert_to_universal`.
    """
    stage, processes = config.stage(name), int(os.environ["WORLD_SIZE"])
    chosen = config.deepspeed(name)
    deepspeed = deepspeed_config(chosen, config.deepspeed_field(name))
    if ignored := [part for part in ("optimizer", "scheduler") if deepspeed.pop(part, None)]:
        log_rank0(f"{name}: {chosen}: {' and '.join(ignored)} ignored, since the stage has settings for them")
    # Without these fields DeepSpeed would not clip, and compute in float32.
    deepspeed = {**dict.fromkeys(_BATCHES, "auto"), "gradient_clipping": "auto", **deepspeed}
    deepspeed["bf16"] = {"enabled": "auto", **deepspeed.get("bf16", {})}
    if universal:
        deepspeed["checkpoint"] = {**deepspeed.get("checkpoint", {}), "load_universal": True}
    micro = stage.micro_batch_size or stage.global_batch_size // processes
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=stage.global_batch_size // (micro * processes),
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.lr_scheduler_type,
        optim=stage.optim or TrainingArguments.default_optim,
        warmup_steps=math.ceil(stage.warmup_ratio * steps),
        weight_decay=stage.weight_decay,
        adam_beta2=stage.adam_beta2,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=precision(config) == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=min(config.logging_steps, steps),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=2,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        deepspeed=deepspeed,
    )
    # Most are reported before the processes start; whether bf16 is used depends on the hardware.
    if mismatches := arguments.hf_deepspeed_config.mismatches:
        differences = ", ".join(mismatch.removeprefix("- ds ") for mismatch in mismatches)
        raise UserError(f'{config.deepspeed_field(name)}: {chosen}: expected "auto", got {differences}')
    return arguments


def _summary(trainer: StageTrainer, stage: StageConfig, progress: StageProgress) -> dict[str, Any]:
    return {
        "steps": trainer.state.global_step,
        "samples_seen": trainer.state.global_step * stage.global_batch_size,
        "loss": progress.last_loss,
        "invalid_samples": trainer.gather_invalid().report(),
        "seconds": round(progress.seconds, 2),
    }


def _free(trainer: StageTrainer, setup: StageSetup) -> None:
    """Free the DeepSpeed engine and the model before the next stage builds its own."""
    engine: Any = trainer.deepspeed
    if engine is not None:
        engine.destroy()
    trainer.accelerator.free_memory()
    for name in ("model", "model_wrapped", "deepspeed"):
        setattr(trainer, name, None)
    setup.model = None
    setup.parts.clear()
    gc.collect()
