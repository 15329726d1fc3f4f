"""Lookup of result files and models from command-line paths: a file, a model's directory, a directory of models."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results.results import Result, read_result, read_results, reject_duplicates
from benchmarks.study.study_record import RECORD_FILE
from clips.errors import UserError, unknown_name_error


def find_result(path: str, benchmark: str | None, field: str) -> Result:
    """Find one result.

    Args:
        path: a result file, or a directory: of a model, or of results with one model that has the benchmark.
        benchmark: its name; required for a directory with several.
        field: the config field of the path, for messages.

    Raises:
        UserError: there is none, or several.
    """
    if not Path(path).is_dir():
        return read_result(path)
    rows = find_results_by_row(path, field)
    matching = [result for row in rows.values() for result in row.values()]
    names = sorted({result.benchmark for result in matching})
    if benchmark is None and len(names) > 1:
        raise UserError(f"benchmark: {path} has several; expected --benchmark with one of {', '.join(names)}")
    if benchmark is not None and benchmark not in names:
        raise unknown_name_error(benchmark, names, f"benchmark of {path}")
    matching = [result for result in matching if benchmark in {None, result.benchmark}]
    if len(matching) > 1:
        raise UserError(f"{field}: {path} has several models; expected the directory of one of {', '.join(rows)}")
    return matching[0]


def find_results_by_row(path: str, field: str) -> dict[str, dict[str, Result]]:
    """Model → benchmark → result, of a model's directory, a directory of models, or a study's output.

    Raises:
        UserError: no such directory, no results in it, an unreadable result, or two of the same model and benchmark.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{field}: {path}: no such directory")
    if (root / "results").is_dir():
        results = read_results(root / "results")
    else:  # a model's own files if no subdirectory has any
        own = [file for file in sorted(root.glob("*.json")) if file.name != RECORD_FILE]
        results = read_results(root) or [read_result(file) for file in own]
        reject_duplicates((result.model_name, result.benchmark, result.path) for result in results)
    if not results:
        raise UserError(
            f"{field}: {path}: expected result files (<benchmark>.json, <model>/<benchmark>.json), found none"
        )
    rows: dict[str, dict[str, Result]] = {}
    for result in results:
        rows.setdefault(result.model_name, {})[result.benchmark] = result
    return rows
