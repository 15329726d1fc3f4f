"""Started by torchrun: loss and gradients of one batch under each strategy, and the bytes that it gathers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from clips.method.clips_model import build_model
from clips.method.optimizer import OptimizerConfig
from clips.method.recipes import CaptionerConfig, RecipeConfig
from clips.model import towers
from clips.model.architectures import ModelConfig
from clips.parallel import parallel_model
from clips.parallel.distributed import end_processes, start_processes
from clips.parallel.parallel_model import ParallelModel, full_tensor
from clips.train import compute_gradients
from clips.training.train_config import DistributedConfig

MODEL = ModelConfig(architecture="clips-tiny", image_size=16, context_length=12)
RECIPE = RecipeConfig(name="clips", captioner=CaptionerConfig(max_length=12, num_layers=2, max_loss_tokens=4, width=32))
COUNT = 12
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # FSDP's
BF16_GATHERS = parallel_model.bf16_gathers
CASES: dict[str, dict[str, Any]] = {
    "one": {},  # in one process only
    "ddp": {},
    "fsdp": {"strategy": "fsdp"},
    "hsdp": {"strategy": "fsdp", "shard_group_size": 2},
    "recomputed": {"strategy": "fsdp", "activation_checkpointing": True},
    "parts": {"strategy": "fsdp", "micro_batch_size": 3},
    "wide": {"strategy": "fsdp"},  # gathers float32, which autocast then casts
}


def gradients(precision: str, *, micro_batch_size: int | None = None, **distributed: Any) -> dict[str, Any]:
    processes = start_processes()
    model = build_model(MODEL, RECIPE, seed=0).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():  # norms and biases, too, have values that bf16 rounds
            value += 0.02 * torch.randn(value.shape, generator=generator)
    parallel = ParallelModel(
        model, DistributedConfig(**distributed), OptimizerConfig(), processes, bf16=precision == "bf16"
    )
    tokens = {
        name: torch.randint(1, 1000, (COUNT, 12), generator=generator) for name in (*model.recipe.encoded, "target")
    }
    mask = torch.arange(12) < torch.randint(1, 5, (COUNT, 1), generator=generator)
    batch = {"image": torch.randn(COUNT, 3, 16, 16, generator=generator), **tokens, "target_mask": mask}
    own = {name: value.chunk(processes.count)[processes.rank] for name, value in batch.items()}
    run: Any = SimpleNamespace(
        config=SimpleNamespace(micro_batch_size=micro_batch_size),
        parallel=parallel,
        model=parallel.model,
        recipe=model.recipe,
        processes=processes,
        precision=precision,
    )
    gathered: list[int] = []
    gather = getattr(dist, GATHER)

    def counting(*args: Any, **kwargs: Any) -> Any:
        gathered.append((args or list(kwargs.values()))[0].nbytes)
        return gather(*args, **kwargs)

    setattr(dist, GATHER, counting)
    try:
        losses, _ = compute_gradients(run, own)
    finally:
        setattr(dist, GATHER, gather)
    loss = losses["loss"].detach().clone()
    dist.all_reduce(loss)
    found = {name: full_tensor(value.grad) for name, value in model.named_parameters() if value.grad is not None}
    assert all(value.dtype is torch.float32 for value in found.values())
    return {"loss": loss / processes.count, "gathered": sum(gathered), **found}


if __name__ == "__main__":
    towers.is_unmodified = lambda _: False  # FSDP computes a text's last block at all positions, so do it always
    folder, *chosen = sys.argv[1:]
    for case in chosen:
        name, precision = case.split(":")
        parallel_model.bf16_gathers = (lambda _: parallel_model.FLOAT32) if name == "wide" else BF16_GATHERS
        result = gradients(precision, **CASES[name])
        if dist.get_rank() == 0:
            torch.save(result, Path(folder) / f"{name}-{precision}.pt")
    end_processes()
