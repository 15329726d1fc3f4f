"""Start a training run, or resume it from its latest checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clips.core.artifact import MANIFEST, read_manifest
from clips.core.identity import INPUTS, digest
from clips.data.images import normalize
from clips.data.sources import Source, open_source
from clips.errors import UserError
from clips.loader.loader import DEFAULT_BUFFER, IN_BUFFERS, TrainDataset
from clips.method.clips_model import ClipsModel, build_model
from clips.method.recipes import CONTRASTIVE_LOSSES, Recipe
from clips.model.architectures import describe_preprocessing, is_encoder_ref, resolve_preprocessing
from clips.model.compute import resolve_precision
from clips.model_refs import HF_HUB_PREFIX, download_from_hub, is_config_file
from clips.parallel.distributed import DistributedContext, all_gather_objects, from_main, start_processes
from clips.parallel.parallel_model import ModelEma, ParallelModel
from clips.safe_text import log_info
from clips.training.checkpoint import load_tensors, verify_checkpoint
from clips.training.run_dir import TrainState, list_checkpoints, read_train_state
from clips.training.train_config import EncoderTrainConfig


@dataclasses.dataclass(kw_only=True)
class TrainRun:
    """The objects of one process of a training run."""

    config: EncoderTrainConfig
    data: TrainDataset
    recipe: Recipe  # of the config
    processes: DistributedContext
    parallel: ParallelModel  # the distributed model and its optimizer
    average: ModelEma | None  # of the model's weights
    state: TrainState  # the progress
    steps: int  # of the whole run
    precision: Literal["fp32", "bf16"]  # of activations
    mean: Tensor  # (3, 1, 1), of an image's channels
    std: Tensor  # (3, 1, 1), their standard deviation

    @property
    def encoder(self) -> ClipsModel:
        """The model, of which this process may hold shards."""
        return self.parallel.encoder

    @property
    def model(self) -> torch.nn.Module:
        """The wrapped model, which is called with a batch."""
        return self.parallel.model

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images as the model's input; a cached trunk normalizes those that it has to compute."""
        return images if self.config.model.cache_trunk_features else normalize(images, self.mean, self.std)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, by name: the model's tensors, the optimizer's and the average's."""
        parts = {"model": self.encoder.state_dict(), "optimizer": self.parallel.optimizer_state_dict()}
        if self.average is not None:
            parts["average"] = self.average.state
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def setup_run(config: EncoderTrainConfig, data: TrainDataset) -> TrainRun:
    """Set up processes, model and optimizer, from the latest checkpoint in the output directory if there is one."""
    processes = start_processes(timeout=config.distributed.hang_timeout)
    config.check_processes(processes.count)
    latest, state = from_main(lambda: _latest_checkpoint(config))
    precision, reason = resolve_precision(config.precision, processes.device)
    before = state.identity.get("precision", EncoderTrainConfig.precision)
    if state.precision is not None and config.precision == before == "auto":
        precision, reason = state.precision, "as before"
    state.precision = precision
    initial, stated_by = config.model if latest is None else config.model.without_initial_weights(), None
    if state.preprocess is None:
        state.preprocess, stated_by = resolve_preprocessing(initial, config.architecture.model_cfg)
    encoder = build_model(initial, config.recipe, config.seed, config.architecture, state.preprocess)
    encoder = encoder.to(processes.device)
    norms = [one for one in encoder.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]
    trains_norms = any(value.requires_grad for norm in norms for value in norm.parameters())
    if config.micro_batch_size is not None and trains_norms:
        raise UserError("micro_batch_size: expected null with batch norms, whose statistics cover the full batch")
    bf16, decay, preprocess = precision == "bf16", config.ema_decay, encoder.preprocess_cfg
    parallel = ParallelModel(encoder, config.distributed, config.optimizer, processes, bf16=bf16)
    run = TrainRun(
        config=config,
        data=data,
        recipe=Recipe(config.recipe),
        processes=processes,
        parallel=parallel,
        average=None if decay is None else ModelEma(decay, encoder.state_dict(), updates=state.step),
        state=state,
        steps=config.steps_for(len(data)),
        precision=precision,
        mean=torch.tensor(preprocess["mean"], device=processes.device)[:, None, None],
        std=torch.tensor(preprocess["std"], device=processes.device)[:, None, None],
    )
    if latest is not None:
        load_tensors(latest, run.checkpoint_tensors())
    if processes.is_main:
        under = f" under {config.distributed.strategy}" if config.distributed.strategy != "ddp" else ""
        count = "1 process" if processes.count == 1 else f"{processes.count} processes"
        log_info(
            f"{config.output}: {len(run.data)} samples, {run.steps} steps of {config.global_batch_size}, "
            f"{count}{under} on {processes.device.type}, {run.precision} ({reason})"
        )
        if stated_by is not None:
            log_info(f"model: images as those of {stated_by}: {describe_preprocessing(encoder.preprocess_cfg)}")
        if run.state.step:
            log_info(f"resuming from step {run.state.step}")
        if processes.count == 1 and (gpus := torch.cuda.device_count()) > 1:
            log_info(f"1 of {gpus} visible GPUs is used; torchrun --nproc-per-node {gpus} -m clips.cli train uses all")
        if run.recipe.needs_synthetic and not any(source.config.synthetics for source in run.data.parts):
            plain = "siglip" if CONTRASTIVE_LOSSES[run.recipe.spec.loss] else "clip"
            told = f"data.sources: none has synthetic captions; recipe {config.recipe.name} uses web captions instead"
            if run.recipe.texts:
                told += f": its contrast is that of recipe {plain}"
            if run.recipe.reads:
                told += f", its captioner predicts the caption that it reads; use recipe {plain}"
            log_info(told)
        if config.global_batch_size > len(run.data):
            batch = f"{config.global_batch_size} of {len(run.data)} samples"
            log_info(f"global_batch_size: {batch}: an image occurs several times in a step")
    return run


def _latest_checkpoint(config: EncoderTrainConfig) -> tuple[Path | None, TrainState]:
    latest = next(reversed(list_checkpoints(config.output)), None)
    if latest is None:
        return None, TrainState()
    verify_checkpoint(latest)
    return latest, read_train_state(latest)


# ---------------------------------------------------------------- before a run: its data, and the stages' errors


def open_train_dataset(config: EncoderTrainConfig) -> TrainDataset:
    """Open the training data; before the model is built, so that its errors are reported early. A collective call.

    The main process lists, counts and checks the shards for all.
    """
    opened: list[Source] = []

    def facts() -> tuple[list[Any], bool]:
        if config.validation.source is not None:
            open_source(config.validation.source)
        opened.extend(map(open_source, config.data.sources))
        recorded = {name: str(value) for name, value in _recorded_identity(config.output).items()}
        hashes = [value for name, value in recorded.items() if name.startswith(f"{INPUTS}data.sources[")]
        return [source.facts for source in opened], bool(hashes) and not any(IN_BUFFERS in value for value in hashes)

    known, has_older_order = from_main(facts)
    data = TrainDataset(
        config.data,
        size=config.architecture.image_size,
        seed=config.seed,
        batch_size=config.global_batch_size,
        prepare=functools.partial(Recipe(config.recipe).prepare, tokenizer=config.architecture.tokenizer),
        parts=opened or [open_source(*source) for source in zip(config.data.sources, known, strict=True)],
        default_buffer=None if has_older_order else DEFAULT_BUFFER,
    )
    sizes = all_gather_objects(digest([source.blocks for source in data.parts]))
    if other := next((rank for rank, size in enumerate(sizes) if size != sizes[0]), None):
        raise UserError(f"data.sources: the process of rank {other} finds other samples there than that of rank 0")
    return data


def _recorded_identity(output: str) -> Mapping[str, Any]:
    """The identity of the run in a directory, finished or not; empty without a readable one."""
    with contextlib.suppress(UserError):
        identity: Mapping[str, Any] = read_manifest(output).get("identity", {})
        return identity
    with contextlib.suppress(UserError):
        for checkpoint in list_checkpoints(output)[-1:]:
            return read_train_state(checkpoint).identity
    return {}


def parent_artifacts(config: EncoderTrainConfig, data: TrainDataset) -> dict[str, str]:
    """Return the local inputs of the encoder, name → path: artifacts among the data, and initial weights."""
    initial = {name: getattr(config.model, name) for name in ("pretrained_trunk", "pretrained")}
    if is_config_file(config.model.architecture) or is_encoder_ref(config.model.architecture):
        initial["architecture"] = config.model.architecture
    local = {name: path for name, path in initial.items() if path is not None and Path(path).exists()}
    return data.parents() | local


def hub_commits(config: EncoderTrainConfig) -> dict[str, str]:
    """Initial weights, or an architecture, on the Hub → their commit, which a branch leaves. Raises UserError."""
    references = {name: str(getattr(config.model, name)) for name in ("pretrained", "architecture")}
    return {
        name: download_from_hub(reference.removeprefix(HF_HUB_PREFIX), f"model.{name}").name
        for name, reference in references.items()
        if reference.startswith(HF_HUB_PREFIX)
    }


def check_stages(stages: Sequence[EncoderTrainConfig]) -> None:
    """Raise before the first stage the errors that would end a later one; UserError names stage and field.

    In the main process alone, as it opens data.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for number, (before, stage) in enumerate(itertools.pairwise(stages), 2):
        try:
            if _tower_cfg(stage) != _tower_cfg(before):
                raise UserError(f"model: expected the towers of the stage before, {before.model.architecture}")
            if not (Path(stage.output) / MANIFEST).is_file():
                stage.check_processes(processes)
            if stage.data.sources != before.data.sources:
                for source in (*stage.data.sources, *filter(None, [stage.validation.source])):
                    open_source(source)
        except UserError as error:
            raise UserError(f"stages[{number}]: {error}") from None


def _tower_cfg(config: EncoderTrainConfig) -> dict[str, Any]:
    # what stages share
    cfg = config.architecture.model_cfg
    vision = {name: value for name, value in cfg["vision_cfg"].items() if name not in ("image_size", "patch_dropout")}
    if trunk := vision.get("timm_model_name"):
        vision["timm_model_name"] = trunk.rstrip("0123456789")  # names of trunks end with the image size
    text = {name: value for name, value in cfg["text_cfg"].items() if name != "context_length"}
    return {**cfg, "vision_cfg": vision, "text_cfg": text}
