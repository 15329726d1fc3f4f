"""One process, one model, many benchmarks: ``clips-bench run --config model.yaml``."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.results.protocol import SCORER_HASH, fingerprint
from benchmarks.results.results import (
    WITH_ALL_NUMBERS,
    Result,
    check_name,
    check_not_newer,
    read_result,
    result_path,
    write_result,
)
from benchmarks.tasks.eval_model import EvalModel, EvaluationConfig, ModelConfig
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.listing import subset_text
from benchmarks.tasks.mllm.judge import NO_JUDGE
from benchmarks.tasks.output_cache import CACHE_DIR, INPUT_LIBRARIES, cache_key, run_on_all, run_on_main
from benchmarks.tasks.registry import Benchmark, BenchmarkConfig, get_benchmark
from clips.commandline.signals import sigterm_interrupts
from clips.core.artifact import directory_hash, git_state, library_versions
from clips.core.chat_client import check_urls
from clips.core.durable import writable_directory
from clips.core.identity import digest, file_hash, identity, is_below
from clips.errors import UserError
from clips.model_refs import OPEN_CLIP_CONFIG
from clips.safe_text import log_info
from clips.training.run_dir import CONFIG_FILE, list_checkpoints, read_train_state
from clips.typed_data import checked, flatten, with_defaults
from llava_bridge.model.llava_checks import is_llava


@dataclass(frozen=True, kw_only=True)
class RunConfig(ModelConfig):
    """Evaluate one model on a list of benchmarks and write one result file for each.

    Args:
        benchmarks: the benchmarks, each with its data and its own settings.
        model_name: the model's name in the table.
    """

    benchmarks: list[BenchmarkConfig]
    model_name: str

    def __post_init__(self) -> None:
        check_name(self.model_name, "model_name")
        if self.llava is not None and self.lmms is not None:
            raise UserError("lmms: expected either it or 'llava', got both")
        if self.encoder is None and self.llava is None and self.lmms is None:
            raise UserError("encoder: expected an encoder directory, or 'llava:' a LLaVA directory, got neither")
        if not self.benchmarks:
            raise UserError("benchmarks: expected at least one")
        check_urls("endpoint", self.endpoint)
        if self.endpoint and self.llava is None:
            raise UserError("llava: expected the model's name at the endpoint")
        for each in self.benchmarks:
            if self.lmms is not None and getattr(each, "blind", None):
                raise UserError(f"benchmarks.{each.name}.blind: expected 'llava:' instead of lmms")
            if self.endpoint and (getattr(each, "num_beams", 1) or 1) > 1:
                raise UserError(f"benchmarks.{each.name}.num_beams: expected 1 with endpoint, whose API has no beams")
        names = [benchmark.name for benchmark in self.benchmarks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"benchmarks.name: '{twice[0]}' is used twice; rename one and set its 'task:'")


@sigterm_interrupts()
def run_benchmarks(config: RunConfig) -> None:
    """Evaluate a model on its benchmarks; a failed one is recorded and the others continue.

    Raises:
        UserError: an unknown benchmark, or a missing model or dataset, before anything runs; or failed benchmarks,
            listed after all have run.
    """
    config = checked(config)
    model = EvalModel(config)
    if config.device == "cuda":
        _ = model.device  # raises if there is none
    for benchmark in config.benchmarks:
        entry = get_benchmark(benchmark.entry)
        model.record(entry.needs)
        check_not_newer(config.output, config.model_name, benchmark.name)
        for field, path in benchmark.local_paths().items():
            if not Path(path).exists():
                of_hub = field == "data" and "/" in getattr(entry, "dataset", "")
                hint = f"; `clips-bench download {benchmark.entry} --output {path}` fetches it" if of_hub else ""
                raise UserError(f"benchmarks.{benchmark.name}.{field}: {path}: no such file or directory{hint}")
    run_on_all(model.processes, lambda: writable_directory(Path(config.output) / config.model_name))
    results = []
    for benchmark in config.benchmarks:
        with _locked(config, model, benchmark):
            results.append(_run_one(config, model, benchmark))
    failed = [f"{result.benchmark} ({result.failure_reason})" for result in results if result.status == "failed"]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}")


@contextlib.contextmanager
def _locked(run: RunConfig, model: EvalModel, config: BenchmarkConfig) -> Iterator[None]:
    """Wait until no other run evaluates this benchmark; its result is reused."""
    if not model.processes.is_main:
        yield
        return
    lock = FileLock(Path(run.output) / run.model_name / f".{config.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log_info(f"{run.model_name} {config.name}: another run evaluates it, waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _run_one(run: RunConfig, model: EvalModel, config: BenchmarkConfig) -> Result:
    """Evaluate one benchmark and store the result, or reuse a stored one; a failure never replaces numbers."""
    entry = get_benchmark(config.entry)
    started = time.perf_counter()
    earlier = run_on_main(model.processes, lambda: _earlier(run, config))
    record = model.record(entry.needs)
    outcome: Evaluation | None = None
    key = ""
    reason = None
    try:
        key, former_key = result_keys(model, entry, config, record["hash"])
        scorer = entry.scorer_hash()
        if (
            earlier is not None
            and earlier.key in {key, former_key}
            and earlier.schema in WITH_ALL_NUMBERS
            # no part of the key: results from before it was recorded stay valid
            and earlier.protocol.get(SCORER_HASH, scorer) == scorer
            and not _has_other_precision(run, model, earlier)
            and not run.overwrite
        ):
            if model.processes.is_main:
                log_info(f"{run.model_name} {config.name}: done already ({_headline(earlier)})")
            return earlier
        model.load(entry.needs)  # before the timer starts
        started = time.perf_counter()
        outcome = entry.evaluate(model, config)
    except UserError as error:
        reason = str(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        if model.processes.count > 1:
            raise  # other processes may wait for this one, and the launcher ends them
        if isinstance(error, PermissionError):
            reason = f"{error.filename}: permission denied"
        else:
            traceback.print_exc()  # not a user error
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    seconds = time.perf_counter() - started

    def as_result() -> Result:
        result = Result(
            model_name=run.model_name,
            benchmark=config.name,
            benchmark_type=entry.benchmark_type,
            status="failed" if outcome is None else "ok",
            failure_reason=reason,
            model=record,
            seconds=round(seconds, 3),
            git=git_state(),
            command=shlex.join(["clips-bench", *sys.argv[1:]]),
            execution={"batch_size": run.batch_size, "processes": model.processes.count, "device": str(model.device)},
            key=key,
        )
        return result if outcome is None else with_outcome(result, entry, outcome)

    result = run_on_main(model.processes, as_result)  # the others have no outcome
    keep_earlier = result.status == "failed" and earlier is not None
    if model.processes.is_main:
        if not keep_earlier:
            write_result(run.output, result, None if outcome is None else outcome.items)
        note = "; the earlier result remains" if keep_earlier else ""
        log_info(f"{run.model_name} {config.name}: {_headline(result)}{note}")
    return result


def _has_other_precision(run: RunConfig, model: EvalModel, earlier: Result) -> bool:
    """Whether ``auto`` was float32 on a CPU, and is bfloat16 on a GPU; it is not known of files of earlier versions."""
    device = str(earlier.execution.get("device") or model.device)
    return run.precision == "auto" and device.partition(":")[0] != str(model.device).partition(":")[0]


def with_outcome(result: Result, entry: Benchmark, outcome: Evaluation) -> Result:
    """Add the metrics and the protocol of an evaluation to a result; metrics without a value are missing."""
    empty = [name for name, metric in outcome.metrics.items() if math.isnan(metric.value)]
    scorer = entry.scorer_hash()
    protocol = {**outcome.protocol, **({SCORER_HASH: scorer} if scorer else {})}
    return dataclasses.replace(
        result,
        metrics={name: metric for name, metric in outcome.metrics.items() if name not in empty},
        primary=outcome.primary,
        missing_metrics={**dict.fromkeys(empty, "no item has a value"), **outcome.missing_metrics},
        trivial_baseline_note=entry.trivial_baseline_note,
        protocol=protocol,
        fingerprint=fingerprint(protocol),
    )


def result_keys(model: EvalModel, entry: Benchmark, config: BenchmarkConfig, model_hash: str) -> tuple[str, str]:
    """Hash of all inputs of the result, known before the evaluation, without the settings that have their default.

    The second hash is that of results from before these were left out, which stay valid.
    """
    inputs: dict[str, Any] = {
        "model": model_hash,
        "entry": config.entry,
        "precision": model.config.precision,
        "data": entry.data_hash(config),
        "libraries": {
            name: library_versions().get(name)
            for name in ("lmms-eval", "open_clip_torch", "timm", "transformers", "torch", *INPUT_LIBRARIES)
        },
        **entry.further_inputs(config, model.config.output),
    }
    settings = identity("clips-bench run", config, inputs).values
    defaults = dict(flatten(with_defaults({}, type(config))))
    changed = {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}
    later = {"blind": ("blind", "blind_items"), "num_beams": ("num_beams",)}
    unused = [name for field, names in later.items() if not getattr(config, field, None) for name in names]
    return digest(changed), digest({name: value for name, value in settings.items() if not is_below(name, unused)})


def _earlier(run_config: RunConfig, config: BenchmarkConfig) -> Result | None:
    """The stored result, regardless of its key; None if it is missing or incomplete."""
    path = result_path(run_config.output, run_config.model_name, config.name)
    if not path.is_file():
        return None
    try:
        known = read_result(path)
    except UserError:
        return None
    items = known.items is None or path.with_name(known.items).is_file()
    judged = not any(why.startswith(NO_JUDGE) for why in known.missing_metrics.values())
    return known if known.status == "ok" and items and judged else None


def _headline(result: Result) -> str:
    if result.status == "failed":
        return "failed"  # the reasons are in the error at the end
    shown = [result.metrics[name] for name in result.primary if name in result.metrics]
    numbers = ", ".join(f"{metric.label} {metric.value * metric.scale:.1f}" for metric in shown)
    if numbers and (part := subset_text(result)):
        numbers += f" ({part})"
    return numbers or "; ".join(dict.fromkeys(result.missing_metrics.values())) or "no metric"


@dataclass(frozen=True, kw_only=True)
class RunSingleConfig(EvaluationConfig):
    """Evaluate one encoder, or one LLaVA, on a list of benchmarks.

    Args:
        benchmarks: the benchmarks, each with its data and its own settings.
        batch_size: images, captions or questions per forward pass.
        model: directory of the encoder or LLaVA, or its Hub repo id. For an encoder that is still training the
            latest checkpoint is used.
        model_name: the model's name in the table; by default the directory's, with the number of steps of a checkpoint.
    """

    benchmarks: list[BenchmarkConfig]
    model: str
    model_name: str | None = None
    output: str = "results"


def run_encoder(config: RunSingleConfig) -> None:
    """Evaluate an encoder.

    Raises:
        UserError: as of ``benchmarks.tasks.run_benchmarks.run_benchmarks``.
    """
    directory, name = config.model, _name(config.model)
    if is_llava(directory):
        raise UserError(f"{directory} is a LLaVA; `clips-bench run llava {directory}` evaluates it")
    is_exported = (Path(directory) / OPEN_CLIP_CONFIG).is_file()
    if not is_exported and (checkpoints := list_checkpoints(Path(directory))):
        from clips.export import ExportConfig, run_export

        last = checkpoints[-1]
        name = f"{name}-step-{read_train_state(last).step}"
        # in the name of the directory, because another run may have the same name and number of steps
        key = cache_key(checkpoint=directory_hash(last), config=file_hash(last / CONFIG_FILE))
        exported = Path(config.output) / CACHE_DIR / "encoders" / f"{name}-{key[:12]}"
        with FileLock(writable_directory(exported.parent) / f".{exported.name}.lock"):  # one process exports for all
            if not (exported / OPEN_CLIP_CONFIG).is_file():
                run_export(ExportConfig(checkpoint=str(last), output=str(exported)))
        directory = str(exported)
    run_benchmarks(_run_config(config, name, encoder=directory))


def run_llava(config: RunSingleConfig) -> None:
    """Evaluate a LLaVA.

    Raises:
        UserError: as of ``benchmarks.tasks.run_benchmarks.run_benchmarks``.
    """
    if (Path(config.model) / OPEN_CLIP_CONFIG).is_file():
        raise UserError(f"{config.model} is an encoder; `clips-bench run encoder {config.model}` evaluates it")
    run_benchmarks(_run_config(config, _name(config.model), llava=config.model))


def _run_config(config: RunSingleConfig, name: str, **model: str) -> RunConfig:
    shared = {field: value for field, value in vars(config).items() if field != "model"}
    run = RunConfig(**shared | {"model_name": config.model_name or name} | model)
    if config.model_name is None and not config.overwrite:
        _reject_other_model(run)
    return run


def _reject_other_model(config: RunConfig) -> None:
    """Raise UserError if a result to be written exists, of another directory with other weights.

    Two directories may have one name (``runs/mine``, ``imported/mine``), and nobody has chosen it for the results.
    """
    model = EvalModel(config)
    for benchmark in config.benchmarks:
        earlier = _earlier(config, benchmark)
        if earlier is None:
            continue
        record, before = model.record(get_benchmark(benchmark.entry).needs), str(earlier.model.get("path"))
        if earlier.model.get("hash") != record["hash"] and Path(before).resolve() != Path(record["path"]).resolve():
            raise UserError(
                f"model_name: {earlier.path} is of {before}, not {record['path']}; expected another --model_name, or "
                "--overwrite true to replace it"
            )


def _name(directory: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(directory).resolve().name if directory else "").strip("-.") or "model"
