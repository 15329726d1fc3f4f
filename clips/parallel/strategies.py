"""Ways to train one model in many processes: every process holds all of it, or shards of it.

Each is an entry of ``STRATEGIES`` and answers the same questions: what is called with a batch, how a gradient is
made, clipped and followed, and what a checkpoint keeps. Tensors for a checkpoint go by the names of the model's
parameters, so that a run may go on under another entry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from clips.method.clips_model import ClipsModel
from clips.method.optimizer import OptimizerConfig
from clips.parallel.ddp import DDPStrategy, repeated_layers
from clips.parallel.distributed import DistributedContext
from clips.parallel.distributed_config import DistributedConfig, Parallel
from clips.parallel.fsdp import FSDPStrategy


def _zero(encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext, *, stage: int) -> DDPStrategy:
    from clips.parallel.zero import Zero3Strategy, ZeroStrategy  # takes seconds to import

    return (
        Zero3Strategy(encoder, optim, processes) if stage == 3 else ZeroStrategy(encoder, optim, processes, stage=stage)
    )


STRATEGIES: dict[Parallel, Callable[[ClipsModel, OptimizerConfig, DistributedContext], DDPStrategy]] = {
    "ddp": DDPStrategy,
    "fsdp": FSDPStrategy,
    "zero1": functools.partial(_zero, stage=1),
    "zero2": functools.partial(_zero, stage=2),
    "zero3": functools.partial(_zero, stage=3),
}


def build_strategy(
    encoder: ClipsModel, distributed: DistributedConfig, optim: OptimizerConfig, processes: DistributedContext
) -> DDPStrategy:
    """Make ``encoder``, with its weights in it, a model that many processes train; it is changed in place."""
    if distributed.activation_checkpointing:
        encoder.checkpoint_activations()
    if distributed.torch_compile:
        for layer in repeated_layers(encoder):
            layer.compile()
    return STRATEGIES[distributed.strategy](encoder, optim, processes)
