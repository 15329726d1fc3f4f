"""A GPU of fake tensors: shapes, dtypes and devices without data, so that reading a value from it is an error.

Torch's autograd needs a driver for tensors of a GPU, so that only the forward pass can be run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)


class FakeCuda(TorchFunctionMode):
    """Sends tensors to a fake GPU, and creates them there; tensors of the CPU stay real.

    ``copies`` names the functions that have copied from the CPU to the GPU or back, for which the host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.copies: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(each, torch.device) and each.type == "cuda" for each in (*args, *kwargs.values())):
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.device.type == "cpu" and _on_gpu(args):
                self.copies.append(func.__name__)
            return result
        if func is torch.tensor or any(isinstance(each, Tensor) and each.device.type == "cpu" for each in args):
            self.copies.append(func.__name__)
        with self.mode:
            sent = [self.mode.from_tensor(each) if isinstance(each, Tensor) else each for each in args]
            return func(*sent, **kwargs)


def _on_gpu(values: Any) -> bool:
    return any(isinstance(each, Tensor) and each.device.type == "cuda" for each in values)


def to_fake_cuda(model: nn.Module) -> FakeCuda:
    """Replace parameters and buffers by tensors of a fake GPU; returns the mode in which the model is called."""
    fake = FakeCuda()
    for module in model.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            with fake.mode:
                empty: Tensor = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
            is_weight = isinstance(value, nn.Parameter)
            setattr(module, name, nn.Parameter(empty, requires_grad=value.requires_grad) if is_weight else empty)
    return fake


def pretend_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch choose what it would on a GPU: autocast to bfloat16, flash attention."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.backends.cuda.can_use_flash_attention", lambda *_: True)
