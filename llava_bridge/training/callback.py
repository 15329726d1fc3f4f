"""HF Trainer's callback of a stage: progress, checkpoint markers, stop requests, comparison of frozen weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from clips.commandline.signals import StopRequest
from clips.core import durable
from clips.core.artifact import write_errors_as_user_errors
from clips.core.run_log import RunLog
from clips.data.invalid_samples import InvalidSamples
from llava_bridge.training.checkpoints import mark_complete
from llava_bridge.training.launch import is_main_process, log_rank0
from llava_bridge.training.sharded_weights import frozen_tensors, tensors_hash
from llava_bridge.training.train_config import Part

LOG_INTERVAL_SECONDS = 5.0


class StageProgress:
    """Logs the steps of one stage.

    Args:
        stage: its name.
        batch_size: samples per step.
        run_log: the run's, also of other stages; the steps of its trackers continue from stage to stage.
        start_time: of the stage, on the clock ``time.monotonic``, without interruptions and lost work.
    """

    def __init__(self, stage: str, batch_size: int, run_log: RunLog, start_time: float) -> None:
        self.stage = stage
        self.batch_size = batch_size
        self.run_log = run_log
        self.start_time = start_time
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
        """Record HF Trainer's ``logs`` after ``step``; print a line every few seconds and at the end."""
        now = time.monotonic()
        rate = (step - self._first) * self.batch_size / max(now - self._resume_time, 1e-9)
        self.last_loss = float(logs["loss"])
        validation, self._validation = self._validation, {}
        row = {
            "stage": self.stage,
            "step": step,
            "samples_seen": step * self.batch_size,
            "loss": self.last_loss,
            "lr": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
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
                f"{self.stage}: step {step}/{self._total}  loss {self.last_loss:.4f}  {rate:.0f} samples/s  "
                f"{int(left) // 60}:{int(left) % 60:02d} left"
                + "".join(f"  {name} {value:.4f}" for name, value in validation.items())
            )


_SUSPICIOUS_LOSS = 0.02  # of a first step


class StageCallback(TrainerCallback):
    """HF Trainer's callback of a stage.

    Args:
        progress: logs the steps.
        gather_invalid: returns the invalid samples of all processes.
        parts: the model's parts by name.
        vocab_size: the LLM's.
        stop: the run's stop request.
        begin: called before the first step of a stage that does not resume from a checkpoint.
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
        self.progress = progress
        self.gather_invalid = gather_invalid
        self.parts = parts
        self.vocab_size = vocab_size
        self.stop = stop
        self.stop_signal = 0
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
        """Save and stop at a stop request."""
        if self.stop_signal == 0 and (number := self.stop.of_any_process(args.device)):
            self.stop_signal = number
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Log the step, and a warning if the first loss is suspicious."""
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
            mark_complete(checkpoint, invalid, self.progress.seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check that the frozen weights have not changed."""
        for name, digest in self._frozen_hashes().items():
            if digest != self.initial_hashes[name]:
                raise AssertionError(f"the frozen weights of the part '{name}' have changed")

    def _frozen_hashes(self) -> dict[str, str]:
        return {name: tensors_hash(frozen_tensors(module)) for name, module in self.parts.items()}


def first_loss_warning(loss: float, vocab_size: int) -> str | None:
    """A warning if the first loss indicates a fault in the data or the LLM, else None."""
    chance = math.log(vocab_size)
    if loss > chance + 1:
        return (
            f"the first loss, {loss:.1f}, is above {chance:.1f}, that of guessing among {vocab_size:,} tokens: "
            "is it the LLM's own tokenizer and chat_template? `llava-bridge data inspect` shows the supervised tokens"
        )
    if loss < _SUSPICIOUS_LOSS:
        return (
            f"the first loss is {loss:.4f}, as if the answers were known: are they in the questions, or was this LLM "
            "trained on this data? `llava-bridge data inspect` shows the supervised tokens"
        )
    return None
