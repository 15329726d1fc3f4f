"""Ways to train one model in many processes: every process holds all of it, or shards of it.

Each is an entry of ``PARALLELISMS`` and answers the same questions: what is called with a batch, how a gradient is
made, clipped and followed, and what a checkpoint keeps. Tensors for a checkpoint go by the names of the model's
parameters, so that a run may go on under another entry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from clips.method.model import ClipsModel
from clips.method.optim import OptimConfig
from clips.parallel.base import DataParallel, layers_of
from clips.parallel.config import Parallel, ScaleConfig
from clips.parallel.fsdp import FullySharded
from clips.parallel.processes import Processes


def _zero(encoder: ClipsModel, optim: OptimConfig, processes: Processes, *, stage: int) -> DataParallel:
    from clips.parallel.zero import Zero, Zero3  # takes seconds to import

    return Zero3(encoder, optim, processes) if stage == 3 else Zero(encoder, optim, processes, stage=stage)


PARALLELISMS: dict[Parallel, Callable[[ClipsModel, OptimConfig, Processes], DataParallel]] = {
    "ddp": DataParallel,
    "fsdp": FullySharded,
    "zero1": functools.partial(_zero, stage=1),
    "zero2": functools.partial(_zero, stage=2),
    "zero3": functools.partial(_zero, stage=3),
}


def spread(encoder: ClipsModel, scale: ScaleConfig, optim: OptimConfig, processes: Processes) -> DataParallel:
    """Make ``encoder``, with its weights in it, a model that many processes train; it is changed in place."""
    if scale.activation_checkpointing:
        encoder.checkpoint_activations()
    if scale.compile:
        for layer in layers_of(encoder):
            layer.compile()
    return PARALLELISMS[scale.parallel](encoder, optim, processes)
