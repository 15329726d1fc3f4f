"""The memory of a training step, traced on fake tensors, which have shapes and dtypes but no data.

A step of the largest model takes seconds and no memory. torch's ``MemTracker`` does the same for models whose modules
run once in a step; a text tower runs once for each text.
"""

from __future__ import annotations

import contextlib
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
from clips.model.tokenizer import EOS
from clips.model.towers import eot_token_id
from clips.training.mfu import fake_images, fake_mode


def full_batch(model: ClipsModel, samples: int) -> dict[str, Tensor]:
    """Return a batch of fake images and texts without padding for `clips.training.mfu.fake_model`."""
    batch = {"image": fake_images(model, samples)}
    batch |= {name: full_length_texts(model, samples) for name in model.recipe.encoded}
    if model.captioner is not None:
        length, limit = model.captioner.config.length, model.recipe.config.captioner.max_loss_tokens
        labels = min(length - 1, limit or length)  # the begin token is no label
        mask = torch.arange(length).expand(samples, -1) < labels
        batch |= {"target": torch.full((samples, length), EOS), "target_mask": mask}
        if model.recipe.visual_token_ratio < 1:
            batch["visual_seed"] = torch.arange(samples)
    return batch


def full_length_texts(model: ClipsModel, samples: int) -> Tensor:
    """Return token sequences (samples, context length) without padding."""
    tokens = torch.full((samples, model.context_length), EOS + 1)
    if (end := eot_token_id(model.clip)) is not None:
        tokens[:, -1] = end
    return tokens


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
    with _gpu_kernels(), _PeakBytes() as trace:
        trace.ignore([*model.parameters(), *model.buffers()])
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
    """Counts the bytes of the tensors that are allocated within it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._storages: Any = WeakIdKeyDictionary()

    def ignore(self, tensors: list[Tensor]) -> None:
        """Do not count these tensors."""
        self._storages.update({value.untyped_storage(): True for value in tensors})

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


@contextlib.contextmanager
def _gpu_kernels() -> Any:
    """Let CPU tensors store what a GPU's do: fused attention under any mask, layer norms in float32 under autocast.

    Fake tensors of a GPU have no backward pass on a machine without one.
    """
    with (
        mock.patch.object(F, "scaled_dot_product_attention", _fused_attention),
        mock.patch.object(F, "layer_norm", _float32_norm),
        mock.patch.object(losses, "chunk_rows", losses.gpu_chunk_rows),
    ):
        yield


_layer_norm = F.layer_norm


def _float32_norm(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return _layer_norm(x, *arguments, **named)
    with torch.autocast("cpu", enabled=False):
        return _layer_norm(x.float(), *arguments, **named)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    if attn_mask is not None:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
