"""One stage of training, from its parts and data to its saved model.

A step: HF's Trainer → :class:`llava_bridge.training.trainer.StageTrainer` → DeepSpeed's engine →
:class:`llava_bridge.training.loss.LlavaLoss`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback

from clips.commandline.signals import StopRequest, exit_status_for_signal
from clips.core import durable
from clips.core.durable import open_to_umask
from clips.core.run_log import RunLog
from clips.loader.invalid_samples import InvalidSamples, restored
from clips.model.compute import compile_modules
from clips.model.loading import ADAPTER_DIR
from clips.parallel.distributed import from_main
from llava_bridge.model.llava_files import convert_tower_to_transformers, save_llava
from llava_bridge.training.checkpoints import convert_if_of_other_processes, last_checkpoint, read_marker, step_of
from llava_bridge.training.inputs import Inputs
from llava_bridge.training.launch import barrier, is_main_process, log_rank0
from llava_bridge.training.lora import add_lora, copy_dequantized, numel_unpacked, share_without_adapter
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.run_dir import CHECKPOINTS_DIR
from llava_bridge.training.setup import (
    StageSetup,
    check_same_everywhere,
    detached_frozen_encoder,
    enable_feature_cache,
    load_stage_model,
    modules_to_compile,
    recompute_layers,
    set_trainable_parts,
    setup_stage,
    split_parts,
)
from llava_bridge.training.trainer import (
    FlushCallback,
    StageCallback,
    StageProgress,
    StageTrainer,
    make_sampler,
    training_arguments,
)
from llava_bridge.training.validation import StageValidation


def train_stage(inputs: Inputs, name: str, stop: StopRequest, run_log: RunLog) -> None:
    """Run stage ``name`` and write its model to the work directory's ``name/model``; called in every process.

    Raises:
        UserError: parts or data are incompatible, too many samples are invalid, or a loss or gradient is not
            finite.
        SystemExit: the run was stopped; its state is saved.
    """
    started = time.monotonic()
    config, work = inputs.config, inputs.work
    stage, checkpoints = config.stage(name), work / name / CHECKPOINTS_DIR
    bf16 = config.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32

    # The model and what of it trains, the data, the number of steps.
    setup = setup_stage(inputs, name, keep_bf16=bf16)  # DeepSpeed rounds to bf16 itself
    check_same_everywhere(setup, name)
    torch.manual_seed(config.seed)  # for adapters, regardless of earlier stages
    set_trainable_parts(setup, stage, name, dtype)
    shards = enable_feature_cache(setup, dtype, name) if stage.cache_vision_features else None
    if stage.activation_checkpointing:
        recompute_layers(setup.model)
    if config.distributed.torch_compile:
        compile_modules(modules_to_compile(setup.model))
    steps = stage.num_steps(len(setup.dataset))
    _log_parts(setup, name, has_adapters=stage.lora is not None)
    if stage.lora is not None and (share := share_without_adapter(setup.model.model.language_model)) > 0.05:
        log_rank0(
            f"{name}: lora: {share:.0%} of the LLM's weights in matrices have no adapter; those of experts have one "
            "with lora_dropout: 0"
        )
    log_rank0(f"{name}: {len(setup.dataset):,} samples, {steps} steps of {stage.global_batch_size}, {config.precision}")
    # Frozen weights that DeepSpeed rounds are later saved as they were; the encoder keeps its own dtype.
    trained_with = (module for part, module in setup.parts.items() if part != "vision")
    rounded = bf16 and not fit_bf16(
        weight for module in trained_with for weight in module.parameters() if not weight.requires_grad
    )

    # The last checkpoint of an interrupted stage, readable by this number of processes.
    durable.make_directory(checkpoints)
    checkpoint = last_checkpoint(checkpoints)
    before = {} if checkpoint is None else from_main(lambda: read_marker(checkpoint))
    first_step = 0 if checkpoint is None else step_of(checkpoint)
    progress = StageProgress(name, stage.global_batch_size, run_log, started - (before["seconds"] if before else 0.0))
    is_universal = checkpoint is not None and convert_if_of_other_processes(checkpoint)

    # HF's Trainer under DeepSpeed, and what is called between its steps.
    args = training_arguments(inputs, name, steps, checkpoints, universal=is_universal)
    trainer = StageTrainer(
        stage=stage,
        stage_name=name,
        parts=setup.parts,
        sampler=make_sampler(setup.dataset, stage, steps, config.seed, args.per_device_train_batch_size, first_step),
        invalid=restored(before["invalid_samples"]) if before else InvalidSamples(),
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
        "threads": torch.get_num_threads(),  # another number adds in another order
    }
    save_stage_model(setup, inputs, name, summary, rounded=rounded)
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


# ---------------------------------------------------------------- weights under DeepSpeed


def fit_bf16(weights: Iterable[Tensor]) -> bool:
    """Whether bf16 represents all of these weights exactly; true for 4 bits."""
    return all(not one.is_floating_point() or torch.equal(one, one.bfloat16().to(one.dtype)) for one in weights)


def finer_than_bf16(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights, by name, that bf16 does not represent exactly; DeepSpeed rounds them."""
    trainable = ((name, weight.data) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: value for name, value in trainable if not fit_bf16([value])}


def set_masters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set DeepSpeed's float32 master weights to ``values``.

    DeepSpeed initializes them from the weights rounded to bf16. Small updates from rounded values change the bf16
    weights only after they have accumulated; from exact values some change them immediately.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    weights: dict[str, Any] = dict(model.named_parameters())
    for name, value in values.items():
        weight = weights[name]
        if not hasattr(weight, "ds_tensor"):
            safe_set_full_fp32_param(weight, value)
            continue
        size, rank = weight.ds_tensor.numel(), torch.distributed.get_rank()  # ZeRO-3: this process's shard, padded
        shard = value.flatten()[size * rank : size * (rank + 1)]
        safe_set_local_fp32_param(weight, nn.functional.pad(shard, (0, size - shard.numel())))


def gather_trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights and the persistent buffers, by name, unsharded, on the CPU.

    Called in every process; only the main process returns them.
    """
    from deepspeed import zero

    gathered: dict[str, Tensor] = {}
    persistent = model.state_dict().keys()
    values: list[tuple[str, Tensor]] = [item for item in model.named_parameters() if item[1].requires_grad]
    values += [(name, value) for name, value in model.named_buffers() if name in persistent]
    for name, value in values:  # one is unsharded at a time
        with zero.GatheredParameters([value]) if hasattr(value, "ds_tensor") else contextlib.nullcontext():
            if is_main_process():
                gathered[name] = value.detach().cpu().clone()
    return gathered


def save_stage_model(
    setup: StageSetup, inputs: Inputs, name: str, summary: Mapping[str, Any], *, rounded: bool
) -> None:
    """Write the stage's model atomically, then delete its checkpoints, once it is on the disk; called in every process.

    Weights that bf16 represents exactly are saved in it after a training in bf16, and the last stage's LLaVA loads
    without this package, if possible. ``rounded``: training has rounded frozen weights; they are then saved from the
    initial setup.
    """
    config, work = inputs.config, inputs.work
    lora, is_last = config.stage(name).lora, name == config.stages[-1]
    is_sharded = any(hasattr(weight, "ds_tensor") for weight in setup.model.parameters())
    weights = gather_trained_weights(setup.model) if lora is not None or rounded or is_sharded else None
    if is_main_process():
        partial = work / name / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        model, processor, adapted = setup.model, setup.processor, None
        if weights is not None:
            model, processor = load_stage_model(inputs, name)
            adapted = None if lora is None else add_lora(model, lora)
            unknown = model.load_state_dict(weights, strict=False).unexpected_keys
            assert not unknown, unknown
        parts = split_parts(model)
        if lora is not None and adapted is not None:
            if lora.quantization:
                copy_dequantized(setup.model, model)
            if lora.merge_weights or not is_last:  # the next stage needs merged weights
                model, adapted = adapted.merge_and_unload(), None
        if config.precision == "bf16":  # the encoder, and projector and LLM together, if that is lossless
            vision = list(parts["vision"].parameters())
            others = [one for part, module in parts.items() if part != "vision" for one in module.parameters()]
            for own in (vision, others):
                if fit_bf16(own):
                    for weight in own:
                        weight.data = weight.data.bfloat16() if weight.is_floating_point() else weight.data
        if adapted is not None:
            adapted.peft_config["default"].base_model_name_or_path = ".."  # relative to the adapters' directory
            adapted.save_pretrained(partial / ADAPTER_DIR)
            model = adapted.unload()
        if is_last and convert_tower_to_transformers(model):
            log_rank0("the model loads in transformers without llava_bridge")
        for part in (model.config, model.config.get_text_config(), model.generation_config):
            part.use_cache = True  # transformers' trainer disables it
        save_llava(model, partial)
        # transformers states the dtype of the first weight, which is the encoder's
        model.config.vision_config.dtype = model.model.vision_tower.dtype
        model.config.dtype = model.config.text_config.dtype = model.model.language_model.dtype
        model.config.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / "stage.json").write_text(json.dumps(summary))
        open_to_umask(partial)
        durable.replace(partial, work / name / "model")
        shutil.rmtree(work / name / CHECKPOINTS_DIR, ignore_errors=True)
    barrier()
