"""One stage of training: what trains and what is frozen, HF's Trainer under DeepSpeed, the saved model.

The training step itself is HF Trainer's; :class:`StageTrainer` adds what a LLaVA needs around its loss.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback

from clips.data.invalid_samples import Invalid, InvalidSamples
from clips.errors import UserError
from clips.model.precision import resolve_precision
from clips.parallel.distributed import start_processes
from clips.parallel.fsdp import shard_model
from llava_bridge.data.sampler import LengthGroupedSampler, RandomOrder
from llava_bridge.model.modeling_vision import EncoderVisionModel
from llava_bridge.training.callback import StageCallback
from llava_bridge.training.checkpoints import (
    convert_to_universal,
    last_checkpoint,
    load_elapsed_seconds,
    load_invalid_samples,
    needs_universal_conversion,
)
from llava_bridge.training.fsdp_trainer import ShardedTrainer
from llava_bridge.training.launch import DistributedStopRequest, deepspeed_config, exit_after_stop, log_rank0
from llava_bridge.training.lora import add_lora
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.progress import StageProgress
from llava_bridge.training.quantization import numel_unpacked, quantize
from llava_bridge.training.save_model import save_stage_model
from llava_bridge.training.setup import StageSetup, setup_stage, split_parts
from llava_bridge.training.sharded_weights import finer_than_bf16, frozen_fits_bf16, set_masters
from llava_bridge.training.train_config import LlavaTrainConfig, Part, StageConfig, Strategy
from llava_bridge.training.work_dir import CHECKPOINTS_DIR


def train_stage(config: LlavaTrainConfig, name: str, work: Path, stop: DistributedStopRequest) -> None:
    """Run stage ``name`` and leave its model in ``work/name/model``; called in every process.

    Raises:
        UserError: parts or data do not fit, too many samples cannot be used, or the loss is not finite.
        SystemExit: the run was stopped; its state is saved.
    """
    started = time.monotonic()
    stage, folder = config.stage(name), work / name
    setup = setup_stage(config, name, work)
    torch.manual_seed(config.seed)  # of adapters, whatever the stages before have drawn
    half = precision(config) == "bf16"
    set_trainable_parts(setup, stage, name, torch.bfloat16 if half else torch.float32)
    if stage.cache_vision_features:
        enable_feature_cache(setup)
    if stage.activation_checkpointing:
        recompute_layers(setup.model)
    steps = num_training_steps(len(setup.dataset), stage)
    _announce(setup, config, name, steps)
    parts = [module for part, module in setup.parts.items() if part != "vision"]  # the encoder keeps its own precision
    rounded = half and not all(frozen_fits_bf16(module) for module in parts)
    start = last_checkpoint(folder / CHECKPOINTS_DIR)
    progress = StageProgress(
        name, stage.global_batch_size, work / "metrics.jsonl", started - load_elapsed_seconds(start)
    )
    if reshaped := start is not None and needs_universal_conversion(start):
        convert_to_universal(start)
    args = training_arguments(config, stage, steps, folder / CHECKPOINTS_DIR, universal=reshaped)
    sharded = config.launch.strategy == "fsdp"
    model = _to_train(setup, half=half, sharded=sharded, some_call_encoder=stage.cache_vision_features)
    masters = finer_than_bf16(setup.model) if half and not sharded else {}
    trainer = TRAINERS[config.launch.strategy](
        stage=stage,
        stage_name=name,
        parts=setup.parts,
        order=order_of(setup.dataset, stage, steps, config.seed, args.per_device_train_batch_size),
        invalid=load_invalid_samples(start),
        max_invalid_ratio=config.max_invalid_ratio,
        model=model,
        args=args,
        train_dataset=setup.dataset,
        data_collator=setup.collator,
    )
    vocabulary = setup.model.get_input_embeddings().num_embeddings
    begin = functools.partial(set_masters, setup.model, masters)
    callback = StageCallback(progress, trainer.gather_invalid, setup.parts, vocabulary, stop, begin)
    del begin, masters
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    with contextlib.nullcontext() if sharded else frozen_encoder_apart(setup):
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    if callback.stopped_by:
        log_rank0(f"{name}: stopped after step {trainer.state.global_step}; the same command goes on")
        exit_after_stop(callback.stopped_by)
    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would load every further model in parts
    summary = _summary(trainer, stage, progress)
    last = name == config.stages[-1]
    again = functools.partial(setup_stage, config, name, work)
    save_stage_model(setup, folder, summary, lora=stage.lora, again=again, rounded=rounded, half=half, last=last)
    _free(trainer, setup)


def _to_train(setup: StageSetup, *, half: bool, sharded: bool, some_call_encoder: bool) -> nn.Module:
    """The model with its loss, in shards if they are FSDP's."""
    model: nn.Module = LlavaLoss(setup.model) if "vision" in setup.parts else setup.model
    if not sharded:
        return model
    towers = [part for part in setup.parts.values() if isinstance(part, EncoderVisionModel)]
    unsharded = towers if some_call_encoder else []  # only those who miss a picture call it
    model = shard_model(model, start_processes(), bf16=half, exact=towers, unsharded=unsharded)
    if "vision" in setup.parts:
        setup.parts.update(split_parts(setup.model))  # a weight beside modules is another one now
    return model


def set_trainable_parts(setup: StageSetup, stage: StageConfig, name: str, compute: torch.dtype = torch.float32) -> None:
    """Let gradients reach the parts that train, or their adapters, and nothing else.

    Args:
        setup: what the stage begins with.
        stage: its settings.
        name: its name.
        compute: in which precision weights of 4 bits are multiplied.
    """
    setup.model.requires_grad_(False)
    if stage.lora is not None:
        if stage.lora.quantization is not None:
            quantize(setup.model, stage.lora.quantization, compute)
        add_lora(setup.model, stage.lora)
    adapted = () if stage.lora is None else stage.lora.apply_to
    for part in stage.trained(name):
        if part not in adapted:
            setup.parts[part].requires_grad_(True)


def recompute_layers(model: Any) -> None:
    """Let each layer of a transformers model keep its input only, and compute the rest again in the backward pass."""
    named = "activation_checkpointing_enable"  # newer transformers' name for it
    getattr(model, named, model.gradient_checkpointing_enable)()


def enable_feature_cache(setup: StageSetup) -> None:
    """Let the frozen encoder look its features up.

    Raises:
        UserError: the tower is transformers' own.
    """
    tower = setup.model.model.vision_tower
    if not isinstance(tower, EncoderVisionModel):
        raise UserError("cache_vision_features: expected false, as the vision tower of this LLaVA is transformers' own")
    tower.keep_outputs(setup.model.config.vision_feature_layer)


@contextlib.contextmanager
def frozen_encoder_apart(setup: StageSetup) -> Iterator[None]:
    """Meanwhile DeepSpeed does not find a frozen encoder in the model, which has and calls it as before.

    DeepSpeed would round its weights to bf16, and under ZeRO-3 cut them. So every process has the whole of it in the
    precision in which it was loaded, whatever the way to share the rest.
    """
    tower = setup.parts.get("vision")
    if tower is None or any(weight.requires_grad for weight in tower.parameters()):
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
        model._modules.update({name: model._modules.pop(name, tower) for name in before})  # in the order that it had


def _announce(setup: StageSetup, config: LlavaTrainConfig, name: str, steps: int) -> None:
    stage = config.stage(name)
    for line in setup.mixture:
        log_rank0(f"{name}: {line}")
    for part, module in setup.parts.items():
        count = sum(numel_unpacked(weight) for weight in module.parameters())
        learns = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        if learns in (0, count):
            log_rank0(f"{name}: {part} {'trains' if learns else 'frozen'}, {count:,} parameters")
        else:
            log_rank0(f"{name}: {part} trains {learns:,} parameters of adapters beside {count - learns:,} frozen ones")
    log_rank0(
        f"{name}: {len(setup.dataset):,} samples, {steps} steps of {stage.global_batch_size}, {precision(config)}"
    )


def num_training_steps(samples: int, stage: StageConfig) -> int:
    """Optimizer steps of a stage; a batch may end one epoch and begin the next."""
    return stage.max_steps or max(1, math.ceil(stage.num_epochs * samples / stage.global_batch_size))


def order_of(dataset: Any, stage: StageConfig, steps: int, seed: int, micro_batch_size: int) -> Sampler[int]:
    """The order in which a stage of so many ``steps`` sees its samples."""
    total = steps * stage.global_batch_size
    if not stage.group_by_modality_length:
        return RandomOrder(len(dataset), total, seed)
    return LengthGroupedSampler(
        dataset.sizes(), stage.global_batch_size, total, seed, stage.global_batch_size // micro_batch_size
    )


def precision(config: LlavaTrainConfig) -> Literal["fp32", "bf16"]:
    """What to compute in on this machine."""
    return resolve_precision(config.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))[0]


class StageTrainer(Trainer):
    """HF's Trainer with a LLaVA's cares: rates by part, invalid samples counted, a non-finite loss stops the step."""

    def __init__(
        self,
        *,
        stage: StageConfig,
        stage_name: str,
        parts: Mapping[Part, nn.Module],
        order: Sampler[int],
        invalid: InvalidSamples,
        max_invalid_ratio: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.stage = stage
        self.stage_name = stage_name
        self.parts = parts
        self.order = order
        self.invalid = invalid
        self.max_invalid_ratio = max_invalid_ratio

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def get_train_dataloader(self) -> Any:
        """HF's; what schedulers send to all processes of a job does not end those that read data."""
        loader: Any = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's stands around torch's
        if inner.num_workers:
            inner.worker_init_fn = functools.partial(_begin_worker, inner.worker_init_fn)
        return loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """HF's AdamW, each part at its own rate; biases and norms do not decay."""
        if self.optimizer is None:
            whole: Any = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, whole)
            decays = set(self.get_decay_parameter_names(whole))
            self.optimizer = kind(optimizer_param_groups(whole, self.parts, self.stage, decays), **options)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: a checkpoint has DeepSpeed's state; `training.saving` writes the model at the end."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The mean loss over the learned tokens of the whole batch, over all processes."""
        self._judge(self.invalid.add(inputs.pop("skipped", [])))
        result = super().compute_loss(model, inputs, *arguments, **options)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            raise UserError(
                f"{self.stage_name}: the loss is {loss.item()} in step {self.state.global_step + 1}, "
                f"before which nothing is lost; a lower {self.stage_name}.learning_rate may help"
            )
        return result

    def gather_invalid(self) -> InvalidSamples:
        """The invalid samples that all processes have met, which call it together.

        Raises:
            UserError: too many.
        """
        self._judge(self.invalid.gather())
        return self.invalid

    def _judge(self, new: list[Invalid]) -> None:
        """Report ``new`` invalid samples, and stop the stage at too many."""
        for line in self.invalid.lines(new):
            log_rank0(f"{self.stage_name}: {line}")
        self.invalid.check(self.stage_name, "max_invalid_ratio", self.max_invalid_ratio, len(self.train_dataset))  # type: ignore[arg-type]


class ShardedStageTrainer(ShardedTrainer, StageTrainer):
    """The same under FSDP2."""


TRAINERS: dict[Strategy, type[StageTrainer]] = {"deepspeed": StageTrainer, "fsdp": ShardedStageTrainer}


def _begin_worker(begin: Callable[[int], None] | None, number: int) -> None:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    if begin is not None:
        begin(number)


def optimizer_param_groups(
    model: nn.Module, parts: Mapping[Part, nn.Module], stage: StageConfig, decays: set[str]
) -> list[dict[str, Any]]:
    """The weights that learn, by part and by whether they decay, with their peak learning rates."""
    names = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    groups = []
    for part, module in parts.items():
        own = {names.pop(id(weight)): weight for weight in module.parameters() if id(weight) in names}
        for decay, chosen in (
            (stage.weight_decay, [weight for name, weight in own.items() if name in decays]),
            (0.0, [weight for name, weight in own.items() if name not in decays]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": stage.rate(part), "weight_decay": decay})
    assert not names, names
    return groups


def training_arguments(
    config: LlavaTrainConfig, stage: StageConfig, steps: int, folder: Path, *, universal: bool = False
) -> TrainingArguments:
    """What HF's Trainer is told of a stage of so many ``steps``, with its checkpoints in ``folder``.

    ``universal`` says that it goes on from a checkpoint which `make_universal` has made.
    """
    processes = int(os.environ["WORLD_SIZE"])
    deepspeed = deepspeed_config(config.launch.deepspeed) if config.launch.strategy == "deepspeed" else None
    if deepspeed is not None and universal:
        deepspeed["checkpoint"] = {**deepspeed.get("checkpoint", {}), "load_universal": True}
    micro = stage.micro_batch_size or stage.global_batch_size // processes
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=stage.global_batch_size // (micro * processes),
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(stage.warmup_ratio * steps),
        weight_decay=stage.weight_decay,
        adam_beta2=stage.adam_beta2,
        bf16=deepspeed is not None and precision(config) == "bf16",  # FSDP's own policy does it
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


def _summary(trainer: StageTrainer, stage: StageConfig, progress: StageProgress) -> dict[str, Any]:
    return {
        "steps": trainer.state.global_step,
        "samples_seen": trainer.state.global_step * stage.global_batch_size,
        "loss": progress.last_loss,
        "skipped": trainer.gather_invalid().count,
        "seconds": round(progress.seconds, 2),
    }


def _free(trainer: StageTrainer, setup: StageSetup) -> None:
    """Let go of the DeepSpeed engine and the model before the next stage makes its own."""
    engine: Any = trainer.deepspeed
    if engine is not None:
        engine.destroy()
    trainer.accelerator.free_memory()
    for name in ("model", "model_wrapped", "deepspeed"):
        setattr(trainer, name, None)
    setup.model = None
    setup.parts.clear()
    gc.collect()
