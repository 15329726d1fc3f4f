"""One stage of training: what trains and what is frozen, HF's Trainer under DeepSpeed, the saved model.

The training step itself is HF Trainer's; :class:`StageTrainer` adds what a LLaVA needs around its loss.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from clips.artifact import write_file
from clips.errors import UserError
from clips.precision import choose_precision
from llava_bridge.assembly import make_stock
from llava_bridge.bad_samples import BadSamples
from llava_bridge.config import StageConfig, TrainConfig
from llava_bridge.data.order import GroupedOrder
from llava_bridge.launch import command_is_gone, deepspeed_config, is_main_process, report
from llava_bridge.processes import barrier
from llava_bridge.progress import Progress
from llava_bridge.setup import Setup, set_up
from llava_bridge.workspace import CHECKPOINTS, COMPLETE

_TOO_EASY = 0.02  # loss of a first step

TRAINS: dict[str, tuple[str, ...]] = {
    "pretrain": ("llm",),
    "align": ("projector",),
    "instruct": ("projector", "llm"),
}
"""The parts of the model that each stage trains; all others are frozen."""


def train_stage(config: TrainConfig, name: str, work: Path) -> None:
    """Run stage ``name`` and leave its model in ``work/name/model``; called in every process.

    Raises:
        UserError: parts or data do not fit, too many samples cannot be used, or the loss is not finite.
    """
    started = time.monotonic()
    stage = config.stage(name)
    setup = set_up(config, name, work)
    freeze(setup.parts, TRAINS[name])
    steps = total_steps(len(setup.dataset), stage)
    for part, module in setup.parts.items():
        trains = "trains" if part in TRAINS[name] else "frozen"
        report(f"{name}: {part} {trains}, {sum(weight.numel() for weight in module.parameters()):,} parameters")
    report(f"{name}: {len(setup.dataset):,} samples, {steps} steps of {stage.batch_size}, {precision(config)}")
    folder = work / name
    start = last_checkpoint(folder / CHECKPOINTS)
    bad = BadSamples(name, config.max_bad_share * len(setup.dataset), bad_before(start))
    trainer = StageTrainer(
        stage_name=name,
        order=GroupedOrder(setup.dataset.sizes(), stage.batch_size, steps * stage.batch_size, config.seed),
        bad=bad,
        model=setup.model,
        args=_arguments(config, stage, steps, folder / CHECKPOINTS),
        train_dataset=setup.dataset,
        data_collator=setup.collator,
    )
    progress = Progress(name, stage.batch_size, work / "metrics.jsonl")
    trainer.remove_callback(PrinterCallback)
    vocabulary = setup.model.get_input_embeddings().num_embeddings
    trainer.add_callback(_Callback(progress, bad, _frozen(setup.parts, TRAINS[name]), vocabulary))
    trainer.train(resume_from_checkpoint=None if start is None else str(start))
    _save(setup, folder, _summary(trainer, stage, progress, started), last=name == config.stages[-1])
    _free(trainer, setup)


def freeze(parts: Mapping[str, nn.Module], trains: tuple[str, ...]) -> None:
    """Let gradients reach the parts that train and no others."""
    for module in parts.values():
        module.requires_grad_(False)
    for name in trains:
        parts[name].requires_grad_(True)


def total_steps(samples: int, stage: StageConfig) -> int:
    """Optimizer steps of a stage; a batch may end one epoch and begin the next."""
    return stage.steps or max(1, math.ceil(stage.epochs * samples / stage.batch_size))


def precision(config: TrainConfig) -> Literal["fp32", "bf16"]:
    """What to compute in on this machine."""
    return choose_precision(config.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))[0]


class StageTrainer(Trainer):
    """HF's Trainer with a LLaVA's cares: bad samples are counted, a non-finite loss stops the step."""

    def __init__(self, *, stage_name: str, order: GroupedOrder, bad: BadSamples, **options: Any) -> None:
        super().__init__(**options)
        self.stage_name = stage_name
        self.order = order
        self.bad = bad

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedOrder:
        return self.order

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """HF's loss (mean over the learnt tokens of the whole batch, over all processes)."""
        self.bad.add(inputs.pop("skipped", []))
        result = super().compute_loss(model, inputs, *arguments, **options)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            raise UserError(
                f"{self.stage_name}: the loss is {loss.item()} in step {self.state.global_step + 1}, "
                f"before which nothing is lost; a lower {self.stage_name}.lr may help"
            )
        if "input_ids" in inputs and "pixel_values" not in inputs and not isinstance(result, tuple):
            # Without pictures the projector gets no gradient, and processes that wait for it would hang.
            return loss + 0.0 * sum(weight.sum() for weight in _projector(model))
        return result


def _projector(model: nn.Module) -> list[Tensor]:
    return [
        weight for name, weight in model.named_parameters() if "multi_modal_projector" in name and weight.requires_grad
    ]


class _Callback(TrainerCallback):
    """Progress, complete checkpoints marked, frozen weights compared."""

    def __init__(self, progress: Progress, bad: BadSamples, frozen: Mapping[str, nn.Module], vocabulary: int) -> None:
        self.progress = progress
        self.vocabulary = vocabulary
        self.bad = bad
        self.frozen = frozen
        self.encoder = {name: value.clone() for name, value in frozen["vision"].state_dict().items()} if frozen else {}
        self.before: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.encoder:  # DeepSpeed has rounded it if it trains in bf16
            self.frozen["vision"].float().load_state_dict(self.encoder)
        self.before = {name: fingerprint(module) for name, module in self.frozen.items()}
        state.compute_steps(args, state.max_steps)  # log_every and checkpoint_every of now, not of the checkpoint
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if command_is_gone():
            raise SystemExit("the command that started this training is gone")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if is_main_process() and logs and "loss" in logs:
            self.progress.log(state.global_step, logs)
            if state.global_step == 1 and (odd := odd_first_loss(logs["loss"], self.vocabulary)):
                report(f"{self.progress.stage}: {odd}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        bad = self.bad.gather()  # and so all processes have written their parts
        if is_main_process():
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", bad)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for name, module in self.frozen.items():
            if fingerprint(module) != self.before[name]:
                raise AssertionError(f"the weights of the frozen part '{name}' have changed")


def odd_first_loss(loss: float, vocabulary: int) -> str | None:
    """What the loss of the first step says against the data or the LLM, None where it is as it should be."""
    guessing = math.log(vocabulary)
    if loss > guessing + 1:
        return (
            f"the first loss, {loss:.1f}, is above {guessing:.1f}, that of guessing among {vocabulary:,} tokens: "
            "is it the LLM's own tokenizer and chat_template? `llava-bridge data inspect` shows what is learnt"
        )
    if loss < _TOO_EASY:
        return (
            f"the first loss is {loss:.4f}, as if the answers were known: are they in the questions, or was this LLM "
            "trained on these data? `llava-bridge data inspect` shows what is learnt"
        )
    return None


def _frozen(parts: Mapping[str, nn.Module], trains: tuple[str, ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in parts.items() if name not in trains}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers, bit for bit."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _arguments(config: TrainConfig, stage: StageConfig, steps: int, folder: Path) -> TrainingArguments:
    processes = int(os.environ["WORLD_SIZE"])
    micro = stage.micro_batch or stage.batch_size // processes
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=stage.batch_size // (micro * processes),
        learning_rate=stage.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(stage.warmup * steps),
        weight_decay=stage.weight_decay,
        adam_beta2=stage.beta2,
        bf16=precision(config) == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=min(config.log_every, steps),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.checkpoint_every else "no",
        save_steps=config.checkpoint_every or 1,
        save_total_limit=2,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        deepspeed=deepspeed_config(config.launch.deepspeed),
    )


def mark_complete(checkpoint: Path, bad: Mapping[str, str]) -> None:
    """Say that all processes have written their parts, how many they are, and which samples were unusable so far."""
    mark = {"processes": os.environ["WORLD_SIZE"], "bad": bad}
    write_file(checkpoint / COMPLETE, json.dumps(mark, ensure_ascii=False))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written completely and by as many processes as now; others are removed."""
    usable = [
        path.parent
        for path in folder.glob(f"checkpoint-*/{COMPLETE}")
        if json.loads(path.read_text(encoding="utf-8"))["processes"] == os.environ["WORLD_SIZE"]
    ]
    barrier()  # all have looked before anything goes
    for other in set(folder.glob("checkpoint-*")) - set(usable):
        if is_main_process():
            shutil.rmtree(other, ignore_errors=True)
    barrier()
    return max(usable, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def bad_before(checkpoint: Path | None) -> dict[str, str]:
    """The unusable samples that were met before ``checkpoint``."""
    return {} if checkpoint is None else json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["bad"]


def _summary(trainer: StageTrainer, stage: StageConfig, progress: Progress, started: float) -> dict[str, Any]:
    return {
        "steps": trainer.state.global_step,
        "samples_seen": trainer.state.global_step * stage.batch_size,
        "loss": progress.last_loss,
        "skipped": len(trainer.bad.gather()),
        "seconds": round(time.monotonic() - started, 2),
    }


def _save(setup: Setup, folder: Path, summary: Mapping[str, Any], *, last: bool) -> None:
    """Write the stage's model whole or not at all, then drop its checkpoints; the ``last`` without need of ours."""
    if is_main_process():
        if last and "vision" in setup.parts and make_stock(setup.model):
            report("the model loads in transformers without llava_bridge")
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        setup.model.save_pretrained(partial)
        setup.processor.save_pretrained(partial)
        (partial / "stage.json").write_text(json.dumps(summary))
        partial.replace(folder / "model")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    barrier()


def _free(trainer: StageTrainer, setup: Setup) -> None:
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
