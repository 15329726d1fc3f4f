"""HF Trainer's callback of a stage: progress, checkpoint markers, stop requests, comparison of frozen weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from clips.data.invalid_samples import InvalidSamples
from llava_bridge.training.checkpoints import mark_complete
from llava_bridge.training.hung import HungWatch
from llava_bridge.training.launch import DistributedStopRequest, is_main_process, is_parent_dead, log_rank0
from llava_bridge.training.progress import StageProgress
from llava_bridge.training.sharded_weights import frozen_tensors, tensors_hash
from llava_bridge.training.train_config import Part

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
        stop: DistributedStopRequest,
        begin: Callable[[], None],
    ) -> None:
        self.progress = progress
        self.gather_invalid = gather_invalid
        self.parts = parts
        self.vocab_size = vocab_size
        self.stop = stop
        self.hung = HungWatch(stop, progress.stage)
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
        self.hung.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop at a stop request."""
        if is_parent_dead():
            raise SystemExit("the command that started this training has ended")
        if self.stop_signal == 0 and (number := self.stop.of_any_process()):
            self.stop_signal = number
            control.should_save = control.should_training_stop = True
        self.hung.step_ended(saves=control.should_save)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Log the step, and a warning if the first loss is suspicious."""
        if is_main_process() and logs and "loss" in logs:
            self.progress.log(state.global_step, logs)
            if state.global_step == 1 and (warning := first_loss_warning(logs["loss"], self.vocab_size)):
                log_rank0(f"{self.progress.stage}: {warning}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as complete."""
        invalid = self.gather_invalid()  # a collective: all processes have written their shards
        if is_main_process():
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", invalid, self.progress.seconds)
        if not self.stop_signal:
            self.hung.saved()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check that the frozen weights have not changed."""
        self.hung.end()
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
