"""The losses of the method, over the global batch of all processes.

Every function returns this process's part, scaled so that the *mean over processes* is the loss of the global batch and
the mean of the gradients, which DDP and DeepSpeed compute, is its gradient: two processes train as one would. All
processes must have batches of equal size. Source: [C] of `clips.method.recipes`.

Dimension letters: B samples of this process, G samples of all processes, E embedding width, N counted target tokens, D
decoder width, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_CHUNK_ELEMENTS = 2**22  # logits at a time, 16 MiB in float32: malloc maps new pages for each tensor of over 32


def contrastive_loss(
    image: Tensor,
    texts: Sequence[Tensor],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    kind: str = "softmax",
) -> Tensor:
    """Return the mean () over types of text of the symmetric CLIP loss, or of SigLIP's, in float32.

    A process computes its rows of the global similarity matrix chunk by chunk. SigLIP classifies every pair separately
    (arXiv 2303.15343, algorithm 1).

    Args:
        image: (B, E) image features of unit length, of any float dtype, under any autocast.
        texts: for each type of text, (B, E) features of unit length; row *i* belongs to image *i*.
        scale: () or (1,), the factor that multiplies the cosines.
        bias: () or (1,), added to the logits of the sigmoid loss, 0 if not given; a softmax is invariant to it.
        kind: the loss's name, one of ``clips.method.recipes.CONTRASTIVE_LOSSES``.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, texts, scale = image.float(), [text.float() for text in texts], scale.float()
        own = rank() * len(image) + torch.arange(len(image), device=image.device)  # this process's rows of all
        if kind == "sigmoid":
            shift = image.new_zeros(()) if bias is None else bias.float()
            sums = [_PairwiseSigmoid.apply(scale * image, gather_features(text), shift, own) for text in texts]
            return torch.stack(sums).mean() / len(image)
        images = gather_features(image)
        to_texts = [linear_cross_entropy(scale * image, gather_features(text), own) for text in texts]
        to_images = [linear_cross_entropy(scale * text, images, own) for text in texts]
        return (torch.stack(to_texts).mean() + torch.stack(to_images).mean()) / (2 * len(image))


def caption_loss(loss_sum: Tensor, num_tokens: Tensor) -> Tensor:
    """Return the cross-entropy () averaged over the counted target tokens of all processes.

    Args:
        loss_sum: () cross-entropy summed over this process's counted tokens.
        num_tokens: () their number.
    """
    total = num_tokens.detach().float().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return loss_sum * world_size() / total.clamp(min=1.0)


class ChunkCrossEntropy(nn.Module):
    """Cross-entropy and its gradient at the logits of a chunk; a module, so that torch.compile can fuse it."""

    def forward(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, *, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sum-reduced loss (), float32 or wider, and its ``gradient`` (N, V) in hidden's dtype, or None.

        Args:
            hidden: (N, D), any float dtype.
            weight: (V, D), in hidden's dtype.
            labels: (N,) int64.
            gradient: whether to compute it.
        """
        logits = hidden @ weight.t()
        wide = torch.promote_types(hidden.dtype, torch.float32)
        # On a CPU log_softmax with a dtype converts element by element, in three times the time.
        converted = logits.to(wide) if logits.device.type == "cpu" else logits
        log_probabilities = converted.log_softmax(dim=1, dtype=wide)
        del converted  # exp makes another tensor of its size below
        own = log_probabilities.gather(1, labels[:, None]).squeeze(1)
        if not gradient:
            return -own.sum(), None
        error = torch.exp(log_probabilities, out=logits)  # rounded as it is written, into memory that is free
        rows = torch.arange(len(labels), device=labels.device)
        error[rows, labels] = (own.exp() - 1).to(error.dtype)  # scatter_ visits every element in bfloat16 on a CPU
        return -own.sum(), error


_chunk_cross_entropy = ChunkCrossEntropy()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    dtype: torch.dtype | None = None,
    cross_entropy: ChunkCrossEntropy = _chunk_cross_entropy,
) -> Tensor:
    """Return the sum-reduced cross-entropy () of ``hidden @ weight.T`` without all its (N, V) logits in memory.

    Args:
        hidden: (N, D), any float dtype, also of its gradient.
        weight: (V, D), any float dtype, also of its gradient, which is summed in float32.
        labels: (N,) int64.
        dtype: of the matrix products, hidden's if not given; softmax and sums are float32.
        cross_entropy: computes that of a chunk.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, dtype or hidden.dtype, cross_entropy)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, while the chunk's logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, cross_entropy: ChunkCrossEntropy
    ) -> Tensor:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden) if needs_hidden else None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weight_grad = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        total = hidden.new_zeros((), dtype=wide)
        factors = weight.detach().to(dtype)  # hooks of modules, as FlopCounterMode has, reject a leaf here
        step = chunk_rows(weight)
        for start in range(0, len(hidden), step):
            part, label = hidden.detach()[start : start + step].to(dtype), labels[start : start + step]
            loss, error = cross_entropy(part, factors, label, gradient=needs_hidden or needs_weight)
            total += loss
            if error is None:
                continue
            if hidden_grad is not None:
                hidden_grad[start : start + step] = error @ factors
            if weight_grad is not None and error.dtype == wide:
                weight_grad.addmm_(error.t(), part)
            elif weight_grad is not None:  # addmm does not mix dtypes
                weight_grad += error.t() @ part
            del error
        ctx.save_for_backward(hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * grads[0],
            None if weight_grad is None else weight_grad * grads[0],
            None,
            None,
            None,
        )


def chunk_rows(weight: Tensor) -> int:
    """Return the number of rows whose logits with ``weight`` (V, D) are in memory at a time."""
    if weight.device.type != "cpu":
        return gpu_chunk_rows(weight)
    # With fewer rows than columns, to add a chunk's part to all weights' gradients takes longer than its logits.
    return max(1, _CHUNK_ELEMENTS // len(weight), min(weight.shape[1], 4 * _CHUNK_ELEMENTS // len(weight)))


def gpu_chunk_rows(weight: Tensor) -> int:
    """Return `chunk_rows` of a GPU."""
    # Products of fewer than 2048 rows do not fill it, and each chunk adds to all weights' gradients; at most 1 GiB of
    # log-probabilities in float32.
    return max(1, min(2048, 2**28 // len(weight)))


class _PairwiseSigmoid(torch.autograd.Function):
    """Sum of -log sigmoid(±logit) of ``hidden @ weight.T + bias``, with plus at the label; gradients as above."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        hidden_grad, weight_grad = torch.zeros_like(hidden), torch.zeros_like(weight)
        bias_grad, total = torch.zeros_like(bias), hidden.new_zeros(())
        step = chunk_rows(weight)
        for start in range(0, len(hidden), step):
            part, label = hidden[start : start + step], labels[start : start + step, None]
            logits = part @ weight.t() + bias
            total += F.softplus(logits).sum() - logits.gather(1, label).sum()
            error = logits.sigmoid_().scatter_add_(1, label, logits.new_full(label.shape, -1.0))
            torch.mm(error, weight, out=hidden_grad[start : start + step])
            weight_grad.addmm_(error.t(), part)
            bias_grad += error.sum()
            del logits, error
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        return hidden_grad * grads[0], weight_grad * grads[0], bias_grad * grads[0], None


def gather_features(features: Tensor) -> Tensor:
    """Return the rows of all processes in rank order, (G, E); gradients flow back to their processes."""
    return features if world_size() == 1 else _Gather.apply(features)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        gathered = local.new_empty((world_size() * len(local), *local.shape[1:]))
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].new_empty((len(grads[0]) // world_size(), *grads[0].shape[1:]))
        dist.reduce_scatter_tensor(summed, grads[0].contiguous())
        return summed


def world_size() -> int:
    """Return the number of training processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
