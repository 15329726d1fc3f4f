"""What a directory of ours consists of, and so what of it may go out: nothing else does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results.results import Result, read_results
from benchmarks.study.step_state import CONFIG_FILE, RECORD, read_record, step_directory
from benchmarks.study.study_record import RECORD_FILE, StudyRecord, read_study_record
from clips.core.artifact import HASH_EXCLUDED_FILES, MANIFEST, file_hash, read_manifest
from clips.errors import UserError

_LEFT_BEHIND = {"tensorboard", "checkpoints"}  # a training's own, which no one needs to use the model
_REPORT = {"table.csv", "table_wide.csv", "table.md", "table.tex", "seeds.csv", "sweep.csv", "reference_results.csv"}
_UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """What goes to the hub.

    Args:
        repo_type: ``"model"`` or ``"dataset"``.
        files: name in the repository → file here.
        records: those of them that are told, not used, so that their wording may change.
        left_out: what is there and does not go.
        license: of what goes.
        parents: what it was made from → its license.
    """

    repo_type: str
    files: dict[str, Path]
    records: frozenset[str]
    left_out: tuple[str, ...]
    license: str
    parents: dict[str, str]


def plan_upload(directory: Path, *, pictures: bool) -> UploadPlan:
    """What of a directory goes to the hub.

    Args:
        directory: an artifact (encoder, LLaVA, export), a study's output or a directory of results.
        pictures: also what shows the benchmarks' own pictures and questions: items tables and the report's page.

    Raises:
        UserError: not one of these, unfinished, changed since it was finished, or with files that are not its own.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    if (directory / MANIFEST).is_file():
        return _artifact(directory)
    return _results(directory, pictures)


def _artifact(directory: Path) -> UploadPlan:
    manifest = read_manifest(directory)
    if not isinstance(manifest.get("files"), dict) or "hash" not in manifest:
        raise UserError(f"{directory / MANIFEST}: expected the manifest of a finished artifact")
    known = {*manifest["files"], *HASH_EXCLUDED_FILES}
    there = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if not path.is_dir()}
    behind = {name for name in there if _is_left_behind(name)}
    foreign = [name for name in there if name not in known and name not in behind]
    if foreign:
        raise UserError(f"{directory}: {foreign[0]} is not of the artifact{_more(foreign)}; move it elsewhere")
    for name, described in manifest["files"].items():
        if name not in there or not _is_unchanged(there[name], described):
            raise UserError(f"{directory}: {name} is not as its manifest has it; it was changed after it was finished")
    files = {name: path for name, path in there.items() if name in known - behind}
    for name, path in files.items():
        if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{directory}: {name} is a link to a file elsewhere; expected the file itself")
    parents = manifest.get("parents") or {}
    return UploadPlan(
        repo_type="model",
        files=files,
        records=HASH_EXCLUDED_FILES & files.keys(),
        left_out=tuple(sorted({name.split("/")[0] for name in behind})),
        license=str(manifest.get("license") or _UNKNOWN),
        parents={
            f"{name} {parent.get('path')}": _license(Path(str(parent.get("path")))) for name, parent in parents.items()
        },
    )


def _is_unchanged(path: Path, described: Mapping[str, Any]) -> bool:
    status = path.stat()
    if status.st_size != described["size"]:
        return False
    return status.st_mtime_ns == described.get("modified_ns") or file_hash(path) == described["hash"]


def _is_left_behind(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in _LEFT_BEHIND or any(part.startswith(".") for part in parts)


def _more(names: list[str]) -> str:
    return f", nor are {len(names) - 1} more" if len(names) > 1 else ""


def _license(parent: Path) -> str:
    """What a parent's manifest states; it may be elsewhere by now."""
    try:
        return str(read_manifest(parent).get("license") or _UNKNOWN)
    except UserError:
        return f"{_UNKNOWN} (not here)"


def _results(directory: Path, pictures: bool) -> UploadPlan:
    study = read_study_record(directory) if (directory / RECORD_FILE).is_file() else None
    if study:
        _refuse_unfinished(directory, study)
    root = directory / "results" if (directory / "results").is_dir() else directory
    results = [result for result in read_results(root) if study is None or _is_of(study, directory, result)]
    if not results:
        raise UserError(f"{directory}: expected an encoder, a LLaVA, a study's output or a directory of results")
    found = [result.path for result in results if result.path is not None]
    if study:
        found += [directory / RECORD_FILE, *_steps(directory, study)]
    report = [path for path in sorted((directory / "report").glob("*")) if path.name in _REPORT]
    report += sorted((directory / "report" / "figures").glob("*.*"))
    shown = [path.with_name(Path(result.items).name) for result in results if (path := result.path) and result.items]
    shown += [path for path in [directory / "report" / "index.html"] if path.is_file()]
    names = [path.relative_to(directory).as_posix() for path in shown if path.is_file()]
    files = {path.relative_to(directory).as_posix(): path for path in [*found, *report]}
    return UploadPlan(
        repo_type="dataset",
        files=files | (dict(zip(names, shown, strict=True)) if pictures else {}),
        records=frozenset(files) - {path.relative_to(directory).as_posix() for path in report if path.suffix == ".pdf"},
        left_out=() if pictures else _summed_up(names),
        license=_UNKNOWN,
        parents={},
    )


def _summed_up(names: list[str]) -> tuple[str, ...]:
    tables = sum(name.endswith(".parquet") for name in names)
    others = [name for name in names if not name.endswith(".parquet")]
    return (*([f"{tables} tables of items (.items.parquet)"] if tables else []), *others)


def _is_of(study: StudyRecord, directory: Path, result: Result) -> bool:
    """Whether a result is of the study as it stands now: rows that left it leave theirs behind."""
    cells = {cell.result for row in study.rows for cell in row.cells.values()}
    return result.path is not None and result.path.relative_to(directory).as_posix() in cells


def _steps(directory: Path, study: StudyRecord) -> Iterator[Path]:
    for step in sorted(study.steps):
        files = (step_directory(directory, step) / name for name in (RECORD, CONFIG_FILE))
        yield from (path for path in files if path.is_file())


def _refuse_unfinished(directory: Path, study: StudyRecord) -> None:
    records = {name: read_record(directory, name) for name in study.steps}
    open_steps = [
        name
        for name, record in records.items()
        if record is None or record.status != "done" or record.key != study.steps[name].key
    ]
    if open_steps:
        raise UserError(f"{directory}: unfinished: step {open_steps[0]} is not done{_more(open_steps)}")
