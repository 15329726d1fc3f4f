"""``clips-bench import FILE… --output DIR``: results that others measured, as a directory of results."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from benchmarks.exchange import lmms_eval
from benchmarks.exchange.imported import Imported, seed_suffix, tool_text
from benchmarks.exchange.item_table import SUFFIXES, read_item_tables
from benchmarks.results.results import check_name, check_not_newer, read_fields, result_path, write_result
from benchmarks.results.validation import check_fields, check_items
from clips.core.durable import writable_directory
from clips.errors import UserError, error_reason
from clips.safe_text import log_info


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Write lmms-eval's results, or a table of items, as a directory of results, marked as measured elsewhere.

    ``report`` and ``compare`` read a table of items without this.

    Args:
        files: lmms-eval's ``results.json``, whose samples are read if they are next to it, or tables of items, .parquet
            or .csv, with the columns ``model,benchmark,metric,item,score`` (docs/item-tables.md).
        output: directory of the result files; those of models evaluated by this suite are not replaced.
        model_name: the model's name in the table; by default the file's.
        benchmark: the benchmark's column, if the files have one; by default the file's, in this suite's names.
    """

    files: tuple[str, ...]
    output: str
    model_name: str | None = None
    benchmark: str | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("files: expected at least one")


def run_import(config: ImportConfig) -> None:
    """Read and check all files, then store the results.

    Raises:
        UserError: an unreadable or unrecognized file, numbers that no result can have, two results of one model on one
            benchmark, or a result of this suite in their place. Nothing is written then.
    """
    imported: dict[tuple[str, str], Imported] = {}
    origins: dict[tuple[str, str], Path] = {}
    for file in map(Path, config.files):
        if file.is_dir():
            raise UserError(f"{file}: expected files, got a directory; lmms-eval's are MODEL/DATE_results.json in it")
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        if file.suffix not in {".json", *SUFFIXES}:
            raise UserError(f"{file}: expected lmms-eval's results, .json, or a table of items, .parquet or .csv")
        for result, items in lmms_eval.read(file) if file.suffix == ".json" else read_item_tables([file]):
            of_seed = seed_suffix(result.model.get("seed"))
            result = dataclasses.replace(
                result,
                model_name=config.model_name + of_seed if config.model_name else result.model_name,
                benchmark=config.benchmark or result.benchmark,
                path=None,
            )
            if not result.model_name:
                raise UserError(
                    f"{file}: expected --model_name, as '{result.model['path']:.100}' has no letter or digit"
                )
            key = result.model_name, result.benchmark
            if key in imported:
                raise UserError(
                    f"{file}: expected one result of '{key[0]}' on '{key[1]}', but {origins[key]} has another; "
                    "import each file by itself, with its --model_name"
                )
            imported[key], origins[key] = Imported(result, items), file
            _check(file, imported[key], config.output)
    if not imported:
        raise UserError(f"{', '.join(config.files)}: expected at least one result, got none")
    writable_directory(config.output)
    for result, items in imported.values():
        origin, target = result.measured_elsewhere, result_path(config.output, result.model_name, result.benchmark)
        earlier = read_fields(target).measured_elsewhere if target.exists() else origin
        if earlier.get("sha256") != origin["sha256"]:
            log_info(f"{target}: replaces the import of {earlier.get('file')}")
        path = write_result(config.output, result, items)
        count = "without items" if items is None else f"{len(items)} items"
        log_info(f"{path}: by {tool_text(origin)}, {count}, intervals: {origin['intervals']}")


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
