"""Validation during the last stage: loss and exact match on held-out conversations, exact match on benchmarks.

The processes share the samples. The metrics are those of one process, up to rounding, and the training is the same with
and without validation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from clips.commandline.signals import StopRequest
from clips.loader.invalid_samples import Invalid
from clips.parallel.distributed import all_gather_objects
from llava_bridge.conversation import IGNORE_INDEX
from llava_bridge.data.batches import ConversationDataset
from llava_bridge.data.sources import in_other_case
from llava_bridge.training.launch import log_rank0
from llava_bridge.training.loss import MATCHES
from llava_bridge.training.train_config import ValidationConfig
from llava_bridge.training.trainer import StageProgress, StageTrainer, init_worker

_EMPTY: dict[str, Any] = {"input_ids": [0], "labels": [IGNORE_INDEX], "images": []}


class HeldOut(Dataset):
    """The samples of one process; invalid ones, and those that complete the ``count`` of all processes, are empty."""

    def __init__(self, samples: ConversationDataset, indices: Sequence[int], count: int) -> None:
        self.samples, self.indices, self.count = samples, indices, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Any]:
        if position >= len(self.indices):
            return {**_EMPTY, "invalid_samples": []}
        item = self.samples.read(self.indices[position])
        return {**item, "invalid_samples": []} if isinstance(item, dict) else {**_EMPTY, "invalid_samples": [item]}


class StageValidation(TrainerCallback):
    """Measures the model every ``eval_steps`` steps and after the last one, unless a stop was requested.

    Logs ``val_loss``, the mean over the supervised tokens, and ``val_exact_match``, the ratio of answers that greedy
    decoding would generate exactly, given the conversation before them; of a benchmark ``val_NAME_exact_match``, for
    which the first letter may have either case. ``samples`` are the source's by the name "", and each benchmark's by
    its own.
    """

    def __init__(
        self,
        config: ValidationConfig,
        samples: Mapping[str, ConversationDataset],
        trainer: StageTrainer,
        progress: StageProgress,
        stop: StopRequest,
    ) -> None:
        self.eval_steps = config.eval_steps
        self.trainer, self.progress, self.stop = trainer, progress, stop
        self.loaders: dict[str, list[DataLoader]] = {}
        for name, own in samples.items():
            self.loaders[name] = [self._loader(own)]
            if name:
                # Greedy decoding generates one answer, so that the matches of both cases are of different questions.
                other = ConversationDataset(list(in_other_case(own.samples)), own.chat, own.max_length)
                self.loaders[name].append(self._loader(other))
        self._reported = False

    def _loader(self, samples: ConversationDataset) -> DataLoader:
        """Loads this process's samples."""
        args = self.trainer.args
        rank, processes = args.process_index, args.world_size
        count = -(-len(samples) // processes)  # all processes must call the model equally often
        return DataLoader(
            HeldOut(samples, range(rank, len(samples), processes), count),
            batch_size=args.per_device_train_batch_size,
            collate_fn=self.trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            worker_init_fn=functools.partial(init_worker, None),
            generator=torch.Generator(),  # the training's own generates its dropout
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure if it is time, and log the metrics with the step."""
        if state.global_step % self.eval_steps and state.global_step != state.max_steps:
            return
        if (metrics := self.measure()) is not None:
            self.progress.add(metrics)
            control.should_log = True

    def measure(self) -> dict[str, float] | None:
        """The metrics by name; None if a stop is requested. A collective call."""
        model: Any = self.trainer.model_wrapped
        was_training, _ = model.training, model.eval()
        metrics: dict[str, float] = {}
        try:
            for name, loaders in self.loaders.items():
                if (sums := self._sums(model, name, loaders)) is None:
                    return None
                (loss, tokens, matches, answers), *others = sums
                if not name and tokens:
                    metrics["val_loss"] = loss / tokens
                if answers:  # none if all samples are invalid
                    right = matches + sum(each[2] for each in others)
                    metrics[f"val_{name}_exact_match" if name else "val_exact_match"] = right / answers
        finally:
            model.train(was_training)
        self._reported = True
        return metrics

    @torch.no_grad()
    def _sums(self, model: Any, name: str, loaders: Sequence[DataLoader]) -> list[list[float]] | None:
        """For each of the loaders summed loss, supervised tokens, matches and answers, over all processes.

        None if a stop is requested. Invalid samples are reported in the first validation.
        """
        own_sums, invalid = torch.zeros(len(loaders), 4, dtype=torch.float64), list[Invalid]()
        for loader_sums, loader in zip(own_sums, loaders, strict=True):
            for batch in loader:
                if self.stop.of_any_process(self.trainer.args.device):
                    return None
                skipped = batch.pop("invalid_samples")
                invalid += skipped if loader is loaders[0] else []  # the others have the same samples
                prepared = self.trainer._prepare_inputs(dict(batch))
                with self.trainer.compute_loss_context_manager():
                    output = model(**prepared, num_items_in_batch=1, count_matches=True)
                loss: Tensor = output["loss"].double().cpu()
                loader_sums += torch.cat([loss[None], torch.tensor([len(batch["supervised"])]), output[MATCHES].cpu()])
        gathered = all_gather_objects((own_sums, invalid))
        invalid = [sample for _, theirs in gathered for sample in theirs]
        if invalid and not self._reported:
            _, sample, reason = min(invalid)
            of = f" of {name}" if name else ""
            log_rank0(
                f"{self.progress.stage}: validation{of} without {len(invalid)} invalid samples, as {sample}: {reason}"
            )
        sums: list[list[float]] = torch.stack([theirs for theirs, _ in gathered]).sum(dim=0).tolist()
        return sums
