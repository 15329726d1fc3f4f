"""The memory of a training step, traced on fake tensors, which have shapes and dtypes but no data.

A step of the largest model takes seconds and no memory. torch's ``MemTracker`` does the same for models whose modules
run once in a step; a text tower runs once for each text.
"""

from __future__ import annotations

import weakref
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from clips.method.clips_model import ClipsModel
from clips.method.objectives import compute_losses
from clips.model import losses
from clips.model.layers import checkpoint_layers
from clips.training.mfu import fake_mode, full_batch


def peak_bytes(model: ClipsModel, samples: int, *, bf16: bool, checkpointing: bool) -> int:
    """Return the peak bytes of a GPU's step in addition to parameters and optimizer, with the gradients of all samples.

    Args:
        model: of `clips.training.mfu.fake_model`.
        samples: of the step; the contrastive loss is that of one process.
        bf16: activations in bfloat16.
        checkpointing: whether layers recompute their activations.
    """
    model.train()
    model.zero_grad()
    checkpoint_layers(model, recompute=checkpointing)
    with (  # CPU tensors, because fake ones of a GPU have no backward pass on a machine without one
        mock.patch.object(F, "layer_norm", _float32_norm),
        mock.patch.object(losses, "chunk_rows", losses.gpu_chunk_rows),
        _PeakBytes([*model.parameters(), *model.buffers()]) as trace,
    ):
        batch = full_batch(model, samples)
        outputs = model(batch, bf16=bf16)
        with fake_mode(model):
            loss = compute_losses(model.recipe, outputs)["loss"]
            del outputs
            loss.backward()
    checkpoint_layers(model, recompute=False)
    model.zero_grad()
    return trace.peak


class _PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are allocated within it, but for ``others``."""

    def __init__(self, others: list[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._storages: Any = WeakIdKeyDictionary({value.untyped_storage(): True for value in others})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._storages:
                self._storages[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


_layer_norm = F.layer_norm


def _float32_norm(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """``F.layer_norm`` as under autocast of a GPU; that of a CPU computes in bfloat16."""
    if not torch.is_autocast_enabled("cpu"):
        return _layer_norm(x, *arguments, **named)
    with torch.autocast("cpu", enabled=False):
        return _layer_norm(x.float(), *arguments, **named)
