"""The repeated layers of a model, and activation checkpointing of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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


def checkpoint_layers(model: nn.Module, interval: int) -> None:
    """Let every ``interval``-th repeated layer store only its inputs and recompute its activations; 0 lets none.

    Layers with batch norms are excluded: recomputation would update their statistics twice.
    """
    layers = repeated_layers(model)
    for layer in layers:
        layer.__dict__.pop("forward", None)
    for layer in layers[::interval] if interval else ():
        if not any(isinstance(module, _BatchNorm) for module in layer.modules()):
            layer.forward = functools.partial(_recompute, layer)


def _recompute(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
    forward = functools.partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)
