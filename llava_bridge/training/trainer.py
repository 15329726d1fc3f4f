"""HF's Trainer of a stage: its arguments, order of samples, learning rates by part, and checks of each step."""

from __future__ import annotations

import atexit
import functools
import math
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from clips.core.artifact import write_errors_as_user_errors
from clips.core.parent_death import default_workers, end_stuck_workers, end_with_parent
from clips.data.invalid_samples import Invalid, InvalidSamples
from clips.errors import UserError, error_reason
from llava_bridge.data.sampler import LengthGroupedSampler, RandomOrder
from llava_bridge.training.checks import MAX_GRAD_NORM, deepspeed_config
from llava_bridge.training.launch import log_rank0
from llava_bridge.training.setup import precision
from llava_bridge.training.train_config import LlavaTrainConfig, Part, StageConfig

_BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


class StageTrainer(Trainer):
    """HF's Trainer with learning rates by part, counted invalid samples, and an error at a non-finite loss."""

    def __init__(
        self,
        *,
        stage: StageConfig,
        stage_name: str,
        parts: Mapping[Part, nn.Module],
        sampler: Sampler[int],
        invalid: InvalidSamples,
        max_invalid_ratio: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.stage, self.stage_name, self.parts = stage, stage_name, parts
        self.sampler, self.invalid, self.max_invalid_ratio = sampler, invalid, max_invalid_ratio
        self.losses: list[tuple[int, Tensor]] = []  # not checked yet, with their steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def get_train_dataloader(self) -> Any:
        """HF's; its workers ignore signals, which schedulers send to all processes of a job."""
        loader: Any = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # torch's within accelerate's
        if inner.num_workers:
            inner.worker_init_fn = functools.partial(init_worker, inner.worker_init_fn)
        return loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """HF's AdamW with a learning rate for each part; biases and norms have no weight decay."""
        if self.optimizer is None:
            optimized: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(optimized))
            names = {id(weight): name for name, weight in optimized.named_parameters() if weight.requires_grad}
            groups = []
            for part, module in self.parts.items():
                own = {names.pop(id(weight)): weight for weight in module.parameters() if id(weight) in names}
                for is_decayed, decay in ((True, self.stage.weight_decay), (False, 0.0)):
                    if weights := [weight for name, weight in own.items() if (name in decayed) == is_decayed]:
                        groups.append({"params": weights, "lr": self.stage.peak_lr(part), "weight_decay": decay})
            assert not names, names  # each weight is of a part
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, optimized)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Do nothing: checkpoints have DeepSpeed's state; ``save_stage_model`` writes the model at the end."""

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """HF's, with one line for an error of the disk; the checkpoint before stays."""
        folder = self.args.output_dir
        assert folder is not None
        with write_errors_as_user_errors(folder):
            try:
                super()._save_checkpoint(*arguments, **options)
            except RuntimeError as error:  # of torch.save, which omits the system's reason
                frames = traceback.extract_tb(error.__traceback__)
                if all(frame.filename != torch.serialization.__file__ for frame in frames):
                    raise
                reason = f"{error_reason(error)}): is the disk full, or the size of files limited?"
                raise UserError(f"{folder}: cannot write a checkpoint ({reason}") from None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The mean loss over the supervised tokens of the global batch."""
        self._check_invalid(self.invalid.add(inputs.pop("invalid_samples", [])))
        result = super().compute_loss(model, inputs, *arguments, **options)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        self.losses.append((self.state.global_step + 1, loss.detach()))
        return result

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """HF's; first the losses since the last call are checked, so that no checkpoint has weights of a wrong one.

        Reading each loss in its step would keep the host from queueing the work that follows.
        """
        if self.control.should_log or self.control.should_save:
            self.check_losses()
        super()._maybe_log_save_evaluate(*arguments, **options)

    def check_losses(self) -> None:
        """Raise UserError if a loss since the last call is not finite."""
        values = torch.stack([loss for _, loss in self.losses]).tolist() if self.losses else []
        for (step, _), loss in zip(self.losses, values, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"{self.stage_name}: the loss is {loss} in step {step}; earlier checkpoints are not affected; "
                    f"a lower {self.stage_name}.learning_rate may help"
                )
        self.losses.clear()

    def gather_invalid(self) -> InvalidSamples:
        """The invalid samples of all processes, which call this together.

        Raises:
            UserError: too many.
        """
        self._check_invalid(self.invalid.gather())
        return self.invalid

    def _check_invalid(self, new: list[Invalid]) -> None:
        """Report ``new`` invalid samples; UserError if there are too many."""
        for line in self.invalid.lines(new):
            log_rank0(f"{self.stage_name}: {line}")
        self.invalid.check(self.stage_name, "max_invalid_ratio", self.max_invalid_ratio, len(self.train_dataset))  # type: ignore[arg-type]


def init_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Prepare a loader's worker: it ends with its process, and ignores signals; ``init`` is called last."""
    end_with_parent()  # else it holds the run's lock for seconds after a kill, and a resume is refused
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker_id)


atexit.register(end_stuck_workers)


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
        dataloader_num_workers=default_workers() if config.num_workers is None else config.num_workers,
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
