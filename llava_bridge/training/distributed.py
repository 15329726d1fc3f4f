"""The process group of training."""

from __future__ import annotations

import os

import torch


def init_process_group() -> None:
    """Join the process group of the launcher, and select this process's GPU."""
    import deepspeed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    # On CPU DeepSpeed would first compile a shared-memory all-reduce for a minute; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def barrier() -> None:
    """Wait for all processes."""
    torch.distributed.barrier()
