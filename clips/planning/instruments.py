"""What runs within them is counted: floating point operations, and bytes of tensors. Tensors may be fake or real."""

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

_FLASH_BACKWARD = 2.5  # torch counts the scores that flash attention's backward pass computes again; a model has 2


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of what runs within it, less the attention scores that a fused kernel computes again.

    These are model FLOPs, as MFU takes them. torch's own counter, whose formulas are taken, tells modules apart by
    hooks that keep recomputed layers alive, and takes a third of a dry step's time.

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
            self.total += flops * 2 / _FLASH_BACKWARD if kind in _COMPUTES_SCORES_AGAIN else flops
        return result


def _added_product(into: Any, left: Any, right: Any, **named: Any) -> int:
    """FLOPs of a product that is added in place, from shapes; torch counts those only that are added elsewhere."""
    return 2 * left[0] * left[1] * right[1]


def _convolution_backward(gradient: Any, x: Any, weight: Any, *settings: Any, **named: Any) -> int:
    """FLOPs of a convolution's gradients, from shapes; torch's formula takes no heed of groups."""
    wanted = sum(settings[-1][:2])  # by the input, by the weight
    return wanted * 2 * math.prod(weight) * gradient[0] * math.prod(gradient[2:])


_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: shape_wrapper(_added_product),
    torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward),
}
_COMPUTES_SCORES_AGAIN = {kind for kind in _FORMULAS if "attention" in str(kind) and "backward" in str(kind)}


class MemoryTrace(TorchDispatchMode):
    """The bytes of all tensors made within it that are still there, after every operation that makes one.

    Parameters, buffers and what else was there before are not counted. Tensors may be fake or real.

    Args:
        model: whose parameters' gradients and copies are told apart.
        sign: a divisor of the batch that is none of the model's sizes: bytes that it divides grow with the batch.
    """

    def __init__(self, model: nn.Module, sign: int = 1) -> None:
        super().__init__()
        self.model, self.sign = model, sign
        self.timeline: list[tuple[int, int, int]] = []
        self.growing: list[int] = []
        self._bytes = {"gradients": 0, "copies": 0, "rest": 0, "growing": 0}
        self._kinds: Any = WeakIdKeyDictionary()  # storage → [kind], or None for what was there before
        self._hooks: list[Any] = []

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
        if kind == "rest" and size % self.sign == 0:
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
