"""Roofline of a training step: each kernel takes the time of its FLOPs or of its bytes, whichever is longer.

The kernels are those of a dry run on fake tensors (`clips.planning.dry_run`), of compiled layers those of
`clips.planning.inductor`. Every kernel reads its inputs from memory and writes its outputs there, no cache helps, and
no kernel waits for the host or for data: the resulting utilization is an estimate under the rates of `rates_of`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clips.method.clips_model import ClipsModel
from clips.model import length_grouping
from clips.parallel.strategies import modules_to_compile
from clips.planning.dry_run import Device, fake_batch, run_fake_step
from clips.planning.hardware import Gpu
from clips.planning.inductor import CompiledKernel, lowered_layers
from clips.planning.profilers import ATTENTION_BACKWARD, FLASH_BACKWARD, FORMULAS

OPTIMIZER_BYTES = 32
"""Per trained parameter: fused AdamW reads weight, gradient and two moments and writes all but the gradient (28), the
gradient's norm reads it (4)."""
_CLIPPING_BYTES = 8  # reads and writes the gradient
_NO_KERNELS = {
    "view", "reshape", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split",
    "split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "unbind", "as_strided", "chunk", "_reshape_alias",
    "unflatten", "flatten", "view_as", "expand_as", "lift_fresh", "device", "sym_size", "sym_numel", "sym_stride",
    "is_contiguous", "empty", "empty_like", "promote_types",
}  # fmt: skip

_FILLS = {"new_full", "new_zeros", "zeros_like", "ones_like", "full_like", "zero_", "fill_"}  # read nothing
_READ_ROWS = {"gather", "index_select", "index", "embedding"}  # read as much as they write
_WRITE_ROWS = {"scatter_", "scatter_add_", "index_put_"}  # read and write as much as their last argument


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device reaches, not what its data sheet says.

    Args:
        matmul: FLOP/s of matrix products.
        attention: FLOP/s of fused attention without a mask or causal: forward, backward.
        masked_attention: FLOP/s of fused attention under a dense mask: forward, backward.
        memory: bytes per second.
        launch: seconds of a kernel at least.
    """

    matmul: float
    attention: tuple[float, float]
    masked_attention: tuple[float, float]
    memory: float
    launch: float

    def seconds(self, kind: str, flops: float, size: float) -> float:
        """Return the time of a kernel of a kind, from its FLOPs and bytes."""
        forward, backward = self.masked_attention if "mask" in kind else self.attention
        rate = (backward if "backward" in kind else forward) if kind.startswith("attention") else self.matmul
        return max(flops / rate, size / self.memory, self.launch)


def rates_of(gpu: Gpu, precision: str) -> Rates:
    """Return the rates of a GPU: its data sheet's, times the ratios that large kernels reach.

    Matrix products reach 66 % of the peak (measured on an H200: 67 %), memory 53 % of the bandwidth, and no kernel
    takes less than 10.5 µs: the last two are fitted to four steps measured there, see docs/performance.md. Assumed:
    flash attention of head width 64 reaches 40 % forward and 30 % backward, memory-efficient attention under a mask
    18 and 12 %.
    """
    peak = gpu.peak(precision)
    return Rates(
        matmul=0.66 * peak,
        attention=(0.4 * peak, 0.3 * peak),
        masked_attention=(0.18 * peak, 0.12 * peak),
        memory=0.53 * gpu.bandwidth,
        launch=10.5e-6,
    )


@dataclasses.dataclass(kw_only=True)
class Kernels:
    """Totals of some kernels of a step: their number, time, model FLOPs, bytes read and written."""

    count: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def add(self, *, count: int = 1, seconds: float, flops: float, bytes: float) -> None:
        """Count more kernels."""
        self.count += count
        self.seconds += seconds
        self.flops += flops
        self.bytes += bytes


class KernelTrace(TorchDispatchMode):
    """Records the kernels of a step: phase, kind, model FLOPs, executed FLOPs, and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "forward"
        self.kernels: list[tuple[str, str, float, float, int]] = []
        self._is_paused = False

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether compiled layers stay compiled within it."""
        return True

    def end_forward(self) -> None:
        """The following kernels are of the backward pass."""
        self.phase = "backward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator, name = func.overloadpacket, func.overloadpacket.__name__
        if self._is_paused or name in _NO_KERNELS:
            return result
        formula = FORMULAS.get(operator)
        flops = float(formula(*args, **(kwargs or {}), out_val=result)) if formula is not None else 0.0
        is_masked = (kwargs or {}).get("attn_mask") is not None
        self._add(operator, name, flops, _traffic(name, (args, kwargs), result), is_masked=is_masked)
        return result

    @contextlib.contextmanager
    def compiled(self, kernels: list[CompiledKernel]) -> Iterator[None]:
        """Record the kernels of a compiled graph, and ignore the operators within."""
        for kernel in kernels:
            self._add(kernel.operator, kernel.kind, kernel.flops, kernel.bytes, is_masked=kernel.is_masked)
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def _add(self, operator: Any, name: str, flops: float, size: int, *, is_masked: bool) -> None:
        kind, model_flops = name if not flops else "matmul", flops
        if "attention" in name:
            kind = f"attention{' under a mask' if is_masked else ''}{' backward' if 'backward' in name else ''}"
            model_flops = flops * 2 / FLASH_BACKWARD if operator in ATTENTION_BACKWARD else flops
        self.kernels.append((self.phase, kind, model_flops, flops, size))


def _traffic(name: str, inputs: Any, result: Any) -> int:
    """Return the bytes that a kernel reads and writes; a tensor that is used twice counts once."""
    outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    if name in _FILLS or name in _READ_ROWS:
        return sum(value.nbytes for value in outputs) * (1 if name in _FILLS else 2)
    if name in _WRITE_ROWS:
        return 3 * [value for value in tree_leaves(inputs) if isinstance(value, Tensor)][-1].nbytes
    seen: dict[tuple[Any, ...], int] = {}
    for value in [*tree_leaves(inputs), *outputs]:
        if isinstance(value, Tensor):
            size = min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
            seen[value.untyped_storage()._cdata, value.storage_offset(), value.numel()] = size
    in_place = sum(value.numel() * value.element_size() for value in outputs[:1]) if name.endswith("_") else 0
    return sum(seen.values()) + in_place


def trace_step(
    model: ClipsModel,
    samples: int,
    *,
    device: Device = "cuda",
    bf16: bool = True,
    checkpointing: int = 0,
    caption_tokens: int | None = None,
    compiled: bool = False,
) -> KernelTrace:
    """Trace the kernels of a forward and backward pass; see `clips.planning.dry_run.profile_step`.

    With ``compiled`` the repeated layers are under torch.compile, see `clips.planning.inductor`.
    """
    trace, batch = KernelTrace(), fake_batch(model, samples, caption_tokens)
    step = functools.partial(run_fake_step, model, batch, device=device, bf16=bf16, checkpointing=checkpointing)
    layers = lowered_layers(modules_to_compile(model), trace.compiled) if compiled else contextlib.nullcontext()
    with _groups_of(device), layers:
        if compiled:
            step(lambda: None)  # compiles; a compilation would be traced
            trace.kernels.clear()
        with trace:
            step(trace.end_forward)
    return trace


@contextlib.contextmanager
def _groups_of(device: Device) -> Iterator[None]:
    """Group texts by length as on ``device``; memory is profiled with the CPU's groups, which need fewer samples."""
    sizes = length_grouping.MIN_GROUP_SIZE
    before = sizes["cpu"]
    sizes["cpu"] = sizes[device]
    try:
        yield
    finally:
        sizes["cpu"] = before


def roofline(
    trace: KernelTrace, trained: int, rates: Rates, *, clipping: bool = False
) -> dict[tuple[str, str], Kernels]:
    """Return the totals of each (phase, kind) of a step, the longest first.

    Args:
        trace: of the forward and the backward pass.
        trained: number of trained parameters, for the optimizer.
        rates: of the device.
        clipping: whether the gradient is clipped.
    """
    totals: dict[tuple[str, str], Kernels] = defaultdict(Kernels)
    for phase, kind, model_flops, flops, size in trace.kernels:
        seconds = rates.seconds(kind, flops, size)
        totals[phase, kind].add(seconds=seconds, flops=model_flops, bytes=size)
    updated = trained * (OPTIMIZER_BYTES + (_CLIPPING_BYTES if clipping else 0))
    totals["optimizer", "fused AdamW"].add(seconds=updated / rates.memory, flops=0.0, bytes=updated)
    return dict(sorted(totals.items(), key=lambda entry: -entry[1].seconds))
