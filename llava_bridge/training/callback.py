"""What a stage does between steps: progress, checkpoints marked, frozen weights compared, requests to stop heard."""

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

_TOO_EASY = 0.02  # loss of a first step


class StageCallback(TrainerCallback):
    """HF Trainer's callback of a stage.

    Args:
        progress: where steps are logged.
        gather_invalid: the invalid samples that all processes have met.
        parts: of the model, by name.
        vocabulary: tokens that the LLM tells apart.
        stop: whether anybody wants the run to stop.
        begin: is called before the first step of a stage that does not go on from a checkpoint.
    """

    def __init__(
        self,
        progress: StageProgress,
        gather_invalid: Callable[[], InvalidSamples],
        parts: Mapping[Part, nn.Module],
        vocabulary: int,
        stop: DistributedStopRequest,
        begin: Callable[[], None],
    ) -> None:
        self.progress = progress
        self.gather_invalid = gather_invalid
        self.parts = parts
        self.vocabulary = vocabulary
        self.stop = stop
        self.hung = HungWatch(stop, progress.stage)
        self.stopped_by = 0
        self.begin: Callable[[], None] | None = begin
        self.before: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the frozen weights' fingerprints; an interrupted run goes on as the config of now says."""
        if self.begin is not None and state.global_step == 0:
            self.begin()
        self.begin = None  # and with it what it holds
        self.before = self._fingerprints()
        state.compute_steps(args, state.max_steps)  # logging_steps and save_steps of now, not of the checkpoint
        self.progress.begin(state.global_step, state.max_steps)
        self.hung.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if somebody asks for it."""
        if is_parent_dead():
            raise SystemExit("the command that started this training is gone")
        if self.stopped_by == 0 and (number := self.stop.of_any_process()):
            self.stopped_by = number
            control.should_save = control.should_training_stop = True
        self.hung.step_ended(saves=control.should_save)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the step down, and say if the first one's loss is odd."""
        if is_main_process() and logs and "loss" in logs:
            self.progress.log(state.global_step, logs)
            if state.global_step == 1 and (odd := first_loss_warning(logs["loss"], self.vocabulary)):
                log_rank0(f"{self.progress.stage}: {odd}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as whole."""
        invalid = self.gather_invalid()  # and so all processes have written their parts
        if is_main_process():
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", invalid, self.progress.seconds)
        if not self.stopped_by:
            self.hung.saved()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare what is frozen with what it was."""
        self.hung.end()
        for name, print_ in self._fingerprints().items():
            if print_ != self.before[name]:
                raise AssertionError(f"the frozen weights of the part '{name}' have changed")

    def _fingerprints(self) -> dict[str, str]:
        return {name: tensors_hash(frozen_tensors(module)) for name, module in self.parts.items()}


def first_loss_warning(loss: float, vocabulary: int) -> str | None:
    """What the loss of the first step says against the data or the LLM, None where it is as it should be."""
    guessing = math.log(vocabulary)
    if loss > guessing + 1:
        return (
            f"the first loss, {loss:.1f}, is above {guessing:.1f}, that of guessing among {vocabulary:,} tokens: "
            "is it the LLM's own tokenizer and chat_template? `llava-bridge data inspect` shows what is learned"
        )
    if loss < _TOO_EASY:
        return (
            f"the first loss is {loss:.4f}, as if the answers were known: are they in the questions, or was this LLM "
            "trained on these data? `llava-bridge data inspect` shows what is learned"
        )
    return None
