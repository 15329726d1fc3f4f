"""Begin a training run, or take up one where its last checkpoint stands."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clips.core.artifact import MANIFEST, log_info
from clips.data.loader import TrainDataset
from clips.data.sources import open_source
from clips.errors import UserError
from clips.method import recipes
from clips.method.clips_model import ClipsModel, build_model
from clips.model import architectures
from clips.model.precision import resolve_precision
from clips.model.text_tokenizer import build_text_tokenizer
from clips.model_refs import is_config_file
from clips.parallel.ddp import DDPStrategy
from clips.parallel.distributed import from_main, start_processes
from clips.parallel.strategies import build_strategy
from clips.training.checkpoint import load_tensors, tensor_names, verify_checkpoint_distributed
from clips.training.ema import ModelEma
from clips.training.train_config import EncoderTrainConfig
from clips.training.train_state import TrainState, list_checkpoints, read_train_state
from clips.training.train_step import TrainRun


def open_train_dataset(config: EncoderTrainConfig) -> TrainDataset:
    """The training data, opened first: what is wrong with it is told before anything heavy is loaded."""
    cfg = architectures.model_cfg(config.model)
    prepare = functools.partial(
        recipes.build_recipe(config.recipe).prepare, tokenizer=build_text_tokenizer(config.model)
    )
    if config.validation.source is not None and os.environ.get("RANK", "0") == "0":
        open_source(config.validation.source)
    size = int(architectures.preprocess_cfg(cfg)["size"][0])
    return TrainDataset(config.data, size=size, seed=config.seed, batch_size=config.global_batch_size, prepare=prepare)


def check_stages(stages: Sequence[EncoderTrainConfig]) -> None:
    """Refuse before the first stage what would end a later one, perhaps weeks on; UserError names stage and field."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for number, (before, stage) in enumerate(itertools.pairwise(stages), 2):
        try:
            if _lasting(architectures.model_cfg(stage.model)) != _lasting(architectures.model_cfg(before.model)):
                raise UserError(f"model: expected the towers of the stage before, {before.model.architecture}")
            if not (Path(stage.output) / MANIFEST).is_file():
                _refuse_uneven(stage.global_batch_size, processes)
            if stage.data.sources != before.data.sources:
                open_train_dataset(stage)
        except UserError as error:
            raise UserError(f"stages[{number}]: {error}") from None


def _lasting(cfg: dict[str, Any]) -> dict[str, Any]:
    """What of a ``model_cfg`` stages cannot change; timm names its trunks after their pictures' size."""
    vision = {name: value for name, value in cfg["vision_cfg"].items() if name not in ("image_size", "patch_dropout")}
    if trunk := vision.get("timm_model_name"):
        vision["timm_model_name"] = trunk.rstrip("0123456789")
    text = {name: value for name, value in cfg["text_cfg"].items() if name != "context_length"}
    return {**cfg, "vision_cfg": vision, "text_cfg": text}


def _refuse_uneven(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        raise UserError(f"global_batch_size: expected a multiple of the {processes} processes, got {batch_size}")


def parent_artifacts(config: EncoderTrainConfig, data: TrainDataset) -> dict[str, str]:
    """What the encoder is made from: artifacts among the data, and the weights begun with. Name → path."""
    begun_with = {name: getattr(config.model, name) for name in ("pretrained_trunk", "pretrained")}
    if is_config_file(config.model.architecture):
        begun_with["architecture"] = config.model.architecture
    local = {name: path for name, path in begun_with.items() if path is not None and Path(path).exists()}
    return data.parents() | local


def setup_run(config: EncoderTrainConfig, data: TrainDataset) -> TrainRun:
    """Processes, model and optimizer, standing where the output directory says.

    Precedence: (1) the latest checkpoint in the output directory, (2) a fresh model, its trunk pretrained or not.
    """
    processes = start_processes(patience=config.distributed.hang_timeout)
    _refuse_uneven(config.global_batch_size, processes.count)
    precision, reason = resolve_precision(config.precision, processes.device)
    latest, loop = from_main(lambda: _standing(config))
    encoder = _begin(config, latest).to(processes.device)
    if config.micro_batch_size is not None and has_trainable_batchnorm(encoder):
        raise UserError(
            "micro_batch_size: expected null with batch norms, whose statistics are those of the whole batch"
        )
    parallel = build_strategy(encoder, config.distributed, config.optimizer, processes)
    run = TrainRun(
        config=config,
        data=data,
        recipe=recipes.build_recipe(config.recipe),
        processes=processes,
        parallel=parallel,
        average=None if config.ema_decay is None else _average(config.ema_decay, parallel, latest, loop),
        loop=loop,
        steps=config.steps_for(len(data)),
        precision=precision,
        mean=_channels(encoder.preprocess_cfg["mean"], processes.device),
        std=_channels(encoder.preprocess_cfg["std"], processes.device),
    )
    if latest is not None:
        _take_up_moments(parallel, latest)
    if processes.is_main:
        _announce(run, reason)
    return run


def _standing(config: EncoderTrainConfig) -> tuple[Path | None, TrainState]:
    """The latest checkpoint, and the loop state that it holds."""
    latest = next(reversed(list_checkpoints(config.output)), None)
    return latest, TrainState() if latest is None else read_train_state(latest)


def _announce(run: TrainRun, reason: str) -> None:
    """Say what begins, and what of it is odd."""
    config, processes = run.config, run.processes
    under = f" under {config.distributed.strategy}" if config.distributed.strategy != "ddp" else ""
    log_info(
        f"{config.output}: {len(run.data)} samples, {run.steps} steps of {config.global_batch_size}, "
        f"{processes.count} process(es){under} on {processes.device.type}, {run.precision} ({reason})"
    )
    if run.loop.step:
        log_info(f"going on from step {run.loop.step}")
    if run.recipe.needs_synthetic and not any(source.synthetics for source in config.data.sources):
        log_info(
            f"data.sources: none has synthetic captions; recipe {config.recipe.name} takes web captions in their place"
        )
    if config.global_batch_size > len(run.data):
        batch = f"{config.global_batch_size} of {len(run.data)} samples"
        log_info(f"global_batch_size: {batch}: an image comes several times in a step")


def _begin(config: EncoderTrainConfig, latest: Path | None) -> ClipsModel:
    """The whole model with the weights it goes on with; sharding comes later."""
    if latest is None:
        return build_model(config.model, config.recipe, config.seed)
    verify_checkpoint_distributed(latest)
    encoder = build_model_without_pretrained(config)
    load_tensors(latest, encoder.state_dict(), "model.")
    return encoder


def has_trainable_batchnorm(model: torch.nn.Module) -> bool:
    """Whether there are batch norms in training, whose statistics are those of the samples seen together."""
    norms = (one for one in model.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm))
    return any(value.requires_grad for norm in norms for value in norm.parameters())


def build_model_without_pretrained(config: EncoderTrainConfig) -> ClipsModel:
    """A model to be filled with weights: what training began with need not be there any more."""
    model = dataclasses.replace(config.model, pretrained=None, pretrained_trunk=None)
    return build_model(model, config.recipe, config.seed)


def _take_up_moments(parallel: DDPStrategy, latest: Path) -> None:
    kept = tensor_names(latest)
    moments = {name: value for name, value in parallel.empty_moments().items() if f"optimizer.{name}" in kept}
    load_tensors(latest, moments, "optimizer.")
    parallel.load_moments(moments)


def _average(decay: float, parallel: DDPStrategy, latest: Path | None, loop: TrainState) -> ModelEma:
    average = ModelEma(decay, parallel.held(), updates=loop.step - loop.skipped)
    if latest is not None:
        parallel.load_held(average.state, lambda tensors: load_tensors(latest, tensors, "average."))
    return average


def _channels(values: list[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)[:, None, None]
