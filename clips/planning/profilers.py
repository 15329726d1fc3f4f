"""Counters of floating point operations and of bytes of tensors, fake or real."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper
from torch.utils.weak import WeakIdKeyDictionary

_FLASH_BACKWARD = 2.5  # torch counts the recomputed scores of flash attention's backward pass; a model has 2


class FlopCounter(TorchDispatchMode):
    """Counts model FLOPs, as MFU defines them: without the attention scores that a fused backward kernel recomputes.

    torch's own counter, whose formulas are used, distinguishes modules by hooks that keep recomputed layers alive, and
    costs a third of a dry run's time.

    Source: appendix B of PaLM (arXiv 2204.02311).
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if (formula := _FORMULAS.get(kind)) is not None:
            flops = formula(*args, **(kwargs or {}), out_val=result)
            self.total += flops * 2 / _FLASH_BACKWARD if kind in _RECOMPUTES_SCORES else flops
        return result


def _added_product(into: Any, left: Any, right: Any, **named: Any) -> int:
    """FLOPs of a product that is added in place, from shapes; torch counts only out-of-place ones."""
    return 2 * left[0] * left[1] * right[1]


def _convolution_backward(gradient: Any, x: Any, weight: Any, *settings: Any, **named: Any) -> int:
    """FLOPs of a convolution's gradients, from shapes; torch's formula ignores groups."""
    wanted = sum(settings[-1][:2])  # by the input, by the weight
    return wanted * 2 * math.prod(weight) * gradient[0] * math.prod(gradient[2:])


_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: shape_wrapper(_added_product),
    torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward),
}
_RECOMPUTES_SCORES = {kind for kind in _FORMULAS if "attention" in str(kind) and "backward" in str(kind)}


class MemoryTrace(TorchDispatchMode):
    """The bytes of all live tensors allocated within it, after every allocating operation.

    Args:
        model: its parameters and buffers are not counted; their gradients and low-precision copies count separately.
        divisor: of the batch size and of none of the model's sizes: bytes that it divides grow with the batch.
    """

    def __init__(self, model: nn.Module, divisor: int = 1) -> None:
        super().__init__()
        self.model, self.divisor = model, divisor
        self.timeline: list[tuple[int, int, int]] = []
        self.growing: list[int] = []
        self._bytes = {"gradients": 0, "copies": 0, "rest": 0, "growing": 0}
        self._kinds: Any = WeakIdKeyDictionary()  # storage → [kind], or None for those that existed before
        self._hooks: list[Any] = []

    @property
    def peak(self) -> int:
        """Bytes at the fullest instant."""
        return max(map(sum, self.timeline))

    def __enter__(self) -> MemoryTrace:
        self._parameters: Any = WeakIdKeyDictionary()
        for value in [*self.model.parameters(), *self.model.buffers()]:
            self._kinds[value.untyped_storage()] = None
            if value.requires_grad:
                self._parameters[value.untyped_storage()] = True
                self._hooks.append(value.register_post_accumulate_grad_hook(self._has_gradient))
        self._note()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._note()
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = func is torch.ops.aten._to_copy.default and args[0].untyped_storage() in self._parameters
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage(), "copies" if copies else "rest")
        return result

    def _count(self, storage: Any, kind: str) -> None:
        if storage in self._kinds:
            return
        held, size = [kind], storage.nbytes()
        self._kinds[storage] = held
        self._add(kind, size)
        weakref.finalize(storage, self._gone, held, size)
        self._note()

    def _add(self, kind: str, size: int) -> None:
        self._bytes[kind] += size
        if kind == "rest" and size % self.divisor == 0:
            self._bytes["growing"] += size

    def _gone(self, held: list[str], size: int) -> None:
        self._add(held[0], -size)

    def _has_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        held = self._kinds.get(storage)
        if held is not None and held[0] != "gradients":
            self._add(held[0], -storage.nbytes())
            self._add("gradients", storage.nbytes())
            held[0] = "gradients"

    def _note(self) -> None:
        self.timeline.append((self._bytes["gradients"], self._bytes["copies"], self._bytes["rest"]))
        self.growing.append(self._bytes["growing"])
