"""QLoRA (arXiv 2305.14314): the LLM's frozen linear layers in 4 bits, by bitsandbytes, beside which adapters learn."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import nn

from clips.errors import UserError

NF4_BLOCK_SIZE = 64
"""Weights that share a scale. Rows of other lengths than its multiples stay whole: on the CPU bitsandbytes misreads
them (0.50)."""


def quantize(llava: Any, kind: str, compute: torch.dtype) -> None:
    """Replace the LLM's linear layers by those of 4 bits, in place and on the device that will train.

    Its output layer, embeddings and norms stay whole, as in the paper. All is frozen and in float32 before, so that
    nothing is left to do of PEFT's ``prepare_model_for_kbit_training``.

    Args:
        llava: a transformers LLaVA.
        kind: bitsandbytes' name of the 4 bits.
        compute: in which precision weights are multiplied.

    Raises:
        UserError: no layer of it can be in 4 bits.
    """
    bnb: Any = importlib.import_module("bitsandbytes")

    llm = llava.model.language_model
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    whole = [
        (name, layer)
        for name, layer in llm.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features % NF4_BLOCK_SIZE == 0
    ]
    if not whole:
        raise UserError(
            f"lora.quantization: expected an LLM with linear layers of a multiple of {NF4_BLOCK_SIZE} inputs"
        )
    for name, layer in whole:
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=compute, device="meta"
        )
        small.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type=kind, compress_statistics=True, blocksize=NF4_BLOCK_SIZE
        ).to(device)
        small.bias = layer.bias
        small.register_load_state_dict_pre_hook(_leave_scales)
        llm.set_submodule(name, small)
    llava.is_loaded_in_4bit = True  # where PEFT looks for it


def _leave_scales(module: Any, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """Of a checkpoint: the scales are there already, made of the same weights, and PyTorch knows no place for them."""
    for name in [name for name in weights if name.startswith(f"{prefix}weight.")]:
        del weights[name]


def numel_unpacked(weight: torch.Tensor) -> int:
    """How many numbers a weight has, of which two are in a byte where they have 4 bits."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


@torch.no_grad()
def copy_dequantized(trained: nn.Module, fresh: nn.Module) -> None:
    """Give the layers of ``fresh`` the values that 4 bits hold of them in ``trained``, which has the same adapters."""
    bnb: Any = importlib.import_module("bitsandbytes")

    for name, layer in trained.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            values = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            target: Any = fresh.get_submodule(name)
            target.weight.copy_(values)
