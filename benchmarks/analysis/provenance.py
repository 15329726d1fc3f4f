"""``clips-bench provenance RESULT``: from a number back to the shards, and whether its inputs still exist."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.analysis.find_results import find_result
from benchmarks.report.training_settings import mapping, relocate
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import Result, enclosing_study
from benchmarks.study.state import describe_acceptance, find_producer
from clips.core.artifact import MANIFEST, directory_hash, read_manifest
from clips.data.remote_files import expand_brace_ranges
from clips.errors import UserError
from clips.typed_data import from_plain

_HASH_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class ProvenanceConfig:
    """Print the provenance of a result: data, model, and its inputs, back to the training data.

    Args:
        result: a result file, or a directory: of a model, of results with one model, of an encoder, a LLaVA or data.
        benchmark: the benchmark, if the directory has several.
        check: hash the files again and print what has changed.
    """

    result: str
    benchmark: str | None = None
    check: bool = True


@dataclass(frozen=True)
class ProvenanceNode:
    """One node of the provenance tree.

    Args:
        title: description in one line.
        facts: further lines.
        made_from: its own inputs.
    """

    title: str
    facts: Sequence[str] = ()
    made_from: Sequence[ProvenanceNode] = ()


def run_provenance(config: ProvenanceConfig) -> None:
    """Print the tree.

    Raises:
        UserError: a file that is missing, is no result, or was written by a newer version; a manifest that cannot be
            read.
    """
    if (Path(config.result) / MANIFEST).is_file():
        node = trace_directory(Path(config.result), check=config.check)
    else:
        node = trace(find_result(config.result, config.benchmark, "result"), check=config.check)
    for line in lines(node):
        print(strip_control_chars(line))


def trace_directory(directory: Path, *, check: bool = True) -> ProvenanceNode:
    """The tree below an encoder, a LLaVA or data, by its manifest.

    Raises:
        UserError: its manifest cannot be read.
    """
    path = directory.absolute()
    described = {"path": str(path), "hash": str(read_manifest(path).get("hash", ""))}
    return _artifact("directory", described, path.parent.parent, check=check)


def trace(result: Result, *, check: bool = True) -> ProvenanceNode:
    """The tree below a result."""
    protocol = result.protocol
    evaluated = f"evaluated {result.created} in {result.seconds:.0f} s{_code(result.git)}"
    if origin := result.measured_elsewhere:
        source = f"{origin.get('file')} ({_short(str(origin.get('sha256') or ''))})"
        when = f" {result.created}" if result.created else ""
        evaluated = f"measured{when} by {origin.get('tool')}, version {origin.get('version')}; imported from {source}"
    facts = [
        evaluated,
        *([f"by: {result.command}"] if result.command else []),
        *(_step(Path(result.path), result.created) if result.path else []),
        f"data: {_short(str(protocol.get('data_hash', '')))}, split {protocol.get('split', 'not stated')}",
        f"protocol: {_short(result.fingerprint)}; `clips-bench compare` compares it with another's",
    ]
    numbers = ", ".join(
        f"{metric.label} {metric.value * metric.scale:.1f}"
        for metric in (result.metrics[name] for name in result.primary if name in result.metrics)
    )
    title = (
        f"{result.model_name} on {result.benchmark}: {numbers or result.failure_reason or 'no metric'}  ({result.path})"
    )
    study = enclosing_study(result.path) if result.path else Path.cwd()
    return ProvenanceNode(title, facts, [_artifact("model", result.model, study, check=check)])


def _artifact(
    name: str, described: Mapping[str, str], study: Path, *, check: bool, seen: frozenset[str] = frozenset()
) -> ProvenanceNode:
    """The node of a path, with the inputs that its manifest states."""
    digest = str(described.get("hash") or "")
    path = str(described.get("path", "")) and str(relocate(str(described["path"]), study, digest))
    title = f"{name}: {path} ({_short(str(described.get('hash', '')))})"
    directory = Path(path)
    if not path or not directory.exists():
        return ProvenanceNode(f"{title}, not on this machine")
    if check and described.get("hash") not in {None, "", directory_hash(directory)}:
        return ProvenanceNode(f"{title}, CHANGED since: now {_short(directory_hash(directory))}")
    if not (directory / MANIFEST).is_file() or path in seen:
        return ProvenanceNode(f"{title}, not made by this suite" if directory.is_dir() else title)
    try:
        manifest = read_manifest(directory)
    except UserError as error:
        return ProvenanceNode(f"{title}, {error}")
    parents = [
        _artifact(parent, each, study, check=check, seen=seen | {path})
        for parent, each in mapping(manifest.get("parents")).items()
        if isinstance(each, Mapping)
    ]
    return ProvenanceNode(
        title,
        [*_about(manifest), *_step(directory)],
        [*parents, *_sources(mapping(manifest.get("data")), study, check=check)],
    )


def _about(manifest: Mapping[str, Any]) -> Iterator[str]:
    seed = manifest.get("seed")
    seed_text = f", seed {seed}" if seed is not None else ""
    yield f"created {manifest.get('created', '')}{_code(mapping(manifest.get('git')))}{seed_text}"
    units = {"steps": "steps", "samples_seen": "samples", "seconds": "s", "processes": "processes"}
    numbers = ((manifest.get(name), unit) for name, unit in units.items())
    facts = [f"{value:,.0f} {unit}" for value, unit in numbers if isinstance(value, int | float)]
    facts += [str(manifest[name]) for name in ("device", "precision") if manifest.get(name)]
    if facts:
        yield ", ".join(facts)
    versions = mapping(manifest.get("versions"))
    libraries = [name for name in ("torch", "transformers", "open_clip_torch") if name in versions]
    if libraries:
        yield ", ".join(f"{name} {versions[name]}" for name in libraries)


def _step(output: Path, created: str = "") -> Iterator[str]:
    """The study runner's record of the step that produced an output: command, time, memory and machine."""
    producer = find_producer(output)
    if producer is None:
        return
    record = producer[1]
    with contextlib.suppress(ValueError):
        if datetime.datetime.fromisoformat(created).timestamp() + 1 < record.started:  # it is in whole seconds
            yield f"step {record.name}: not this result's job but a later one is recorded"
            yield from (f"step {record.name} {describe_acceptance(entry)}" for entry in record.accepted)
            return
    usage = [f"{record.seconds:,.0f} s"]
    if record.peak_memory_mb:
        usage.append(f"at most {record.peak_memory_mb / 1024:.1f} GiB in one process")
    yield f"step {record.name}: {', '.join(usage)}{_code(record.git)}"
    yield from (f"step {record.name} {describe_acceptance(entry)}" for entry in record.accepted)
    yield f"step's command: {record.command}"
    if record.machine:
        yield f"step's machine: {', '.join(f'{name} {value}' for name, value in record.machine.items())}"


def _sources(data: Mapping[str, Any], study: Path, *, check: bool) -> Iterator[ProvenanceNode]:
    """The input files and shards, by their recorded paths and hashes."""
    for name, described in data.items():
        for each in described if isinstance(described, list) else [described]:
            if isinstance(each, Mapping) and "path" in each:
                yield _source(name, each, study, check=check)


def _source(name: str, described: Mapping[str, Any], study: Path, *, check: bool) -> ProvenanceNode:
    path, digest = relocate(str(described["path"]), study), str(described.get("hash") or "")
    shown = {key: value for key, value in described.items() if key != "path" and not key.endswith("hash")}
    others = {key: value for key, value in shown.items() if isinstance(value, int | str)}
    facts = [", ".join(f"{key} {value}" for key, value in others.items())] if others else []
    title = f"{name}: {path}" + (f" ({_short(digest)})" if digest else "")
    if not all(Path(each).exists() for each in expand_brace_ranges(str(path))):
        return ProvenanceNode(f"{title}, not on this machine", facts)
    if check and digest and (now := _hash_now(path, described)) not in {"", digest}:
        return ProvenanceNode(f"{title}, CHANGED since: now {_short(now)}", facts)
    if path.is_file() and (path.parent / MANIFEST).is_file():
        directory = {"path": str(path.parent), "hash": str(described.get("directory_hash", ""))}
        return ProvenanceNode(title, facts, [_artifact("part of", directory, study, check=check)])
    if path.is_dir() and (path / MANIFEST).is_file():
        node = _artifact(name, {"path": str(path)}, study, check=check)
        return ProvenanceNode(title, [*facts, *node.facts], node.made_from)
    return ProvenanceNode(title, facts)


def _hash_now(path: Path, described: Mapping[str, Any]) -> str:
    """The hash of a source as its training computes it; empty of a source that had to be read whole for it."""
    if "shards" in described and (path / MANIFEST).is_file():  # of an encoder
        return directory_hash(path)
    if "format" not in described:
        return ""
    from llava_bridge.data.sources import ConversationSourceConfig
    from llava_bridge.training.inputs import describe_data

    settings = {key: value for key, value in described.items() if not key.endswith("hash")}
    try:
        config = from_plain(ConversationSourceConfig, {**settings, "path": str(path)})
    except UserError:  # settings of another version
        return ""
    return str(describe_data(config)["hash"])


def lines(node: ProvenanceNode, depth: int = 0, printed: dict[str, set[str]] | None = None) -> Iterator[str]:
    """The tree as text, inputs indented below their outputs; of a path that is in it again, only further facts."""
    printed = {} if printed is None else printed
    indent, place = "    " * depth, node.title.partition(": ")[2]
    known = printed.get(place)
    yield f"{indent}{node.title}" + ("" if known is None else " (as above)")
    for fact in node.facts:
        if fact not in (known or ()):
            yield f"{indent}  · {fact}"
    printed[place] = {*(known or ()), *node.facts}
    for each in node.made_from if known is None else ():
        yield from lines(each, depth + 1, printed)


def _code(git: Mapping[str, Any]) -> str:
    commit = str(git.get("commit") or "")
    changed = " and uncommitted changes" if git.get("dirty") else ""
    return f", code {commit[:_HASH_DIGITS]}{changed}" if commit else ""


def _short(digest: str) -> str:
    return digest[:_HASH_DIGITS] if digest else "no hash"
