"""The repeated layers of a model: activation checkpointing and torch.compile of them; weights that compute in bf16."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clips.model.attention import PackedAttention


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a model: the modules of each list or sequence of a single class."""
    layers: list[nn.Module] = []
    for child in model.children():
        inner = list(child.children())
        repeated = isinstance(child, nn.ModuleList | nn.Sequential) and len(inner) > 1
        if repeated and len({type(layer) for layer in inner}) == 1:
            layers += inner
        else:
            layers += repeated_layers(child)
    return layers


def checkpoint_layers(model: nn.Module, *, recompute: bool = True) -> int:
    """Let each repeated layer store only its inputs and ``recompute`` its activations, or store them again.

    Where layers are stages of layers, as in ConvNeXt and Swin, the inner ones count. Layers with batch norms are
    excluded: recomputation would update their statistics twice.

    Returns:
        The number of these layers that recompute.
    """
    layers = _innermost_layers(model)
    for layer in layers:
        layer.__dict__.pop("forward", None)
    chosen = [layer for layer in layers if recompute and not _has_batch_norm(layer)]
    for layer in chosen:
        layer.forward = functools.partial(_recompute, layer)
    return len(chosen)


def _innermost_layers(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for layer in repeated_layers(model):
        inner = [part for part in _innermost_layers(layer) if any(True for _ in part.children())]
        found += inner or [layer]
    return found


def _has_batch_norm(layer: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in layer.modules())


def _recompute(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
    forward = functools.partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Let torch.compile compile each module, in place: their weights keep their names.

    Call it before the model is wrapped or sharded. The graphs are compiled when the modules are first called.
    """
    from torch._dynamo import config  # takes seconds to import

    importlib.import_module("torch.nn.attention.bias")  # torch 2.11 traces the captioner's attention only after that

    # All layers share one limit, with and without gradients; torch's is 8, after which it stops compiling.
    config.recompile_limit = 64
    for module in modules:
        module.compile()


def bf16_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that autocast to bf16 casts and nothing else reads: of linear layers and convolutions."""
    casting = {kind.forward for kind in (nn.Linear, nn.Conv2d, nn.MultiheadAttention, PackedAttention)}
    modules = [module for module in model.modules() if type(module).forward in casting]  # no variants of these layers
    return [weight for module in modules for weight in module.parameters(recurse=False)]
