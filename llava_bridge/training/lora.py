"""LoRA by PEFT: trained low-rank matrices next to frozen linear layers.

Layers are replaced within the model; all other weights keep their names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from clips.errors import UserError
from llava_bridge.training.train_config import LoraConfig

ADAPTER_DIR = "adapter"
"""The directory of unmerged adapters in a LLaVA directory."""
_PARTS = {"vision": r"(.*\.)?vision_tower\.", "llm": r"(.*\.)?language_model\."}


def add_lora(model: nn.Module, config: LoraConfig) -> Any:
    """Add adapters to the linear layers of ``model``, in place; only they are trainable afterwards.

    Args:
        model: a transformers LLaVA.
        config: the layers, and the adapters' settings.

    Returns:
        PEFT's wrapper of ``model``, which merges and saves.

    Raises:
        UserError: ``target_modules`` names no linear layer of the parts.
    """
    import peft

    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        target_modules=_linear_layers(model, config),
        bias="none",
    )
    return peft.get_peft_model(model, settings)


def _linear_layers(model: nn.Module, config: LoraConfig) -> list[str]:
    parts = re.compile("|".join(_PARTS[part] for part in config.apply_to))
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and parts.match(name)]
    if config.target_modules is None and layers:
        return layers
    targets = [name for name in layers if name.rpartition(".")[2] in (config.target_modules or ())]
    if not targets:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise UserError(f"lora.target_modules: expected some of {known}, got {config.target_modules}")
    return targets


def load_adapter(model: Any, directory: Path) -> Any:
    """``model`` with the adapters of ``directory`` merged into its weights."""
    import peft

    return peft.PeftModel.from_pretrained(model, directory).merge_and_unload()


def save_adapter(adapted: Any, directory: Path) -> None:
    """Write the adapters in PEFT's format, for the model in the parent directory."""
    adapted.peft_config["default"].base_model_name_or_path = ".."
    adapted.save_pretrained(directory)
