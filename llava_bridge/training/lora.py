"""LoRA by PEFT: trained low-rank matrices next to frozen linear layers, which QLoRA quantizes to 4 bits.

Layers are replaced within the model; all other weights keep their names.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import nn

from clips.errors import UserError
from llava_bridge.training.train_config import LoraConfig

NF4_BLOCK_SIZE = 64
"""Weights per scale. Layers whose rows are no multiple are not quantized: bitsandbytes 0.50 misreads them on CPU."""


def quantize(llava: Any, kind: str, compute: torch.dtype) -> None:
    """Quantize the LLM's linear layers to 4 bits (``kind`` of bitsandbytes), in place and on the training device.

    Their matrix products are in ``compute``. The output layer, embeddings and norms are not quantized, as in the paper.
    The model must be frozen; PEFT's ``prepare_model_for_kbit_training`` is then not needed.
    """
    bnb: Any = importlib.import_module("bitsandbytes")

    def skip_scales(module: Any, weights: dict[str, Any], prefix: str, *_: Any) -> None:
        """Skip a checkpoint's scales: PyTorch cannot load them, and the layer has equal ones of the same weights."""
        for name in [name for name in weights if name.startswith(f"{prefix}weight.")]:
            del weights[name]

    llm = llava.model.language_model
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    layers = [
        (name, layer)
        for name, layer in llm.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features % NF4_BLOCK_SIZE == 0
    ]
    if not layers:
        raise UserError(
            f"lora.quantization: expected an LLM with linear layers of a multiple of {NF4_BLOCK_SIZE} inputs"
        )
    for name, layer in layers:
        quantized = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=compute, device="meta"
        )
        quantized.weight = bnb.nn.Params4bit(
            layer.weight.data.float(),
            requires_grad=False,
            quant_type=kind,
            compress_statistics=True,
            blocksize=NF4_BLOCK_SIZE,
        ).to(device)
        quantized.bias = layer.bias
        quantized.register_load_state_dict_pre_hook(skip_scales)
        llm.set_submodule(name, quantized)
    llava.is_loaded_in_4bit = True  # read by PEFT


def numel_unpacked(weight: torch.Tensor) -> int:
    """Number of elements of a weight; in 4 bits, a byte has two."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


@torch.no_grad()
def copy_dequantized(trained: nn.Module, fresh: nn.Module) -> None:
    """Copy the dequantized weights of ``trained`` to the layers of ``fresh``, which has the same adapters."""
    bnb: Any = importlib.import_module("bitsandbytes")
    for name, layer in trained.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            values = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            target: Any = fresh.get_submodule(name)
            target.weight.copy_(values)


def add_lora(model: nn.Module, config: LoraConfig) -> Any:
    """Add adapters to the linear layers of the LLM in a LLaVA, in place; only they are trainable afterwards.

    Without dropout, which PEFT supports in linear layers alone, the experts of a mixture have adapters, too. Returns
    PEFT's wrapper of ``model``, which merges and saves.

    Raises:
        UserError: the LLM has no linear layers.
    """
    import peft

    llm = {name: module for name, module in model.named_modules() if "language_model" in name.split(".")}
    targets = [name for name, module in llm.items() if isinstance(module, nn.Linear)]
    if not targets:
        raise UserError("lora: expected an LLM with linear layers (torch.nn.Linear)")
    experts = [f"{name}.{own}" for name, module in llm.items() for own in _expert_weights(module)]
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        target_parameters=experts if experts and not config.lora_dropout else None,
        bias="none",
    )
    # PEFT rounds new adapters to the dtype of their layer. Meanwhile bf16 weights are float32, in no memory.
    stored = {weight: weight.data for weight in model.parameters() if weight.dtype == torch.bfloat16}
    try:
        for weight in stored:
            weight.data = torch.zeros((), device=weight.device).expand_as(weight)
        return peft.get_peft_model(model, settings)
    finally:
        for weight, value in stored.items():
            weight.data = value


def _expert_weights(module: nn.Module) -> list[str]:
    """The names of a layer's own weights that hold a matrix for each expert."""
    return [name for name, weight in module.named_parameters(recurse=False) if weight.ndim == 3]


def share_without_adapter(llm: nn.Module) -> float:
    """The share of an LLM's weights in matrices, without those of its embedding, that have no adapter next to them."""
    sizes = {True: 0, False: 0}
    for prefix, module in llm.named_modules():
        if isinstance(module, nn.Embedding) or "lora_" in prefix:
            continue
        for weight in module.parameters(recurse=False):
            if weight.ndim > 1 or hasattr(weight, "quant_state"):
                sizes["base_layer" in prefix.split(".")] += numel_unpacked(weight)
    return sizes[False] / max(1, sum(sizes.values()))
