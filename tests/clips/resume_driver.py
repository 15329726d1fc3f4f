"""Started by torchrun: resumes runs without training on, and writes what each process read of their checkpoints."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader

from clips.commandline.parsing import parse_config
from clips.parallel.distributed import end_processes
from clips.parallel.parallel_model import full_tensor
from clips.train import EncoderTrainConfig
from clips.training.setup import open_train_dataset, setup_run

RECORD_FILES = {"train_state.json", "config.yaml"}
_opens: collections.Counter[str] = collections.Counter()
_bytes: collections.Counter[str] = collections.Counter()


def count_reading() -> None:
    """Count what Python and safetensors, which maps files on its own, open in checkpoints, and bytes of tensors."""
    sys.addaudithook(lambda event, args: _note(args[0]) if event == "open" else None)
    safe_open, read_slice = safetensors.safe_open, HuggingFaceStorageReader._process_read_request

    def opening(filename: Any, *args: Any, **options: Any) -> Any:
        _note(filename)
        return safe_open(filename, *args, **options)

    def reading(self: Any, file: Any, request: Any, planner: Any) -> None:
        read_slice(self, file, request, planner)
        _bytes["tensors"] += planner.resolve_tensor(request).nbytes

    safetensors.safe_open = opening  # type: ignore[misc, assignment]
    HuggingFaceStorageReader._process_read_request = reading  # type: ignore[method-assign]


def _note(file: Any) -> None:
    if ".checkpoints" in str(file) and Path(str(file)).is_file():
        _opens["records" if Path(str(file)).name in RECORD_FILES else "tensors"] += 1


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names and values; all processes ask together."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode())
        found.update(full_tensor(value.detach()).cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def resume(config_file: str) -> None:
    """Resume a run; writes counts and hashes of this process next to its config."""
    _opens.clear()
    _bytes.clear()
    config = parse_config(EncoderTrainConfig, ["--config", config_file], prog="driver")
    assert config is not None
    run = setup_run(config, open_train_dataset(config))
    found = {
        "opens": dict(_opens),
        "bytes": dict(_bytes),
        "step": run.state.step,
        "invalid": run.state.invalid_samples.count,
    }
    optimizer = run.parallel.optimizer_state_dict()
    moments = {name: value for name, value in optimizer.items() if not name.endswith(".step")}
    state = {"weights": run.encoder.state_dict(), "moments": moments}
    if run.average is not None:
        state["average"] = run.average.state
    found |= {name: digest(values) for name, values in state.items()}
    Path(config_file).with_suffix(f".rank{run.processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    count_reading()
    for file in sys.argv[1:]:
        resume(file)
    assert os.environ["WORLD_SIZE"] == "2"
    end_processes()
