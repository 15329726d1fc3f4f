"""One stage of training, from its parts and data to its saved model.

A step: HF's Trainer → :class:`llava_bridge.training.trainer.StageTrainer` → DeepSpeed's engine →
:class:`llava_bridge.training.loss.LlavaLoss`.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback

from clips.commandline.signals import StopRequest, exit_status_for_signal
from clips.core import durable
from clips.core.run_log import RunLog
from clips.model.compute import compile_modules
from llava_bridge.training.cached_features import FlushCallback, enable_feature_cache
from llava_bridge.training.callback import StageCallback, StageProgress
from llava_bridge.training.checkpoints import (
    convert_to_universal,
    last_checkpoint,
    load_elapsed_seconds,
    load_invalid_samples,
    needs_universal_conversion,
)
from llava_bridge.training.launch import log_rank0
from llava_bridge.training.lora import numel_unpacked
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.run_dir import CHECKPOINTS_DIR
from llava_bridge.training.save_model import save_stage_model
from llava_bridge.training.setup import (
    StageSetup,
    detached_frozen_encoder,
    modules_to_compile,
    precision,
    recompute_layers,
    set_trainable_parts,
    setup_stage,
)
from llava_bridge.training.sharded_weights import finer_than_bf16, frozen_fits_bf16, set_masters
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.trainer import StageTrainer, make_sampler, training_arguments
from llava_bridge.training.validation import StageValidation


def train_stage(config: LlavaTrainConfig, name: str, work: Path, stop: StopRequest, run_log: RunLog) -> None:
    """Run stage ``name`` and write its model to ``work/name/model``; called in every process.

    Raises:
        UserError: parts or data are incompatible, too many samples are invalid, or the loss is not finite.
        SystemExit: the run was stopped; its state is saved.
    """
    started = time.monotonic()
    stage, folder = config.stage(name), work / name
    bf16 = precision(config) == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32

    # The model and what of it trains, the data, the number of steps.
    setup = setup_stage(config, name, work, keep_bf16=bf16)  # DeepSpeed rounds to bf16 itself
    torch.manual_seed(config.seed)  # for adapters, regardless of earlier stages
    set_trainable_parts(setup, stage, name, dtype)
    shards = enable_feature_cache(setup, dtype, name) if stage.cache_vision_features else None
    if stage.activation_checkpointing:
        recompute_layers(setup.model)
    if config.distributed.torch_compile:
        compile_modules(modules_to_compile(setup.model))
    steps = stage.num_steps(len(setup.dataset))
    _log_parts(setup, name, has_adapters=stage.lora is not None)
    log_rank0(
        f"{name}: {len(setup.dataset):,} samples, {steps} steps of {stage.global_batch_size}, {precision(config)}"
    )
    parts = [module for part, module in setup.parts.items() if part != "vision"]  # the encoder keeps its own dtype
    rounded = bf16 and not all(frozen_fits_bf16(module) for module in parts)

    # The last checkpoint of an interrupted stage, readable by this number of processes.
    durable.make_directory(folder / CHECKPOINTS_DIR)
    checkpoint = last_checkpoint(folder / CHECKPOINTS_DIR)
    progress = StageProgress(name, stage.global_batch_size, run_log, started - load_elapsed_seconds(checkpoint))
    if universal := checkpoint is not None and needs_universal_conversion(checkpoint):
        convert_to_universal(checkpoint)

    # HF's Trainer under DeepSpeed, and what is called between its steps.
    args = training_arguments(config, name, steps, folder / CHECKPOINTS_DIR, universal=universal)
    trainer = StageTrainer(
        stage=stage,
        stage_name=name,
        parts=setup.parts,
        sampler=make_sampler(setup.dataset, stage, steps, config.seed, args.per_device_train_batch_size),
        invalid=load_invalid_samples(checkpoint),
        max_invalid_ratio=config.max_invalid_ratio,
        model=LlavaLoss(setup.model, setup.square_images),
        args=args,
        train_dataset=setup.dataset,
        data_collator=setup.collator,
    )
    callback = StageCallback(
        progress,
        trainer.gather_invalid,
        setup.parts,
        setup.model.get_input_embeddings().num_embeddings,
        stop,
        # the callback alone holds these weights, and frees them
        functools.partial(set_masters, setup.model, finer_than_bf16(setup.model) if bf16 else {}),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    if setup.held_out:
        trainer.add_callback(StageValidation(config.validation, setup.held_out, trainer, progress, stop))
    if shards is not None:  # written after each pass over the data, for the next one
        trainer.add_callback(FlushCallback(shards, math.ceil(len(setup.dataset) / stage.global_batch_size)))

    with detached_frozen_encoder(setup):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.check_losses()
    if callback.stop_signal:
        if shards is not None:
            shards.flush()
        log_rank0(f"{name}: stopped after step {trainer.state.global_step}; the same command resumes it")
        raise SystemExit(exit_status_for_signal(callback.stop_signal))

    # The model, and then free memory for the next stage.
    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would shard every model that it loads
    summary = {
        "steps": trainer.state.global_step,
        "samples_seen": trainer.state.global_step * stage.global_batch_size,
        "loss": progress.last_loss,
        "invalid_samples": trainer.gather_invalid().report(),
        "seconds": round(progress.seconds, 2),
    }
    save_stage_model(setup, config, name, work, summary, rounded=rounded)
    if shards is not None:  # last: the model must not be lost if the cache's disk is full
        shards.flush()
    engine: Any = trainer.deepspeed
    if engine is not None:
        engine.destroy()
    trainer.accelerator.free_memory()
    for attribute in ("model", "model_wrapped", "deepspeed"):
        setattr(trainer, attribute, None)
    setup.model = None
    setup.parts.clear()
    gc.collect()


def _log_parts(setup: StageSetup, name: str, *, has_adapters: bool) -> None:
    for line in setup.mixture:
        log_rank0(f"{name}: {line}")
    for part, module in setup.parts.items():
        count = sum(numel_unpacked(weight) for weight in module.parameters())
        trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        if trainable in (0, count):
            log_rank0(f"{name}: {part} {'trainable' if trainable else 'frozen'}, {count:,} parameters")
        else:
            kind = "adapter parameters" if has_adapters and part == "llm" else "parameters"
            log_rank0(f"{name}: {part} has {trainable:,} trainable {kind}, {count - trainable:,} frozen")
