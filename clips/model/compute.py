"""How models compute, with the same results: attention in place, recomputed and compiled layers, bf16, rows grouped."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class PackedAttention(nn.MultiheadAttention):
    """torch's module, with its parameters, whose self-attention reads the packed projection in place.

    torch's own copies queries, keys and values to one tensor each, and their gradients back: 15 % of an eager step of
    ViT-L/14 on a GPU, as predicted (docs/scores/measurements.md). Other calls than plain self-attention are torch's.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention (B, L, D) over ``query`` (B, L, D), and None; arguments are torch's."""
        mask, is_self = options.get("attn_mask"), query is key and query is value and not arguments
        usual = options.keys() <= {"need_weights", "attn_mask"} and options.get("need_weights") is False
        if not (is_self and usual) or (mask is not None and not mask.is_floating_point()):
            return super().forward(query, key, value, *arguments, **options)
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in packed)
        if mask is not None and mask.ndim == 3:  # (B × heads, L, L)
            mask = mask.unflatten(0, (-1, self.num_heads))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class SelfAttention(PackedAttention):
    """`PackedAttention` for towers that have self-attention only: ``key`` and ``value`` are not read.

    ZeRO-3 passes three tensors where the caller passes one three times, which looks like another call of torch's.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention (B, L, D) over ``query`` (B, L, D), and None; other arguments are torch's."""
        return super().forward(query, query, query, *arguments, **options)


def pack_attention(model: nn.Module, kind: type[PackedAttention] = PackedAttention) -> None:
    """Turn the batch-first attention modules of ``model`` without dropout and added keys into ``kind``."""
    for module in model.modules():
        if type(module) is not nn.MultiheadAttention or not module.batch_first or module.in_proj_weight is None:
            continue
        if not (module.dropout or module.add_zero_attn or module.bias_k is not None):
            module.__class__ = kind  # a new module would lose hooks and shared weights


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

    Where layers are stages of layers, as in ConvNeXt and Swin, the inner ones count. Returns the number of layers that
    recompute.
    """
    count = 0
    for layer in _innermost_layers(model):
        layer.__dict__.pop("forward", None)
        # Recomputation would update the statistics of batch norms twice.
        if recompute and not any(isinstance(module, _BatchNorm) for module in layer.modules()):
            layer.forward = functools.partial(_recompute, layer)  # a wrapper module would rename the weights
            count += 1
    return count


def _innermost_layers(model: nn.Module) -> list[nn.Module]:
    innermost: list[nn.Module] = []
    for layer in repeated_layers(model):
        inner = [part for part in _innermost_layers(layer) if any(True for _ in part.children())]
        innermost += inner or [layer]
    return innermost


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


def resolve_precision(
    wanted: Literal["auto", "fp32", "bf16"], device: torch.device
) -> tuple[Literal["fp32", "bf16"], str]:
    """Return the precision and the reason. ``auto`` selects bf16 if the hardware multiplies it faster than float32.

    The criterion is the instruction set, not a timing, so that all runs on a machine have the same precision.
    """
    if wanted != "auto":
        return wanted, "as configured"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
    else:
        instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, name, lambda: False)() for name in instructions)
        name = "this CPU"
    return ("bf16", f"{name} multiplies it faster") if fast else ("fp32", f"{name} is not faster with bf16")


@contextlib.contextmanager
def fast_sdpa_backend(device: torch.device, precision: Literal["fp32", "bf16"]) -> Iterator[None]:
    """Use attention by plain matrix products for bf16 on a CPU, where training is faster with them.

    The backward pass of the fused kernel takes three to ten times as long at the lengths of small towers. Enclose
    forward and backward pass together: recomputed activations must come from the same kernel.
    """
    if device.type != "cpu" or precision != "bf16":
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # affects CPUs, too, despite its name
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # otherwise it computes in float32, in twice the time
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


Rows = Literal["texts", "captions"]
# Each group launches all kernels once more, casts all weights and adds to their gradients. On an H200 three more groups
# of 64 web captions made a step of B/16 47 ms longer, of 107, and saved 8 % of its operations
# (docs/scores/measurements.md).
MIN_GROUP_SIZE: dict[str, dict[Rows, int]] = {
    "cpu": {"texts": 16, "captions": 16},
    "cuda": {"texts": 512, "captions": 64},  # a caption's row has the tokens of its image too
}


def group_by_length(lengths: Tensor, device: torch.device, rows: Rows) -> tuple[Tensor, list[int], list[int]]:
    """Split a batch into groups of rows of similar length, so that each is computed only up to its longest row.

    This only skips padding if tokens after a row's end do not influence its result. The number of groups depends only
    on the number of rows: processes with different texts call their layers equally often.

    Args:
        lengths: (B,) int64, B at least 1.
        device: of the computation.
        rows: of a text tower, or of the captioner.

    Returns:
        The rows' order (B,), shortest first; the sizes of the groups, which add up to B; the maximum length of each
        group.
    """
    order = lengths.argsort()
    least = MIN_GROUP_SIZE.get(device.type, MIN_GROUP_SIZE["cuda"])[rows]
    groups = order.tensor_split(max(1, min(8, len(lengths) // least)))
    sizes = [len(group) for group in groups]
    return order, sizes, [int(group.max()) for group in lengths[order].cpu().split(sizes)]
