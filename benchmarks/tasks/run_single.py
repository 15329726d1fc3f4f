"""``clips-bench run encoder DIR`` and ``clips-bench run llava DIR``: one directory, after or during its training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.tasks.output_cache import CACHE_DIR, cache_key
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, Precision, RunConfig
from clips.core.artifact import directory_hash, file_hash
from clips.core.cache import made_once
from clips.model_refs import OPEN_CLIP_CONFIG
from clips.training.train_state import CONFIG_FILE, list_checkpoints, read_train_state


@dataclass(frozen=True, kw_only=True)
class RunSingleConfig:
    """Evaluate one encoder, or one LLaVA, on a list of benchmarks.

    Args:
        model: directory of the encoder or LLaVA, or its Hub repo id. For an encoder that is still training the
            latest checkpoint is used.
        benchmarks: the benchmarks, each with its data.
        model_name: the model's name in the table; by default the directory's, with the number of steps of a checkpoint.
        output: directory of the result files, ``<output>/<model_name>/<benchmark>.json``.
        batch_size: images, captions or questions per forward pass.
        precision: of the model; ``auto`` is fp32, except for a LLaVA on a GPU, which runs in bf16.
        device: ``auto`` is a GPU if available.
        overwrite: evaluate again although a result exists.
    """

    model: str
    benchmarks: list[BenchmarkConfig]
    model_name: str | None = None
    output: str = "results"
    batch_size: int = 64
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False


def run_encoder(config: RunSingleConfig) -> None:
    """Evaluate an encoder.

    Raises:
        UserError: as of ``benchmarks.tasks.run_benchmarks.run_benchmarks``.
    """
    directory, name = config.model, _name(config.model)
    run_directory = Path(directory)
    if not (run_directory / OPEN_CLIP_CONFIG).is_file() and (found := list_checkpoints(run_directory)):
        name = f"{name}-step-{read_train_state(found[-1]).step}"
        directory = _exported(found[-1], Path(config.output) / CACHE_DIR / "encoders", name)
    run_benchmarks(_run_config(config, name, encoder=directory))


def run_llava(config: RunSingleConfig) -> None:
    """Evaluate a LLaVA.

    Raises:
        UserError: as of ``benchmarks.tasks.run_benchmarks.run_benchmarks``.
    """
    run_benchmarks(_run_config(config, _name(config.model), llava=config.model))


def _run_config(
    config: RunSingleConfig, name: str, *, encoder: str | None = None, llava: str | None = None
) -> RunConfig:
    return RunConfig(
        model_name=config.model_name or name,
        output=config.output,
        benchmarks=config.benchmarks,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        overwrite=config.overwrite,
        encoder=encoder,
        llava=llava,
    )


def _name(directory: str) -> str:
    """A model name derived from a path or a Hub repo id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(directory).resolve().name if directory else "").strip("-.") or "model"


def _exported(checkpoint: Path, folder: Path, name: str) -> str:
    """The encoder directory of a checkpoint, written by one process if missing.

    The checkpoint's hash is part of its name, because another run may have the same name and step count.
    """
    from clips.export import ExportConfig, run_export

    key = cache_key(checkpoint=directory_hash(checkpoint), config=file_hash(checkpoint / CONFIG_FILE))
    exported = made_once(
        folder / f"{name}-{key[:12]}",
        is_made=lambda directory: (directory / OPEN_CLIP_CONFIG).is_file(),
        make=lambda directory: run_export(ExportConfig(checkpoint=str(checkpoint), output=str(directory))),
    )
    return str(exported)
