"""Validation during a stage: the loss and the exact match on held-out conversations, and the exact match on benchmarks.

The processes share the samples. The metrics are those of one process, up to rounding, and the training is the same with
and without validation.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from clips.data.invalid_samples import Invalid
from clips.parallel.distributed import all_gather_objects
from llava_bridge.conversation import IGNORE_INDEX
from llava_bridge.data.collator import ConversationDataset
from llava_bridge.data.sources import in_other_case
from llava_bridge.training.callback import HungWatch, StageProgress
from llava_bridge.training.launch import DistributedStopRequest, log_rank0
from llava_bridge.training.loss import MATCHES
from llava_bridge.training.stage_config import ValidationConfig
from llava_bridge.training.stage_trainer import StageTrainer, init_worker


def _in_other_case(questions: ConversationDataset) -> ConversationDataset:
    return ConversationDataset(list(in_other_case(questions.samples)), questions.chat, questions.max_length)


class HeldOut(Dataset):
    """The samples of one process. Those that only complete its last batches, and invalid ones, have no labels.

    Args:
        samples: of all processes.
        indices: the samples of this process.
        counted: the number of the first ``indices`` that count.
    """

    def __init__(self, samples: ConversationDataset, indices: Sequence[int], counted: int) -> None:
        self.samples, self.indices, self.counted = samples, indices, counted

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = self.samples[self.indices[position]]
        if position < self.counted and not item["invalid_samples"]:
            return item
        invalid = item["invalid_samples"][:1] if position < self.counted else []  # the others stand for this sample
        return {**item, "labels": [IGNORE_INDEX] * len(item["labels"]), "invalid_samples": invalid}


class StageValidation(TrainerCallback):
    """Measures the model every ``eval_steps`` steps and after the last one, unless a stop was requested.

    Args:
        config: with a source or benchmarks.
        samples: the selected ones of the source by the name "", and of each benchmark by its own.
        trainer: of the stage.
        progress: logs the metrics ``val_loss``, the mean over the supervised tokens, and ``val_exact_match``, the ratio
            of answers that greedy decoding would generate exactly, given the conversation before them; of a benchmark
            ``val_NAME_exact_match``, for which the first letter may have either case.
        stop: the run's stop request.
        hung: the stage's; each batch counts as a step.
    """

    def __init__(
        self,
        config: ValidationConfig,
        samples: Mapping[str, ConversationDataset],
        trainer: StageTrainer,
        progress: StageProgress,
        stop: DistributedStopRequest,
        hung: HungWatch,
    ) -> None:
        self.eval_steps = config.eval_steps
        self.trainer, self.progress, self.stop, self.hung = trainer, progress, stop, hung
        # Greedy decoding generates one answer, so that the matches of both cases are those of different questions.
        self.loaders = {
            name: [self._loader(each) for each in ([own, _in_other_case(own)] if name else [own])]
            for name, own in samples.items()
        }
        self._reported = False

    def _loader(self, samples: ConversationDataset) -> DataLoader:
        """Loads this process's samples."""
        args = self.trainer.args
        rank, processes = args.process_index, args.world_size
        own = range(rank, len(samples), processes)
        # A process with one sample fewer repeats its last: all must call the model equally often.
        padded = [*own, *[own[-1] if own else 0] * (-(-len(samples) // processes) - len(own))]
        return DataLoader(
            HeldOut(samples, padded, len(own)),
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
        found, invalid = torch.zeros(sum(map(len, self.loaders.values())), 4, dtype=torch.float64), list[Invalid]()
        try:
            for sums, loader in zip(found, itertools.chain(*self.loaders.values()), strict=True):
                for batch in loader:
                    if self.stop.of_any_process():
                        return None
                    invalid += batch.pop("invalid_samples")
                    sums += self._sums(model, batch)
                    self.hung.step_ended(saves=False)
        finally:
            model.train(was_training)
        gathered = all_gather_objects((found, invalid))
        self._report([sample for _, theirs in gathered for sample in theirs])
        sums = iter(torch.stack([theirs for theirs, _ in gathered]).sum(dim=0).tolist())
        metrics: dict[str, float] = {}
        for name, loaders in self.loaders.items():
            loss, tokens, matches, answers = next(sums)
            matches += sum(next(sums)[2] for _ in loaders[1:])
            prefix = f"val_{name}_" if name else "val_"
            metrics |= {} if name else {"val_loss": loss / max(tokens, 1)}
            metrics[f"{prefix}exact_match"] = matches / max(answers, 1)
        return metrics

    @torch.no_grad()
    def _sums(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Summed loss, supervised tokens, matches and answers of a batch, (4,)."""
        prepared = self.trainer._prepare_inputs(dict(batch))
        with self.trainer.compute_loss_context_manager():
            output = model(**prepared, num_items_in_batch=1, count_matches=True)
        loss: Tensor = output["loss"].double().cpu()
        return torch.cat([loss[None], torch.tensor([len(batch["supervised"])]), output[MATCHES].cpu()])

    def _report(self, invalid: Sequence[Invalid]) -> None:
        """Log the invalid samples, once."""
        if invalid and not self._reported:
            _, name, reason = min(invalid)
            log_rank0(f"{self.progress.stage}: validation without {len(invalid)} invalid samples, as {name}: {reason}")
        self._reported = True
