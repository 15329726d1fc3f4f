"""One process or many: the same training, started by python, torchrun or deepspeed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed


def start_processes() -> Any:
    """The `accelerate.Accelerator` of this process, which joins the group that the launcher's environment names."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over all processes; the values themselves where there is one."""
    everyone = gather_objects(values)
    return {name: sum(theirs[name] for theirs in everyone) / len(everyone) for name in values}


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every process, in order of rank, on every process."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def wait_for_main_process() -> None:
    """Return when all processes have come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def end_processes() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
