"""Result files: one JSON and one table of items for each (row, benchmark).

    <results>/<row>/<benchmark>.json
    <results>/<row>/<benchmark>.items.parquet

Columns of every items table (see ``ITEM_COLUMNS``), then the columns that the metrics' formulas name, then those that
only a gallery reads (``SHOWN_COLUMNS``), of a few items.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.protocol import fingerprint
from benchmarks.validation import check_fields, check_items
from clips.artifact import lexical, partial_beside, versions, write_file, writing
from clips.errors import UserError
from clips.jsontext import parse_json
from clips.plain import plain
from clips.secrets import without_secrets

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA = 3
CHANCE = "chance"
ITEM_COLUMNS: dict[str, str] = {
    "item": "unique within the benchmark; pairs the same item of two rows",
    "image": "the picture's reference; items with the same one form a cluster",
    "direction": "retrieval: 'i2t' or 't2i'; otherwise empty",
    "category": "the benchmark's own kind of item, or empty",
    "question": "what the model was asked (retrieval: the query caption, or empty for a query picture)",
    "prediction": "what it answered (retrieval: the first caption found, or the reference of the first picture)",
    "target": "the expected answer (several: joined by ' | ')",
    "score": "this item's part in the first primary metric, higher is better; NaN where there is none",
    "thumbnail": "JPEG bytes, longest side 160, in the first item of each picture; null elsewhere",
}
SHOWN_COLUMNS: dict[str, str] = {
    "found": "retrieval: what a query found, as JSON (`encoders.found`); null where it was not drawn",
    "map": "pointing: JPEG bytes, how similar each place of the picture is to the phrase (`encoders.pointing`)",
}
_LARGEST = 1e100  # of a number; NaN is not below it either
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number with its interval. To be shown: ``value * scale``, likewise ``low`` and ``high``.

    Args:
        value: what the formula, or lmms-eval's own aggregation, gives.
        low: lower end of the 95 % interval, in the unit of ``value``; None where none can be given.
        high: upper end.
        n: items that enter it.
        clusters: different pictures among them.
        higher_is_better: None where neither is better (POPE's share of yes).
        scale: 100 where ``value`` is a fraction that is shown in per cent, or as papers print CIDEr.
        label: for a column's head, ``"T→I R@1"``.
        interval: ``"wilson"``, ``"bootstrap"`` (over pictures) or ``"none"``.
        formula: a name in ``formulas.FORMULAS``; None where the value cannot be computed from the items.
        columns: the item columns that the formula takes.
        blind: what answers give that are made without looking, in the unit of ``value``: ``"chance"`` (each option is
            drawn as often as any other), ``"always yes"``, ``"commonest class"``; empty where nothing can be guessed.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    higher_is_better: bool | None
    scale: float
    label: str
    interval: str
    formula: str | None = None
    columns: tuple[str, ...] = ()
    blind: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is known about one model on one benchmark.

    Args:
        row: the model's name in the table.
        benchmark: the column's name.
        kind: ``"retrieval"``, ``"classification"``, ``"captions"``, ``"pointing"``, ``"choice"`` or
            ``"mllm"``.
        status: ``"ok"`` or ``"failed"``.
        reason: one line, why it failed.
        model: ``{"path": …, "hash": …}``.
        metrics: name → metric; empty where it failed.
        primary: the metrics to show in the main table, in order.
        absent: metrics that this benchmark usually has → why not here.
        without_skill: what a model gets that does not look at the picture, as a sentence.
        protocol: everything that the numbers depend on besides the model, name → value.
        fingerprint: SHA-256 of ``protocol``; numbers are ranked together only where it is equal.
        items: file name of the items table beside the JSON; None where there is none.
        seconds: wall time of this benchmark, model loading left out.
        versions: of the libraries.
        created: ISO time.
        git: commit of the suite and whether it had uncommitted changes; empty outside of a checkout.
        command: the command line that made it.
        key: what ``clips-bench run`` compares to know that this is done already.
        schema: version of this layout.
        path: the JSON file, when read from one (not stored).
    """

    row: str
    benchmark: str
    kind: str
    status: Literal["ok", "failed"]
    reason: str | None = None
    model: Mapping[str, str]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    primary: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    without_skill: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    items: str | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=versions)
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    git: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    key: str = ""
    schema: int = SCHEMA
    path: Path | None = None


def check_name(name: str, what: str) -> None:
    """Refuse names that cannot be file names everywhere."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{what}: expected up to 200 letters, digits, '.', '_' and '-', got '{name:.250}'")


def study_above(result: Path) -> Path:
    """The directory that ``results/ROW/BENCHMARK.json`` lies in, a study's where there is one; ``..`` is no folder."""
    return list(lexical(result).parents)[:3][-1]


def result_path(results: str | Path, row: str, benchmark: str) -> Path:
    """Where the result of a row on a benchmark is stored."""
    return Path(results) / row / f"{benchmark}.json"


def refuse_newer(results: str | Path, row: str, benchmark: str) -> None:
    """Raise NewerResultError where a newer version's result stands in the place of one that is to be written."""
    try:
        read_fields(result_path(results, row, benchmark))
    except NewerResultError:
        raise
    except UserError:
        return


def write_result(results: str | Path, result: Result, items: pd.DataFrame | None = None) -> Path:
    """Store a result and its items so that a crash leaves the old pair or the new one readable."""
    path = result_path(results, result.row, result.benchmark)
    table = path.with_name(f"{result.benchmark}.items.parquet")
    if items is not None:
        _write_items(table, items)
        result = dataclasses.replace(result, items=table.name)
    content = {name: value for name, value in _finite(without_secrets(plain(result))).items() if name != "path"}
    if result.status == "ok":
        content["fingerprint"] = fingerprint(content["protocol"])  # of what is written, from which secrets are gone
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if items is None:
        table.unlink(missing_ok=True)
    return path


def _write_items(table: Path, items: pd.DataFrame) -> None:
    partial = partial_beside(table)
    with writing(table):
        table.parent.mkdir(parents=True, exist_ok=True)
        try:
            items.to_parquet(partial, index=False)
            partial.replace(table)
        finally:
            partial.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: str | Path) -> Result:
    """Read one result file and check it against its items.

    Raises:
        NewerResultError: it is of a newer layout.
        UserError: it is missing or cannot be read, is not JSON, a field is missing or of a wrong type, or what it says
            is contradicted by its other fields or by its items.
    """
    result = read_fields(path)
    if has_items(result):
        check_items(result, _items_path(Path(path), result.items or ""))
    return result


def read_fields(path: str | Path) -> Result:
    """As `read_result`, but its items are not read."""
    file = Path(path)
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise NewerResultError(
                f"{file}: written by a newer version (schema {content['schema']}; this one reads {SCHEMA})"
            )
        _check_types(Result, content)
        for name, metric in content["metrics"].items():
            _check_types(Metric, metric, f"metrics.{name}.")
        metrics = {
            name: Metric(**metric | {"columns": tuple(metric["columns"])})
            for name, metric in content["metrics"].items()
        }
        result = Result(**content | {"metrics": metrics, "path": file})
        check_fields(result, file)
        return result
    except FileNotFoundError:
        raise UserError(f"{file}: no such result file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a result file ({type(error).__name__}: {error})") from None


class NewerResultError(UserError):
    """A result file that a newer version has written: it can be neither read nor replaced."""


def _check_types(kind: type, content: Mapping[str, Any], where: str = "") -> None:
    """Refuse what would only break down where a report uses it. Raises TypeError naming the field."""
    if not isinstance(content, dict):
        raise TypeError(f"{where.rstrip('.')}: unexpected {json.dumps(content):.60}")
    hints = typing.get_type_hints(kind, localns={"Metric": Any})  # whose own are checked apart
    for name, value in content.items():
        if name in hints and not _conforms(value, hints[name]):
            raise TypeError(f"{where}{name}: unexpected {json.dumps(value):.60}")


def _conforms(value: Any, kind: Any) -> bool:
    """Whether what JSON gave is of a field's type; numbers must be finite."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in {types.UnionType, typing.Union}:
        return any(_conforms(value, part) for part in inner)
    if origin in {dict, collections.abc.Mapping}:
        return isinstance(value, dict) and all(_conforms(item, inner[1]) for item in value.values())
    if origin in {tuple, list, collections.abc.Sequence}:
        return isinstance(value, list) and all(_conforms(item, inner[0]) for item in value)
    if kind in {int, float}:
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < _LARGEST
    return isinstance(value, kind)


def result_files(results: str | Path) -> list[Path]:
    """The result files below a directory, ``<row>/<benchmark>.json``, by row and benchmark name.

    Raises:
        UserError: no such directory.
        PermissionError: a row's directory may not be read.
    """
    root = Path(results)
    if not root.is_dir():
        raise UserError(f"{results}: no such results directory")
    rows = [row for row in sorted(root.iterdir()) if row.is_dir() and not row.name.startswith(".")]
    files = [file for row in rows for file in sorted(row.iterdir())]  # a glob passes over what it may not read
    return [file for file in files if file.suffix == ".json" and not file.name.startswith(".")]


def read_results(results: str | Path) -> list[Result]:
    """All results below a directory, by row and benchmark name.

    Raises:
        UserError: no such directory, a file in it that cannot be read, or two of the same row and benchmark.
        PermissionError: a row's directory may not be read.
    """
    found = [read_result(file) for file in result_files(results)]
    refuse_twice((result.row, result.benchmark, result.path) for result in found)
    return found


def refuse_twice(found: Iterable[tuple[str, str, Path | None]]) -> None:
    """Refuse two files that name the same row and benchmark: one of them would stand for both.

    Args:
        found: row, benchmark and file of each result.

    Raises:
        UserError: naming both files.
    """
    files: dict[tuple[str, str], Path | None] = {}
    for row, benchmark, file in found:
        if (row, benchmark) in files:
            raise UserError(
                f"{file}: expected one result of '{row}' on '{benchmark}', but {files[row, benchmark]} is of it too; "
                "remove one, or give its 'row' another name"
            )
        files[row, benchmark] = file


def has_items(result: Result) -> bool:
    """Whether the table of items that a result names lies beside it; `clips-bench publish` leaves it out."""
    return result.path is not None and result.items is not None and _items_path(result.path, result.items).is_file()


def _items_path(path: Path, items: str) -> Path:
    return path.with_name(Path(items).name)


def read_items(result: Result) -> pd.DataFrame:
    """The items of a result that was read from a file; see ``ITEM_COLUMNS``."""
    import pandas as pd

    if result.path is None or result.items is None:
        raise UserError(f"{result.row}/{result.benchmark}: has no items")
    table = _items_path(result.path, result.items)
    try:
        return pd.read_parquet(table)
    except FileNotFoundError:
        raise UserError(f"{table}: the items of {result.path.name} are missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: not a readable parquet file ({error})") from None


def columns_of(items: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that a formula takes, as ``statistics`` wants them."""
    return {name: items[name].to_numpy() for name in names}
