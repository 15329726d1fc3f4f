"""Counters of FLOPs and of the bytes of fake or real tensors."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper
from torch.utils.weak import WeakIdKeyDictionary

FLASH_BACKWARD = 2.5  # torch counts the recomputed scores of flash attention's backward pass; a model has 2


class FlopCounter(TorchDispatchMode):
    """Counts model FLOPs, as MFU defines them: without the attention scores that a fused backward kernel recomputes.

    It uses the formulas of torch's own counter, whose hooks keep recomputed layers alive and take a third of a dry
    run's time. Source: appendix B of PaLM (arXiv 2204.02311).
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        if (formula := FORMULAS.get(operator)) is not None:
            flops = formula(*args, **(kwargs or {}), out_val=result)
            self.total += flops * 2 / FLASH_BACKWARD if operator in ATTENTION_BACKWARD else flops
        return result


def _addmm_inplace_flops(total: Any, left: Any, right: Any, **options: Any) -> int:
    """Return FLOPs from shapes; torch counts only the out-of-place operator."""
    return 2 * left[0] * left[1] * right[1]


def _convolution_backward_flops(gradient: Any, x: Any, weight: Any, *settings: Any, **options: Any) -> int:
    """Return FLOPs from shapes; torch's formula ignores groups."""
    num_gradients = sum(settings[-1][:2])  # of the input, of the weight
    return num_gradients * 2 * math.prod(weight) * gradient[0] * math.prod(gradient[2:])


FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: shape_wrapper(_addmm_inplace_flops),
    torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward_flops),
}
ATTENTION_BACKWARD = {name for name in FORMULAS if "attention" in str(name) and "backward" in str(name)}


class MemoryTrace(TorchDispatchMode):
    """Records the bytes of the live tensors allocated within it, after every allocation.

    Args:
        model: its parameters and buffers are not counted; their gradients and low-precision copies count separately.
        divisor: divides the batch size and none of the model's sizes: bytes that it divides grow with the batch.
    """

    def __init__(self, model: nn.Module, divisor: int = 1) -> None:
        super().__init__()
        self.model, self.divisor = model, divisor
        self.timeline: list[tuple[int, int, int]] = []
        self.growth: list[int] = []
        self._bytes = {"gradients": 0, "copies": 0, "other": 0, "growth": 0}
        self._kinds: Any = WeakIdKeyDictionary()  # storage → [kind], or None for those that existed before
        self._hooks: list[Any] = []

    @property
    def peak(self) -> int:
        """Maximum of the total bytes."""
        return max(map(sum, self.timeline))

    def __enter__(self) -> MemoryTrace:
        self._parameters: Any = WeakIdKeyDictionary()
        for value in [*self.model.parameters(), *self.model.buffers()]:
            self._kinds[value.untyped_storage()] = None
            if value.requires_grad:
                self._parameters[value.untyped_storage()] = True
                self._hooks.append(value.register_post_accumulate_grad_hook(self._mark_gradient))
        self._record()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._record()
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = func is torch.ops.aten._to_copy.default and args[0].untyped_storage() in self._parameters
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage(), "copies" if copies else "other")
        return result

    def _count(self, storage: Any, kind: str) -> None:
        if storage in self._kinds:
            return
        kind_of_storage, size = [kind], storage.nbytes()
        self._kinds[storage] = kind_of_storage
        self._add(kind, size)
        weakref.finalize(storage, self._free, kind_of_storage, size)
        self._record()

    def _add(self, kind: str, size: int) -> None:
        self._bytes[kind] += size
        if kind == "other" and size % self.divisor == 0:
            self._bytes["growth"] += size

    def _free(self, kind: list[str], size: int) -> None:
        self._add(kind[0], -size)

    def _mark_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        kind = self._kinds.get(storage)
        if kind is not None and kind[0] != "gradients":
            self._add(kind[0], -storage.nbytes())
            self._add("gradients", storage.nbytes())
            kind[0] = "gradients"

    def _record(self) -> None:
        self.timeline.append((self._bytes["gradients"], self._bytes["copies"], self._bytes["other"]))
        self.growth.append(self._bytes["growth"])


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module or class."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
