"""Training strategies for several processes: a full model replica, or shards of it, per process.

Each is an entry of ``STRATEGIES`` with the same interface: the module to call with a batch, the computation, clipping
and application of gradients, and the checkpoint contents. Checkpoint tensors have the names of the model's parameters,
so that a run may resume with another strategy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from clips.core.artifact import log_info
from clips.method.clips_model import ClipsModel
from clips.method.optimizer import OptimizerConfig
from clips.model.layers import checkpoint_layers, compile_modules, repeated_layers
from clips.parallel.ddp import DDPStrategy, Strategy
from clips.parallel.distributed import DistributedContext
from clips.parallel.distributed_config import DistributedConfig, Parallel
from clips.parallel.fsdp import FSDPStrategy


def _zero(encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext, *, stage: int) -> Strategy:
    from clips.parallel.zero import Zero3Strategy, ZeroStrategy  # takes seconds to import

    kind = Zero3Strategy if stage == 3 else ZeroStrategy
    return kind(encoder, optim, processes, stage=stage)


STRATEGIES: dict[Parallel, Callable[..., Strategy]] = {
    "ddp": DDPStrategy,
    "fsdp": FSDPStrategy,
    "zero1": functools.partial(_zero, stage=1),
    "zero2": functools.partial(_zero, stage=2),
    "zero3": functools.partial(_zero, stage=3),
}


def modules_to_compile(encoder: ClipsModel) -> list[nn.Module]:
    """Return what ``distributed.torch_compile`` compiles: repeated layers, and the captions' cross-entropy."""
    captioner = encoder.captioner
    return [*repeated_layers(encoder), *([] if captioner is None else [captioner.head.cross_entropy])]


def build_strategy(
    encoder: ClipsModel,
    distributed: DistributedConfig,
    optim: OptimizerConfig,
    processes: DistributedContext,
    *,
    bf16: bool = False,
) -> Strategy:
    """Prepare ``encoder`` for distributed training; it is changed in place.

    Args:
        encoder: the model, on the device.
        distributed: the settings.
        optim: the optimizer's settings.
        processes: the processes of the training.
        bf16: the model will be called with activations in bf16.
    """
    if distributed.activation_checkpointing:
        count = checkpoint_layers(encoder, distributed.checkpointing_interval)
        if processes.is_main:
            log_info(f"distributed.activation_checkpointing: {count} layers recompute their activations")
    if distributed.torch_compile:
        compile_modules(modules_to_compile(encoder))
    fsdp = {"group_size": distributed.shard_group_size, "bf16": bf16} if distributed.strategy == "fsdp" else {}
    return STRATEGIES[distributed.strategy](encoder, optim, processes, **fsdp)
