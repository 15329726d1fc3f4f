"""The model that a stage leaves: whole, merged, and where possible without need of this package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clips.core.artifact import open_to_umask
from llava_bridge.model.build import convert_tower_to_transformers
from llava_bridge.training.distributed import barrier
from llava_bridge.training.launch import is_main_process, log_rank0
from llava_bridge.training.lora import ADAPTER_DIR, add_lora, save_adapter
from llava_bridge.training.quantization import copy_dequantized
from llava_bridge.training.setup import StageSetup
from llava_bridge.training.sharded_weights import fits_bf16, gather_trained_weights, is_sharded
from llava_bridge.training.train_config import LoraConfig
from llava_bridge.training.work_dir import CHECKPOINTS_DIR


def save_stage_model(
    setup: StageSetup,
    folder: Path,
    summary: Mapping[str, Any],
    *,
    lora: LoraConfig | None,
    again: Callable[[], StageSetup],
    rounded: bool,
    half: bool,
    last: bool,
) -> None:
    """Write the stage's model whole or not at all, then drop its checkpoints; called in every process.

    Args:
        setup: the stage's, trained.
        folder: of the stage.
        summary: what is known of the training.
        lora: the adapters' settings, if there are any.
        again: makes the setup that the stage began with.
        rounded: whether training has rounded what is frozen; then it is taken from where the stage began.
        half: whether it was trained in bf16; then what bf16 holds is saved so.
        last: whether the model, if it is a LLaVA, is to load without this package where it can.
    """
    weights = gather_trained_weights(setup.model) if lora is not None or rounded or is_sharded(setup.model) else None
    if is_main_process():
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        if weights is None:
            _write(setup, setup.model, partial, half=half, last=last)
        elif "vision" in setup.parts:
            _write_anew(again(), weights, partial, lora, half=half, last=last, trained=setup.model)
        else:  # an LLM alone learns as a whole
            _let_it_cache(setup.model)
            setup.model.save_pretrained(partial, state_dict=weights)
            setup.processor.save_pretrained(partial)
        (partial / "stage.json").write_text(json.dumps(summary))
        open_to_umask(partial)
        partial.replace(folder / "model")
        shutil.rmtree(folder / CHECKPOINTS_DIR, ignore_errors=True)
    barrier()


def _write(setup: StageSetup, model: Any, directory: Path, *, half: bool, last: bool) -> None:
    sees = "vision" in setup.parts
    if half:
        _store_in_bf16(setup)
    if last and sees and convert_tower_to_transformers(model):
        log_rank0("the model loads in transformers without llava_bridge")
    _let_it_cache(model)
    model.save_pretrained(directory)
    if sees:  # transformers states the precision of the first weight, which is the encoder's
        model.config.vision_config.dtype = model.model.vision_tower.dtype
        model.config.dtype = model.config.text_config.dtype = model.model.language_model.dtype
        model.config.save_pretrained(directory)
    setup.processor.save_pretrained(directory)


def _store_in_bf16(setup: StageSetup) -> None:
    """Turn what bf16 holds as it is into bf16: the encoder by itself, projector and LLM as one."""
    vision = [weight for part, module in setup.parts.items() if part == "vision" for weight in module.parameters()]
    rest = [weight for part, module in setup.parts.items() if part != "vision" for weight in module.parameters()]
    for weights in (vision, rest):
        if all(map(fits_bf16, weights)):
            for weight in weights:
                weight.data = weight.data.bfloat16() if weight.is_floating_point() else weight.data


def _let_it_cache(model: Any) -> None:
    """Undo what transformers' trainer writes into the config, which would make whoever generates do without a cache."""
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        config.use_cache = True


def _write_anew(
    fresh: StageSetup,
    weights: Mapping[str, Tensor],
    directory: Path,
    lora: LoraConfig | None,
    *,
    half: bool,
    last: bool,
    trained: Any,
) -> None:
    """What was learned, put into the model that the stage began with, or what 4 bits hold of that."""
    adapted = None if lora is None else add_lora(fresh.model, lora)
    unknown = fresh.model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    if lora is not None and lora.quantization:
        copy_dequantized(trained, fresh.model)
    if adapted is None or lora is None:
        _write(fresh, fresh.model, directory, half=half, last=last)
    elif lora.merge_weights or not last:  # the next stage goes on from whole weights
        _write(fresh, adapted.merge_and_unload(), directory, half=half, last=last)
    else:
        if half:
            _store_in_bf16(fresh)
        save_adapter(adapted, directory / ADAPTER_DIR)
        _write(fresh, adapted.unload(), directory, half=half, last=last)
