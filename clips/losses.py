"""The losses of the method, over the global batch of all processes.

Every function returns this process's share, made so that the *mean over processes* is the loss of the global
batch and that the mean of the gradients, which DDP and DeepSpeed take, is its gradient: two processes train as
one would. All processes must hold batches of equal size. Source: [C] of the method.

Dimension letters: B samples of this process, G samples of all processes, E embedding width, N counted target
tokens, D decoder width, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB of float32


def contrastive_loss(image: Tensor, texts: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Multi-positive loss (): the mean of the symmetric CLIP losses of the images with each kind of text.

    Args:
        image: (B, E) image features of unit length.
        texts: for each kind of text, (B, E) features of unit length; row *i* belongs to image *i*.
        scale: () or (1,), the factor that multiplies the cosines.
    """
    with torch.autocast(image.device.type, enabled=False):
        local, scale = image.float(), scale.float()
        images = gather(local)
        labels = process_rank() * len(image) + torch.arange(len(image), device=image.device)
        halves = []
        for text in texts:
            halves.append(F.cross_entropy(scale * local @ gather(text.float()).t(), labels))
            halves.append(F.cross_entropy(scale * text.float() @ images.t(), labels))
        return torch.stack(halves).mean()


def caption_loss(summed: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy () averaged over the counted target tokens of all processes.

    Args:
        summed: () cross-entropy summed over this process's counted tokens.
        counted: () their number.
    """
    total = counted.detach().float().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return summed * process_count() / total.clamp(min=1.0)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy () of ``hidden @ weight.T`` without ever holding all its (N, V) logits.

    Args:
        hidden: (N, D) float32.
        weight: (V, D) float32.
        labels: (N,) int64.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels)


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, chunk by chunk, while the chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        want_hidden, want_weight, _ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden) if want_hidden else None
        weight_grad = torch.zeros_like(weight) if want_weight else None
        total = hidden.new_zeros(())
        step = max(1, _CHUNK_ELEMENTS // len(weight))
        for start in range(0, len(hidden), step):
            part, label = hidden[start : start + step], labels[start : start + step, None]
            logits = part @ weight.t()
            largest = logits.amax(dim=1, keepdim=True)
            own = logits.gather(1, label)
            powers = logits.sub_(largest).exp_()
            normaliser = powers.sum(dim=1, keepdim=True)
            total += (largest + normaliser.log() - own).sum()
            if want_hidden or want_weight:
                error = powers.div_(normaliser)  # softmax, then minus one at the label
                error.scatter_add_(1, label, error.new_full(label.shape, -1.0))
                if hidden_grad is not None:
                    torch.mm(error, weight, out=hidden_grad[start : start + step])
                if weight_grad is not None:
                    weight_grad.addmm_(error.t(), part)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * grads[0],
            None if weight_grad is None else weight_grad * grads[0],
            None,
        )


def gather(features: Tensor) -> Tensor:
    """The rows of all processes in rank order, (G, E), with the gradient going back to where each came from."""
    return features if process_count() == 1 else _Gather.apply(features)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        everyone = local.new_empty((process_count() * len(local), *local.shape[1:]))
        dist.all_gather_into_tensor(everyone, local.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(process_count())[process_rank()]


def process_count() -> int:
    """Number of training processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process's rank; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
