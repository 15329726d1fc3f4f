"""Selection and redaction of the files of a directory that are published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results.results import Result, read_results
from benchmarks.study.step_state import CONFIG_FILE, RECORD, read_record, step_directory
from benchmarks.study.study_record import RECORD_FILE, StudyRecord, read_study_record
from clips.core.artifact import HASH_EXCLUDED_FILES, MANIFEST, read_manifest
from clips.core.content import file_hash
from clips.errors import UserError

_TEXT = {".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".csv", ".tex", ".jinja", ".html", ".js", ".svg"}
_MAX_BYTES = 32 * 2**20  # larger files are data
SECRET_PATTERNS: dict[str, re.Pattern[str]] = {
    "a token of the Hugging Face hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "an OpenAI-style key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}\b"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an AWS secret key": re.compile(r"(?i)aws_secret_access_key\W{1,5}[A-Za-z0-9/+]{40}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})"),
    "a Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@:\"']+:[^\s/@\"']+@"),
    "a named secret": re.compile(
        r"(?i)\b(?:hf_token|wandb_api_key|openai_api_key|api_key|password)\b[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9_./+-]{8,}"
    ),
}
_PATH = re.compile(
    r"(?<![\w.:/~…<])~?(?:/[\w@+.=,%-]+){2,}/?|(?<=file:)//+[\w@+.=,/%-]+|\b[A-Za-z]:(?:\\+[\w@+.=, -]+){2,}"
)
_IS_PATH = re.compile(r"(?:~|[A-Za-z]:)?[/\\][\w@+.=,%-]+[/\\]\S*")
_NAMES = re.compile(r'"(?:_name_or_path|name_or_path|model_path)"\s*:\s*"([^"]*)"')


def is_text_file(path: Path) -> bool:
    """Whether a file is text, and is searched for secrets and paths."""
    return path.suffix in _TEXT and path.stat().st_size <= _MAX_BYTES


def check_no_secrets(name: str, path: Path) -> None:
    """Search one file for secrets.

    Raises:
        UserError: there is one; the message names the file, the line and the type, never the secret.
    """
    if not is_text_file(path):
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        for secret, pattern in SECRET_PATTERNS.items():
            if pattern.search(line):
                raise UserError(f"{name}: line {number} contains {secret}; remove it (and revoke it) first")


def check_no_local_paths(name: str, path: Path) -> None:
    """Check a model's file for local directories; it cannot be rewritten, since its hash is in the manifest.

    Raises:
        UserError: it names a local directory.
    """
    if path.suffix != ".json" or not is_text_file(path):
        return
    for found in _NAMES.findall(path.read_text(encoding="utf-8", errors="replace")):
        if _IS_PATH.fullmatch(found):
            raise UserError(f"{name}: names the local directory {found}; remove that entry first")


def shorten_local_paths(text: str) -> tuple[str, int]:
    """A record's text with absolute paths reduced to their last parts, and the number of shortened paths."""
    return _PATH.subn(lambda found: "…/" + re.split(r"[/\\]+", found[0].rstrip("/\\"))[-1], text)


_TRAINING_STATE = {"tensorboard", "checkpoints"}  # not needed to use the model
_REPORT = {"table.csv", "table_wide.csv", "table.md", "table.tex", "seeds.csv", "sweep.csv", "reference_results.csv"}
_UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """The files of an upload.

    Args:
        repo_type: ``"model"`` or ``"dataset"``.
        files: name in the repository → local file.
        records: the files that are documentation only, so that their paths may be rewritten.
        left_out: the excluded files.
        license: license of the upload.
        parents: input → its license.
    """

    repo_type: str
    files: dict[str, Path]
    records: frozenset[str]
    left_out: tuple[str, ...]
    license: str
    parents: dict[str, str]


def plan_upload(directory: Path, *, include_images: bool) -> UploadPlan:
    """Select the files of a directory to upload.

    Args:
        directory: an artifact (encoder, LLaVA, export), a study's output or a directory of results.
        include_images: include the files that show the benchmarks' own images and questions: items tables and the
            report's page.

    Raises:
        UserError: none of these, incomplete, changed since its completion, or with foreign files.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    if (directory / MANIFEST).is_file():
        return _artifact(directory)
    return _results(directory, include_images)


def _artifact(directory: Path) -> UploadPlan:
    manifest = read_manifest(directory)
    if not isinstance(manifest.get("files"), dict) or "hash" not in manifest:
        raise UserError(f"{directory / MANIFEST}: expected the manifest of a finished artifact")
    paths = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if not path.is_dir()}
    scores = {name for name in paths if re.fullmatch(r"\.eval_results/[\w.-]+\.yaml", name)}
    records = frozenset({*HASH_EXCLUDED_FILES, *scores})
    known, excluded = {*manifest["files"], *records}, {name for name in paths if _is_excluded(name)} - scores
    foreign = [name for name in paths if name not in known and name not in excluded]
    if foreign:
        raise UserError(f"{directory}: {foreign[0]} is not of the artifact{_more(foreign)}; move it elsewhere")
    for name, described in manifest["files"].items():
        if name not in paths or not _is_unchanged(paths[name], described):
            raise UserError(f"{directory}: {name} differs from its manifest; it was changed after it was finished")
    files = {name: path for name, path in paths.items() if name in known - excluded}
    for name, path in files.items():
        if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{directory}: {name} is a symlink to a file elsewhere; expected the file itself")
    parents = manifest.get("parents") or {}
    return UploadPlan(
        repo_type="model",
        files=files,
        records=records & files.keys(),
        left_out=tuple(sorted({name.split("/")[0] for name in excluded})),
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


def _is_excluded(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in _TRAINING_STATE or any(part.startswith(".") for part in parts)


def _more(names: list[str]) -> str:
    return f", nor are {len(names) - 1} more" if len(names) > 1 else ""


def _license(parent: Path) -> str:
    """The license in a parent's manifest; the parent may have moved."""
    try:
        return str(read_manifest(parent).get("license") or _UNKNOWN)
    except UserError:
        return f"{_UNKNOWN} (not here)"


def _results(directory: Path, include_images: bool) -> UploadPlan:
    study = read_study_record(directory) if (directory / RECORD_FILE).is_file() else None
    if study:
        _check_finished(directory, study)
    root = directory / "results" if (directory / "results").is_dir() else directory
    results = [result for result in read_results(root) if study is None or _is_of(study, directory, result)]
    if not results:
        raise UserError(f"{directory}: expected an encoder, a LLaVA, a study's output or a directory of results")
    records = [result.path for result in results if result.path is not None]
    if study:
        records += [directory / RECORD_FILE, *_steps(directory, study)]
    report = [path for path in sorted((directory / "report").glob("*")) if path.name in _REPORT]
    report += sorted((directory / "report" / "figures").glob("*.*"))
    with_images = [path.with_name(Path(each.items).name) for each in results if (path := each.path) and each.items]
    with_images.append(directory / "report" / "index.html")
    images = {path.relative_to(directory).as_posix(): path for path in with_images if path.is_file()}
    files = {path.relative_to(directory).as_posix(): path for path in [*records, *report]}
    return UploadPlan(
        repo_type="dataset",
        files=files | images if include_images else files,
        records=frozenset(files) - {path.relative_to(directory).as_posix() for path in report if path.suffix == ".pdf"},
        left_out=() if include_images else _summary(images),
        license=_UNKNOWN,
        parents={},
    )


def _summary(names: Iterable[str]) -> tuple[str, ...]:
    others = [name for name in names if not name.endswith(".parquet")]
    num_tables = sum(name.endswith(".parquet") for name in names)
    return (*([f"{num_tables} tables of items (.items.parquet)"] if num_tables else []), *others)


def _is_of(study: StudyRecord, directory: Path, result: Result) -> bool:
    """Whether a result belongs to the current study file; results of removed models stay in the directory."""
    cells = {cell.result for row in study.rows for cell in row.cells.values()}
    return result.path is not None and result.path.relative_to(directory).as_posix() in cells


def _steps(directory: Path, study: StudyRecord) -> Iterator[Path]:
    for step in sorted(study.steps):
        files = (step_directory(directory, step) / name for name in (RECORD, CONFIG_FILE))
        yield from (path for path in files if path.is_file())


def _check_finished(directory: Path, study: StudyRecord) -> None:
    records = {name: read_record(directory, name) for name in study.steps}
    unfinished = [
        name
        for name, record in records.items()
        if record is None or record.status != "done" or record.key != study.steps[name].key
    ]
    if unfinished:
        raise UserError(f"{directory}: unfinished: step {unfinished[0]} is not done{_more(unfinished)}")
