"""HF's Trainer of a stage: arguments, order of samples, learning rates by part; and what is called between steps."""

from __future__ import annotations

import atexit
import functools
import hashlib
import math
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from clips.commandline.progress import rate_text
from clips.commandline.signals import STOP_SIGNALS, StopRequest
from clips.core import durable
from clips.core.cache import TensorShards
from clips.core.durable import write_errors_as_user_errors
from clips.core.parent_death import default_workers, end_stuck_workers, end_with_parent
from clips.core.run_log import RunLog
from clips.errors import UserError, error_reason
from clips.loader.invalid_samples import Invalid, InvalidSamples
from llava_bridge.data.batches import LengthGroupedSampler, RandomOrder
from llava_bridge.training.checkpoints import mark_complete
from llava_bridge.training.inputs import MAX_GRAD_NORM, Inputs
from llava_bridge.training.launch import is_main_process, log_rank0
from llava_bridge.training.train_config import RATE_FIELDS, Part, StageConfig

LOG_INTERVAL_SECONDS = 5.0
LOG_NAMES = {"learning_rate": "lr"}
"""The names in our log of HF Trainer's values that have another one there."""


class StageTrainer(Trainer):
    """HF's Trainer with learning rates by part and counted invalid samples; loss and gradient must be finite."""

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
                rate = getattr(self.stage, RATE_FIELDS.get(part, "learning_rate")) or self.stage.learning_rate
                own = {names.pop(id(weight)): weight for weight in module.parameters() if id(weight) in names}
                for is_decayed, decay in ((True, self.stage.weight_decay), (False, 0.0)):
                    if weights := [weight for name, weight in own.items() if (name in decayed) == is_decayed]:
                        groups.append({"params": weights, "lr": rate, "weight_decay": decay})
            assert not names, names  # each weight is of a part
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, optimized)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Do nothing: checkpoints have DeepSpeed's state; the stage writes the model at its end."""

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
        self.check_invalid(self.invalid.add(inputs.pop("invalid_samples", [])))
        result = super().compute_loss(model, inputs, *arguments, **options)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        self.losses.append((self.state.global_step + 1, loss.detach()))
        return result

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *arguments: Any, **options: Any) -> None:
        """HF's; first the gradient is checked, and the losses since the last call before a checkpoint or a log line.

        DeepSpeed skips a step whose gradient is not finite without a word; its norm is then inf, or -1. Reading each
        loss in its step would keep the host from queueing the work that follows.
        """
        is_finite = grad_norm is None or 0 <= grad_norm < math.inf
        if not is_finite or self.control.should_log or self.control.should_save:
            self.check_losses()
        if not is_finite:
            raise self._not_finite("gradient's norm", grad_norm, self.state.global_step)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """HF's, with the epochs of the data: for HF the whole stage is one, as the sampler has all of its samples."""
        samples: Any = self.train_dataset
        self.state.epoch = self.state.global_step * self.stage.global_batch_size / len(samples)
        super().log(logs, start_time)

    def check_losses(self) -> None:
        """Raise UserError if a loss since the last call is not finite."""
        values = torch.stack([loss for _, loss in self.losses]).tolist() if self.losses else []
        for (step, _), loss in zip(self.losses, values, strict=True):
            if not math.isfinite(loss):
                raise self._not_finite("loss", loss, step)
        self.losses.clear()

    def _not_finite(self, name: str, value: float, step: int) -> UserError:
        return UserError(
            f"{self.stage_name}: the {name} is {value} in step {step}; earlier checkpoints are not affected; "
            f"a lower {self.stage_name}.learning_rate may help"
        )

    def gather_invalid(self) -> InvalidSamples:
        """The invalid samples of all processes, which call this together.

        Raises:
            UserError: too many.
        """
        self.check_invalid(self.invalid.gather())
        return self.invalid

    def check_invalid(self, new: list[Invalid]) -> None:
        """Log samples that have not been met before; raise a UserError if there are too many."""
        for line in self.invalid.lines(new):
            log_rank0(f"{self.stage_name}: {line}")
        self.invalid.check(self.stage_name, "max_invalid_ratio", self.max_invalid_ratio, len(self.train_dataset))  # type: ignore[arg-type]


def init_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Prepare a loader's worker: it ends with its process, and ignores signals; ``init`` is called last."""
    end_with_parent()  # else it holds the run's lock for seconds after a kill, and a resume is refused
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker_id)


atexit.register(end_stuck_workers)


def make_sampler(
    dataset: Any, stage: StageConfig, steps: int, seed: int, micro_batch_size: int, first_step: int = 0
) -> Sampler[int]:
    """The sampler of a stage with this number of ``steps``; it computes no order before ``first_step``."""
    total, skipped = steps * stage.global_batch_size, first_step * stage.global_batch_size
    if not stage.group_by_modality_length:
        return RandomOrder(len(dataset), total, seed, skipped)
    micro_batches = stage.global_batch_size // micro_batch_size
    return LengthGroupedSampler(dataset.sizes(), stage.global_batch_size, total, seed, micro_batches, skipped)


def training_arguments(
    inputs: Inputs, name: str, steps: int, folder: Path, *, universal: bool = False
) -> TrainingArguments:
    """HF Trainer's arguments for the stage ``name`` of this number of ``steps``, with its checkpoints in ``folder``.

    ``universal``: it resumes from a checkpoint in DeepSpeed's universal form.
    """
    config, stage, file = inputs.config, inputs.config.stage(name), inputs.deepspeed[name]
    if file.ignored:
        log_rank0(f"{name}: {file.name}: {' and '.join(file.ignored)} ignored, since the stage has settings for them")
    deepspeed = file.for_trainer
    if universal:
        deepspeed["checkpoint"] = {**deepspeed.get("checkpoint", {}), "load_universal": True}
    micro_batch_size, accumulation_steps = stage.micro_batches(inputs.processes)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation_steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.lr_scheduler_type,
        optim=stage.optim or TrainingArguments.default_optim,
        warmup_steps=math.ceil(stage.warmup_ratio * steps),
        weight_decay=stage.weight_decay,
        adam_beta2=stage.adam_beta2,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=config.precision == "bf16",
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
        raise UserError(f'{file.field}: {file.name}: expected "auto", got {differences}')
    return arguments


# ---------------------------------------------------------------- between the steps


class StageProgress:
    """Logs the steps of one stage of ``batch_size`` samples each.

    The steps of the run's trackers continue from stage to stage. ``start_time`` of the stage is on the clock
    ``time.monotonic``, without interruptions and lost work.
    """

    def __init__(self, stage: str, batch_size: int, run_log: RunLog, start_time: float) -> None:
        self.stage, self.batch_size, self.run_log, self.start_time = stage, batch_size, run_log, start_time
        self.last_loss = float("nan")
        self._total = self._first = self._steps_before = 0
        self._resume_time = self._last_line = 0.0
        self._validation: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Elapsed time of the stage, with the time before the checkpoint that it has resumed from."""
        return time.monotonic() - self.start_time

    def begin(self, step: int, total: int) -> None:
        """Start after ``step`` of ``total``; lines of later steps, from a lost attempt, are deleted."""
        self._first, self._total = step, total
        self._resume_time = time.monotonic()
        if not is_main_process():
            return
        rows = self.run_log.resume(lambda row: row["step"] <= step or row["stage"] != self.stage)
        self._steps_before = sum({row["stage"]: row["step"] for row in rows if row["stage"] != self.stage}.values())
        self.last_loss = next(
            (row["loss"] for row in reversed(rows) if row["stage"] == self.stage and "loss" in row), float("nan")
        )

    def add(self, validation: dict[str, float]) -> None:
        """Record metrics of a validation with the next step that is logged."""
        self._validation = validation

    def log(self, step: int, logs: dict[str, Any]) -> None:
        """Record all numbers of HF Trainer's ``logs`` after ``step``; print a line every few seconds and at the end."""
        now = time.monotonic()
        rate = (step - self._first) * self.batch_size / max(now - self._resume_time, 1e-9)
        self.last_loss = float(logs["loss"])
        validation, self._validation = self._validation, {}
        row = {
            "stage": self.stage,
            "step": step,
            "samples_seen": step * self.batch_size,
            **{LOG_NAMES.get(name, name): value for name, value in logs.items() if isinstance(value, int | float)},
            "samples_per_second": round(rate, 2),
            "time": round(time.time(), 2),
            **validation,
        }
        numbers = {f"{self.stage}/{name}": value for name, value in row.items() if isinstance(value, int | float)}
        self.run_log.write(row, self._steps_before + step, tracked=numbers)
        if validation or now - self._last_line >= LOG_INTERVAL_SECONDS or step == self._total:
            self._last_line = now
            left = (self._total - step) * self.batch_size / rate
            log_rank0(
                f"{self.stage}: step {step}/{self._total}  loss {self.last_loss:.4f}  {rate_text(rate, 'samples')}  "
                f"{int(left) // 60}:{int(left) % 60:02d} left"
                + "".join(f"  {name} {value:.4f}" for name, value in validation.items())
            )


class StageCallback(TrainerCallback):
    """HF Trainer's callback of a stage.

    ``gather_invalid`` returns the invalid samples of all processes; ``begin`` is called before the first step of a
    stage that does not resume from a checkpoint.
    """

    def __init__(
        self,
        progress: StageProgress,
        gather_invalid: Callable[[], InvalidSamples],
        parts: Mapping[Part, nn.Module],
        vocab_size: int,
        stop: StopRequest,
        begin: Callable[[], None],
    ) -> None:
        self.progress, self.gather_invalid = progress, gather_invalid
        self.parts, self.vocab_size = parts, vocab_size
        self.stop, self.stop_signal = stop, 0
        self.begin: Callable[[], None] | None = begin
        self.initial_hashes: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hash the frozen weights; a resumed run uses the intervals of its current config."""
        if self.begin is not None and state.global_step == 0:
            self.begin()
        self.begin = None  # frees the tensors that it holds
        self.initial_hashes = self._frozen_hashes()
        state.compute_steps(args, state.max_steps)  # logging_steps and save_steps of the config, not the checkpoint
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the last step, whose loss is the stage's final one; save and stop at a stop request."""
        control.should_log |= state.global_step == state.max_steps
        if self.stop_signal == 0 and (number := self.stop.of_any_process(args.device)):
            self.stop_signal = number
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Log the step, and a warning if the first loss is suspicious; HF's totals at the end have no loss."""
        if is_main_process() and logs and "loss" in logs:
            self.progress.log(state.global_step, logs)
            if state.global_step == 1 and (warning := first_loss_warning(logs["loss"], self.vocab_size)):
                log_rank0(f"{self.progress.stage}: {warning}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as complete."""
        invalid = self.gather_invalid()  # a collective: all processes have written their shards
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with write_errors_as_user_errors(checkpoint):
            if is_main_process() and self.progress.run_log.path.is_file():
                durable.sync(self.progress.run_log.path)
                durable.sync(self.progress.run_log.path.parent)  # its name
            mark_complete(checkpoint, invalid, self.progress.seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check that the frozen weights have not changed."""
        for name, digest in self._frozen_hashes().items():
            if digest != self.initial_hashes[name]:
                raise AssertionError(f"the frozen weights of the part '{name}' have changed")

    def _frozen_hashes(self) -> dict[str, str]:
        return {name: tensors_hash(frozen_tensors(module)) for name, module in self.parts.items()}


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that training must not change: frozen weights, and the buffers if all weights are frozen.

    Of a sharded weight this process's shard.
    """
    weights = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    all_frozen = len(weights) == len(list(module.parameters()))
    buffers = dict(module.named_buffers()) if all_frozen else {}
    return {name: getattr(value, "ds_tensor", value) for name, value in {**weights, **buffers}.items()}


def tensors_hash(values: dict[str, Tensor]) -> str:
    """SHA-256 of all ``values``, bit for bit."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_loss_warning(loss: float, vocab_size: int) -> str | None:
    """A warning if the first loss indicates a fault in the data or the LLM, else None."""
    chance = math.log(vocab_size)
    if loss > chance + 1:
        return (
            f"the first loss, {loss:.1f}, is above {chance:.1f}, that of guessing among {vocab_size:,} tokens: "
            "is it the LLM's own tokenizer and chat_template? `llava-bridge data inspect` shows the supervised tokens"
        )
    if loss < 0.02:
        return (
            f"the first loss is {loss:.4f}, as if the answers were known: are they in the questions, or was this LLM "
            "trained on this data? `llava-bridge data inspect` shows the supervised tokens"
        )
    return None


class FlushCallback(TrainerCallback):
    """Writes the collected features after each pass of ``steps`` over the data, and with each checkpoint."""

    def __init__(self, shards: TensorShards, steps: int) -> None:
        self.shards, self.steps = shards, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write after the last step of a pass."""
        if state.global_step % self.steps == 0:
            self.shards.flush()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write."""
        self.shards.flush()
