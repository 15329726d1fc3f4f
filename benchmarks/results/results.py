"""Result files: one JSON and one table of items for each model and benchmark.

    <results>/<model>/<benchmark>.json
    <results>/<model>/<benchmark>.items.parquet

An items table has the columns of ``ITEM_COLUMNS``, those that the metrics' aggregations take, and those of blind runs
(see ``blind``).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.baselines import BLIND_KINDS, CONDITIONS, SIGHTED, baseline_name, blind_column, gain_name
from benchmarks.results.protocol import fingerprint
from benchmarks.results.result_types import CHANCE as CHANCE
from benchmarks.results.result_types import ITEM_COLUMNS as ITEM_COLUMNS
from benchmarks.results.result_types import MAX_UNREAD as MAX_UNREAD
from benchmarks.results.result_types import RAW_ANSWER, SCHEMA, Result
from benchmarks.results.result_types import UNREAD as UNREAD
from benchmarks.results.result_types import UNREAD_WRONG as UNREAD_WRONG
from benchmarks.results.result_types import WITH_ALL_NUMBERS as WITH_ALL_NUMBERS
from benchmarks.results.result_types import Metric as Metric
from benchmarks.results.result_types import columns_of as columns_of
from benchmarks.results.validation import GROUPS, check_fields, check_items
from clips.core.durable import atomic_output_path, atomic_write
from clips.core.identity import file_hash
from clips.errors import UserError
from clips.safe_text import redact
from clips.text_files import reject_named_pipe, safe_json_loads
from clips.typed_data import from_plain, to_plain

if TYPE_CHECKING:
    import pandas as pd

_GALLERY_COLUMNS = frozenset({"question", "prediction", "target", "thumbnail", RAW_ANSWER})
_IN_MEMORY = frozenset({"path", "frame"})  # fields that are set when a result is read
_MAX_NAME_BYTES = 200
_WITH_BLIND_SCORES = 6  # the last schema with them


class NewerResultError(UserError):
    """A result file of a newer version, which can be neither read nor replaced."""


def is_of_name(character: str) -> bool:
    """Whether a name of a model or benchmark may contain a character: letters and digits of any script, and ``._-``."""
    return character in "._-" or character.isalnum() or unicodedata.category(character).startswith("M")


def check_name(name: str, what: str) -> None:
    """Reject names that are not portable file names; they begin with a letter, a digit or ``_``."""
    is_short = len(name.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
    if not (is_short and all(map(is_of_name, name)) and (name[:1].isalnum() or name[:1] == "_")):
        raise UserError(f"{what}: expected up to 200 letters, digits, '.', '_' and '-', got '{name:.250}'")


def lexical_abspath(path: Path) -> Path:
    """An absolute path without ``..``; symlinks are not followed."""
    return Path(os.path.normpath(path.absolute()))


def enclosing_study(result: Path) -> Path:
    """The directory that contains ``results/MODEL/BENCHMARK.json``, its study's if it has one; ``..`` is resolved."""
    return list(lexical_abspath(result).parents)[:3][-1]


def result_path(results: str | Path, model: str, benchmark: str) -> Path:
    """Path of a model's result on a benchmark."""
    return Path(results) / model / f"{benchmark}.json"


def check_not_newer(results: str | Path, model: str, benchmark: str) -> None:
    """Raise NewerResultError if writing this result would replace one of a newer version."""
    try:
        read_fields(result_path(results, model, benchmark))
    except NewerResultError:
        raise
    except UserError:
        return


def write_result(results: str | Path, result: Result, items: pd.DataFrame | None = None) -> Path:
    """Store a result and its items, each at once; reading rejects a pair that a crash between the two has mixed."""
    path = result_path(results, result.model_name, result.benchmark)
    table = path.with_name(f"{result.benchmark}.items.parquet")
    if items is not None:
        with atomic_output_path(table) as partial:
            items.to_parquet(partial, index=False)
        result = dataclasses.replace(result, items=table.name, items_hash=file_hash(table))
    stored = to_plain(dataclasses.replace(result, path=None, frame=None))
    content = {name: value for name, value in _finite(redact(stored)).items() if name not in _IN_MEMORY}
    if result.status == "ok":
        content["fingerprint"] = fingerprint(content["protocol"])  # of the redacted protocol, as it is written
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if items is None:
        table.unlink(missing_ok=True)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: str | Path) -> Result:
    """Read one result file and check it against its items.

    Raises:
        NewerResultError: it has a newer schema.
        UserError: it is missing, unreadable or not JSON, a field is missing or of a wrong type, or its other fields or
            its items contradict it.
    """
    result = read_fields(path)
    if has_items(result):
        check_items(result, _items_path(Path(path), result.items or ""))
    return result


def read_fields(path: str | Path) -> Result:
    """As `read_result`, without reading the items."""
    file = Path(path)
    reject_named_pipe(file)
    try:
        content = safe_json_loads(file.read_text(encoding="utf-8"), unique=True)
    except FileNotFoundError:
        raise UserError(f"{file}: no such result file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: not a result file ({error})") from None
    keys = content if isinstance(content, dict) else {}
    schema, metrics = keys.get("schema"), keys.get("metrics")
    if isinstance(schema, int | float) and schema > SCHEMA:
        raise NewerResultError(f"{file}: written by a newer version (schema {schema}; this one reads {SCHEMA})")
    for name in ("schema", "metrics"):
        if name not in keys:
            raise UserError(f"{file}: not a result file: missing {name}")
    for name in _IN_MEMORY & keys.keys():
        raise UserError(f"{file}: not a result file: unknown key '{name}'")
    for name, metric in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(metric, dict) and "columns" not in metric:
            raise UserError(f"{file}: not a result file: metrics.{name}: missing columns")
    if isinstance(schema, int) and schema <= _WITH_BLIND_SCORES and isinstance(metrics, dict):
        content = content | {"metrics": _with_gains(metrics, f"{file}: not a result file")}
    result = dataclasses.replace(from_plain(Result, content, what=f"{file}: not a result file"), path=file)
    check_fields(result, file)
    return result


def _with_gains(metrics: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The metrics of a file of schema 6 or before as this version writes them.

    A ``blind`` of a metric is two metrics now; other baselines and gains are known by their names.
    """
    written: dict[str, Any] = {}
    for name, metric in metrics.items():
        if not isinstance(metric, dict):
            return dict(metrics)  # which is rejected
        written[name] = metric = dict(metric)
        blind = metric.pop("blind", {})
        for condition in (each for each in CONDITIONS if each not in BLIND_KINDS):
            for kind, former in (("gain_of", gain_name("", condition)), ("baseline_of", baseline_name("", condition))):
                if name.endswith(former) and name.removesuffix(former) in metrics:
                    metric |= {kind: name.removesuffix(former), "condition": condition}
                    break
        for kind, score in blind.items() if isinstance(blind, dict) else ():
            numbers = from_plain(_BlindScore, score, what=f"{what}: metrics.{name}.blind.{kind}")
            formula, names = metric.get("aggregation"), metric["columns"]
            columns, sighted = (
                [
                    column if (formula, place) in GROUPS else blind_column(each, column)
                    for place, column in enumerate(names)
                ]
                for each in (kind, SIGHTED)
            )
            common = metric | {
                "n": numbers.n,
                "clusters": 0,
                "ci_method": "none",
                "chance_levels": {},
                "condition": kind,
            }
            written[baseline_name(name, kind)] = common | {
                "value": numbers.value, "ci_low": None, "ci_high": None, "higher_is_better": None, "columns": columns,
                "label": f"{metric.get('label')}, {kind} image", "baseline_of": name,
            }  # fmt: skip
            written[gain_name(name, kind)] = common | {
                "value": numbers.sighted - numbers.value, "ci_low": numbers.gain_low, "ci_high": numbers.gain_high,
                "columns": sighted, "minus": columns, "label": f"{metric.get('label')} above that with a {kind} image",
                "ci_method": "none" if numbers.gain_low is None else "student", "gain_of": name,
            }  # fmt: skip
    return written


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BlindScore:
    """The score of a blind run in files of schema 6 and before."""

    value: float
    sighted: float
    gain_low: float | None
    gain_high: float | None
    p_value: float
    n: int


def result_files(results: str | Path) -> list[Path]:
    """The result files below a directory, ``<model>/<benchmark>.json``, by model and benchmark name.

    Raises:
        UserError: no such directory.
        PermissionError: a model's directory may not be read.
    """
    root = Path(results)
    if not root.is_dir():
        raise UserError(f"{results}: no such results directory")
    models = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    files = [file for model in models for file in sorted(model.iterdir())]  # a glob skips unreadable directories
    return [file for file in files if file.suffix == ".json" and not file.name.startswith(".")]


def read_results(results: str | Path) -> list[Result]:
    """All results below a directory, by model and benchmark name.

    Raises:
        UserError: no such directory, an unreadable file in it, or two of the same model and benchmark.
        PermissionError: a model's directory may not be read.
    """
    results_of_files = [read_result(file) for file in result_files(results)]
    reject_duplicates((result.model_name, result.benchmark, result.path) for result in results_of_files)
    return results_of_files


def reject_duplicates(rows: Iterable[tuple[str, str, Path | None]]) -> None:
    """Reject two files of the same model and benchmark.

    Args:
        rows: model name, benchmark and file of each result.

    Raises:
        UserError: naming both files.
    """
    files: dict[tuple[str, str], Path | None] = {}
    for model, benchmark, file in rows:
        if (model, benchmark) in files:
            raise UserError(
                f"{file}: expected one result of '{model}' on '{benchmark}', but {files[model, benchmark]} is another; "
                "remove one, or change its 'model_name'"
            )
        files[model, benchmark] = file


def has_items(result: Result) -> bool:
    """Whether the result's table of items exists next to it, or in memory."""
    if result.frame is not None:
        return True
    return result.path is not None and result.items is not None and _items_path(result.path, result.items).is_file()


def _items_path(path: Path, items: str) -> Path:
    return path.with_name(Path(items).name)


def read_items(result: Result, *, numbers_only: bool = False) -> pd.DataFrame:
    """The items of a result that was read from a file (see ``ITEM_COLUMNS``).

    ``numbers_only`` omits the columns of galleries, which are most of the file.
    """

    def is_wanted(name: str) -> bool:  # predictions of a blind run are its, too
        return not numbers_only or (name not in _GALLERY_COLUMNS and not name.endswith(":prediction"))

    if result.frame is not None:
        frame: pd.DataFrame = result.frame
        return frame[[name for name in frame if is_wanted(name)]]
    import pyarrow.parquet

    if result.path is None or result.items is None:
        raise UserError(f"{result.model_name}/{result.benchmark}: has no items")
    table = _items_path(result.path, result.items)
    try:
        with pyarrow.parquet.ParquetFile(table) as file:  # a third of the time of pandas.read_parquet
            names = [name for name in file.schema_arrow.names if is_wanted(name)]
            return file.read(columns=names, use_threads=False).to_pandas(use_threads=False)
    except FileNotFoundError:
        raise UserError(f"{table}: the items of {result.path.name} are missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: not a readable parquet file ({error})") from None
