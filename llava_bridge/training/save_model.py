"""Save a stage's model: unsharded, merged, and if possible loadable without this package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clips.core import durable
from clips.core.artifact import open_to_umask
from llava_bridge.model.save_llava import convert_tower_to_transformers, save_llava
from llava_bridge.training.launch import is_main_process, log_rank0
from llava_bridge.training.lora import ADAPTER_DIR, add_lora, copy_dequantized, save_adapter
from llava_bridge.training.run_dir import CHECKPOINTS_DIR
from llava_bridge.training.setup import StageSetup, precision, setup_stage
from llava_bridge.training.sharded_weights import barrier, fits_bf16, gather_trained_weights, is_sharded
from llava_bridge.training.train_config import LlavaTrainConfig, LoraConfig


def save_stage_model(
    setup: StageSetup, config: LlavaTrainConfig, name: str, work: Path, summary: Mapping[str, Any], *, rounded: bool
) -> None:
    """Write the stage's model atomically, then delete its checkpoints, once it is on the disk; called in every process.

    Weights that bf16 represents exactly are saved in it after a training in bf16, and the last stage's LLaVA loads
    without this package, if possible.

    Args:
        setup: of the stage, trained.
        config: of the run.
        name: of the stage.
        work: directory of the run.
        summary: statistics of the training.
        rounded: whether training has rounded frozen weights; they are then saved from the initial setup.
    """
    lora, bf16, last = config.stage(name).lora, precision(config) == "bf16", name == config.stages[-1]
    weights = gather_trained_weights(setup.model) if lora is not None or rounded or is_sharded(setup.model) else None
    if is_main_process():
        folder = work / name
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        if weights is None:
            _write(setup, setup.model, partial, bf16=bf16, last=last)
        else:
            initial = setup_stage(config, name, work)
            _write_trained(initial, weights, partial, lora, bf16=bf16, last=last, trained=setup.model)
        (partial / "stage.json").write_text(json.dumps(summary))
        open_to_umask(partial)
        durable.replace(partial, folder / "model")
        shutil.rmtree(folder / CHECKPOINTS_DIR, ignore_errors=True)
    barrier()


def _write(setup: StageSetup, model: Any, directory: Path, *, bf16: bool, last: bool) -> None:
    if bf16:
        _convert_to_bf16(setup)
    if last and convert_tower_to_transformers(model):
        log_rank0("the model loads in transformers without llava_bridge")
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        config.use_cache = True  # transformers' trainer disables it
    save_llava(model, directory)
    # transformers states the dtype of the first weight, which is the encoder's
    model.config.vision_config.dtype = model.model.vision_tower.dtype
    model.config.dtype = model.config.text_config.dtype = model.model.language_model.dtype
    model.config.save_pretrained(directory)
    setup.processor.save_pretrained(directory)


def _convert_to_bf16(setup: StageSetup) -> None:
    """Convert the encoder, and projector and LLM together, to bf16 if that is lossless."""
    vision = list(setup.parts["vision"].parameters())
    others = [weight for part, module in setup.parts.items() if part != "vision" for weight in module.parameters()]
    for weights in (vision, others):
        if all(map(fits_bf16, weights)):
            for weight in weights:
                weight.data = weight.data.bfloat16() if weight.is_floating_point() else weight.data


def _write_trained(
    initial: StageSetup,
    weights: Mapping[str, Tensor],
    directory: Path,
    lora: LoraConfig | None,
    *,
    bf16: bool,
    last: bool,
    trained: Any,
) -> None:
    """Write the initial (or dequantized) model with the trained weights."""
    model = initial.model
    adapted = None if lora is None else add_lora(model, lora)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    if lora is not None and adapted is not None:
        if lora.quantization:
            copy_dequantized(trained, model)
        if lora.merge_weights or not last:  # the next stage needs merged weights
            model = adapted.merge_and_unload()
        else:
            if bf16:
                _convert_to_bf16(initial)
            save_adapter(adapted, directory / ADAPTER_DIR)
            model = adapted.unload()
    _write(initial, model, directory, bf16=bf16, last=last)
