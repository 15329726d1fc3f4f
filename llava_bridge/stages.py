"""The stages of a run, one after the other in the same processes; finished ones are not repeated.

State of an unfinished run, in its work directory::

    run.json            what the run depends on; a run with other settings or inputs starts afresh
    metrics.jsonl       one line per logged step
    <stage>/model       the model after the stage, written whole or not at all
    <stage>/checkpoints HF Trainer's checkpoints of the stage that is under way
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from clips.artifact import artifact_directory, directory_hash, write_file, write_manifest
from clips.commandline import plain
from clips.errors import UserError
from llava_bridge.config import TrainConfig
from llava_bridge.data.samples import DataConfig
from llava_bridge.encoders.spec import parse_spec
from llava_bridge.launch import is_main_process, report
from llava_bridge.workspace import check_inputs, check_output, work_directory


def run_stages(config: TrainConfig) -> None:
    """Run what is missing of the stages and write the output directory; called in every process."""
    from llava_bridge import processes, trainer

    processes.init_processes(config.launch.processes)
    check_output(Path(config.output))
    check_inputs(config)
    work = work_directory(config)
    if is_main_process():
        lock = _lock(work)  # noqa: F841  held until the process ends
        _prepare(work, config)
    processes.barrier()
    for name in config.stages:
        if (work / name / "model").is_dir():
            report(f"{name}: done before")
        else:
            trainer.train_stage(config, name, work)
    if is_main_process():
        _write_output(config, work)
    processes.barrier()


def _lock(work: Path) -> Any:
    """Hold the work directory for this process; two runs on one output would spoil each other."""
    work.mkdir(parents=True, exist_ok=True)
    file = (work / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"output: another run is writing {work.name.removeprefix('.').removesuffix('.work')}") from None
    return file


def _prepare(work: Path, config: TrainConfig) -> None:
    """Keep the state of an interrupted run with the same settings and inputs; remove any other."""
    record = {"config": plain(dataclasses.replace(config, output="")), "inputs": inputs(config)}
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    path = work / "run.json"
    known = json.loads(path.read_text()).get("key") if path.is_file() else None
    if known == key:
        report(f"going on with the unfinished run in {work}")
        return
    for entry in work.iterdir():
        if entry.name not in {"lock", "log.txt", "config.yaml", "error.txt"}:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_file(path, json.dumps({"key": key, **record}, indent=2))


def inputs(config: TrainConfig) -> dict[str, Any]:
    """What the run reads: the encoder, the LLM and each stage's data, with their hashes."""
    found: dict[str, Any] = {name: directory_hash(path) for name, path in parents(config).items()}
    for name in config.stages:
        found[name] = [describe_data(data) for data in config.stage(name).data]
    return found


def parents(config: TrainConfig) -> dict[str, str]:
    """The artifacts on disk that the model is made from."""
    found = {}
    if config.encoder and config.stages[-1] != "pretrain":
        source, reference = parse_spec(config.encoder)
        path = reference if source == "open_clip" else reference.partition("@")[2]
        if path and Path(path).exists():
            found["encoder"] = path
    if config.llm and Path(config.llm).is_dir():
        found["llm"] = config.llm
    return found


def describe_data(data: DataConfig) -> dict[str, Any]:
    """A source with the hash of its text files (pictures are not read), and that of its manifest if it has one."""
    path = Path(data.path)
    files = [path] if path.is_file() else sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
    digest = hashlib.sha256("".join(directory_hash(file) for file in files).encode()).hexdigest()
    manifest = path.parent / "manifest.json"
    whole = {"directory_hash": directory_hash(path.parent)} if path.is_file() and manifest.is_file() else {}
    return {**plain(data), "hash": digest, **whole}


def _write_output(config: TrainConfig, work: Path) -> None:
    last = config.stages[-1]
    summaries = {name: json.loads((work / name / "model" / "stage.json").read_text()) for name in config.stages}
    with artifact_directory(config.output) as directory:
        shutil.copytree(work / last / "model", directory, dirs_exist_ok=True)
        (directory / "stage.json").unlink()
        shutil.copyfile(work / "metrics.jsonl", directory / "metrics.jsonl")
        write_manifest(
            directory,
            kind="llm" if last == "pretrain" else "llava",
            config=config,
            seed=config.seed,
            data={name: [describe_data(data) for data in config.stage(name).data] for name in config.stages},
            parents=parents(config),
            stages=summaries,
            seconds=round(sum(summary["seconds"] for summary in summaries.values()), 1),
        )
    for name, summary in summaries.items():
        skipped = f", {summary['skipped']} samples could not be used" if summary["skipped"] else ""
        report(
            f"{name}: {summary['steps']} steps, final loss {summary['loss']:.4f}, {summary['seconds']:.0f} s{skipped}"
        )
