"""LoRA: small matrices beside frozen linear layers learn in their place, by PEFT.

The adapted layers sit in the model itself, whose other weights stay where they are and keep their names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from clips.errors import UserError
from llava_bridge.training.train_config import LoraConfig

ADAPTER_DIR = "adapter"
"""The folder of adapters that were not merged, in a LLaVA directory."""
_PARTS = {"vision": r"(.*\.)?vision_tower\.", "llm": r"(.*\.)?language_model\."}


def add_lora(model: nn.Module, config: LoraConfig) -> Any:
    """Put adapters beside the linear layers of ``model``, in place; only they have gradients then.

    Args:
        model: a transformers LLaVA.
        config: which layers, and how.

    Returns:
        PEFT's model around it, which merges and saves.

    Raises:
        UserError: ``target_modules`` names no linear layer of the parts.
    """
    import peft

    chosen = _linear_layers(model, config)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=config.lora_dropout,
            use_dora=config.use_dora,
            target_modules=chosen,
            bias="none",
        ),
    )
    return adapted


def _linear_layers(model: nn.Module, config: LoraConfig) -> list[str]:
    inside = [re.compile(_PARTS[part]) for part in config.apply_to]
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(pattern.match(name) for pattern in inside)
    ]
    chosen = [
        name for name in linear if config.target_modules is None or name.rpartition(".")[2] in config.target_modules
    ]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise UserError(f"lora.target_modules: expected some of {known}, got {config.target_modules}")
    return chosen


def load_adapter(model: Any, directory: Path) -> Any:
    """``model`` with the adapters of ``directory`` added to its weights."""
    import peft

    return peft.PeftModel.from_pretrained(model, directory).merge_and_unload()


def save_adapter(adapted: Any, directory: Path) -> None:
    """Write the adapters in PEFT's layout, for the model in the directory above."""
    adapted.peft_config["default"].base_model_name_or_path = ".."
    adapted.save_pretrained(directory)
