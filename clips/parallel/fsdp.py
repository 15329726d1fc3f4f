"""Every process holds shards of the model, put together layer by layer (torch's FSDP2)."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from clips.parallel.base import DataParallel, layers_of


class FullySharded(DataParallel):
    """Parameters, gradients and optimizer state in shards. Arguments as `DataParallel`."""

    shards_weights = True

    def _wrapped(self) -> nn.Module:
        mesh = init_device_mesh(self.processes.device.type, (self.processes.count,))
        for layer in layers_of(self.encoder):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.encoder, mesh=mesh)
        return self.encoder

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """See `DataParallel`."""
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
