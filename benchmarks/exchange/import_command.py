"""``clips-bench import FILE… --output DIR``: results that other tools measured, as a directory of results."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.exchange import csv_rows, encoder_tools, eval_results, every_eval_ever, lmms_eval, vlmevalkit
from benchmarks.exchange.imported import Imported, has_fields
from benchmarks.results.results import check_name, check_not_newer, read_fields, result_path, write_result
from benchmarks.results.validation import check_fields, check_items
from clips.core.artifact import log_info, writable_directory
from clips.errors import UserError, error_reason, unknown_name_error
from clips.text_files import read_json

READERS: dict[str, Callable[[Path], list[Imported]]] = {
    "lmms_eval": lmms_eval.read,
    "vlmevalkit": vlmevalkit.read,
    "clip_benchmark": encoder_tools.read_clip_benchmark,
    "open_clip": encoder_tools.read_open_clip,
    "mteb": encoder_tools.read_mteb,
    "csv": csv_rows.read,
    "eval_results": eval_results.read,
    "every_eval_ever": every_eval_ever.read,
}
_BY_SUFFIX = {".xlsx": "vlmevalkit", ".jsonl": "open_clip", ".yaml": "eval_results"}
_JSON: Mapping[str, type] = {
    "lmms_eval": lmms_eval.Run,
    "clip_benchmark": encoder_tools.ClipBenchmark,
    "mteb": encoder_tools.Mteb,
    "every_eval_ever": every_eval_ever.Record,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Import results of other evaluation tools, marked as measured elsewhere.

    Args:
        files: lmms-eval's ``results.json``, VLMEvalKit's csv, JSON or xlsx, CLIP_benchmark's or mteb's JSON,
            open_clip's ``results.jsonl``, rows of a csv, or what `clips-bench export` wrote.
        output: directory of the result files; those of models evaluated by this suite are not replaced.
        model_name: the model's name in the table; by default the file's.
        benchmark: the benchmark's column, if the files have one; by default the file's, in this suite's names.
        format: lmms_eval, vlmevalkit, clip_benchmark, open_clip, mteb, csv, eval_results or every_eval_ever; by default
            recognized from the content.
    """

    files: tuple[str, ...]
    output: str
    model_name: str | None = None
    benchmark: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("files: expected at least one")
        if self.format is not None and self.format not in READERS:
            raise unknown_name_error(self.format, READERS, "format")


def run_import(config: ImportConfig) -> None:
    """Read and check all files, then store the results.

    Raises:
        UserError: an unreadable or unrecognized file, numbers that no result can have, two results of one model on one
            benchmark, or a result of this suite in their place. Nothing is written then.
    """
    found: dict[tuple[str, str], Imported] = {}
    for file in map(Path, config.files):
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        for each in READERS[config.format or recognize(file)](file):
            result = each.result
            result = dataclasses.replace(
                result,
                model_name=config.model_name or result.model_name,
                benchmark=config.benchmark or result.benchmark,
            )
            key = result.model_name, result.benchmark
            other = found.setdefault(key, Imported(result, each.items)).result
            if other != result:  # VLMEvalKit's csv and xlsx are one result
                raise UserError(
                    f"{file}: expected one result of '{key[0]}' on '{key[1]}', but "
                    f"{other.measured_elsewhere['file']} has another"
                )
            _check(file, each._replace(result=result), config.output)
    if not found:
        raise UserError(f"{', '.join(config.files)}: expected at least one result, got none")
    writable_directory(config.output)
    for result, items in found.values():
        path, origin = write_result(config.output, result, items), result.measured_elsewhere
        count = "without items" if items is None else f"{len(items)} items"
        log_info(f"{path}: {origin['tool']}, version {origin['version']}, {count}, intervals: {origin['intervals']}")


def _check(file: Path, imported: Imported, output: str) -> None:
    """Reject a result that could not be read back, and one in the place of a result of this suite."""
    result, items = imported
    check_name(result.model_name, "model_name")
    check_name(result.benchmark, "benchmark")
    check_fields(result, file)
    if items is not None:
        with tempfile.TemporaryDirectory() as directory:
            table = Path(directory) / "items.parquet"
            try:
                items.to_parquet(table, index=False)
            except (TypeError, ValueError) as error:  # values of several types in a column
                raise UserError(f"{file}: items: expected columns of one type ({error_reason(error)})") from None
            check_items(dataclasses.replace(result, path=file), table)
    path = result_path(output, result.model_name, result.benchmark)
    if path.exists():
        check_not_newer(output, result.model_name, result.benchmark)
        if not read_fields(path).measured_elsewhere:
            raise UserError(f"{path}: measured by this suite; choose another --output, --model_name or --benchmark")


def recognize(file: Path) -> str:
    """The format of a file, by its ending and content.

    Raises:
        UserError: none of the formats.
    """
    if file.suffix in _BY_SUFFIX:
        return _BY_SUFFIX[file.suffix]
    if file.suffix == ".csv":
        rows = csv_rows.read_rows(file)
        if rows:
            return "csv" if {"model", "benchmark"} <= rows[0].keys() else "vlmevalkit"
    if file.suffix == ".json":
        content = read_json(file)
        if found := next((name for name, kind in _JSON.items() if has_fields(kind, content)), None):
            return found
        if vlmevalkit.has_known_name(file):
            return "vlmevalkit"
    raise UserError(f"{file}: not recognized as a result of another tool (--format takes {', '.join(READERS)})")
