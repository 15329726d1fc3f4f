"""Result files and rows as a command line names them: a file, a row's directory, a directory of rows."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results.results import Result, read_result, read_results, refuse_twice
from clips.errors import UserError, unknown_name_error


def find_result(path: str, benchmark: str | None, field: str) -> Result:
    """One result.

    Args:
        path: a result file, or a directory: of a row, or of results with one row that has the benchmark.
        benchmark: its name; needed for a directory with several.
        field: what the path was given as, for messages.

    Raises:
        UserError: there is none, or several.
    """
    if not Path(path).is_dir():
        return read_result(path)
    rows = find_results_by_row(path, field)
    found = [result for row in rows.values() for result in row.values()]
    names = sorted({result.benchmark for result in found})
    if benchmark is None and len(names) > 1:
        raise UserError(f"benchmark: {path} has several; expected --benchmark with one of {', '.join(names)}")
    if benchmark is not None and benchmark not in names:
        raise unknown_name_error(benchmark, names, f"benchmark of {path}")
    found = [result for result in found if benchmark in {None, result.benchmark}]
    if len(found) > 1:
        raise UserError(f"{field}: {path} has several rows; expected one of {', '.join(rows)} below it")
    return found[0]


def find_results_by_row(path: str, field: str) -> dict[str, dict[str, Result]]:
    """Row → benchmark → result, of a row's directory, a directory of rows, or a study's output.

    Raises:
        UserError: no such directory, no results in it, one that cannot be read, or two of the same row and benchmark.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{field}: {path}: no such directory")
    if (root / "results").is_dir():
        results = read_results(root / "results")
    else:  # a row's own files where no directory in it has any
        results = read_results(root) or [read_result(file) for file in sorted(root.glob("*.json"))]
        refuse_twice((result.model_name, result.benchmark, result.path) for result in results)
    if not results:
        raise UserError(
            f"{field}: {path}: expected result files (<benchmark>.json, <row>/<benchmark>.json), found none"
        )
    rows: dict[str, dict[str, Result]] = {}
    for result in results:
        rows.setdefault(result.model_name, {})[result.benchmark] = result
    return rows
