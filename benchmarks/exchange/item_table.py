"""The tidy table of scores, from any harness: a line for each model, benchmark, metric and item (docs/item-tables.md).

A published number is a line without an item. Everything else about a metric, its interval, its tests and its place in
the report, follows from the lines as for a result of this suite.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.exchange.imported import (
    NOT_STATED,
    Imported,
    check_scale,
    is_bounded,
    make_imported,
    measured_metric,
    safe_name,
    seed_suffix,
)
from benchmarks.results.formatting import join_with_and
from benchmarks.results.result_types import CHANCE, IMAGE_HASH, Metric
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from benchmarks.tasks.registry import all_benchmarks
from clips.commandline.progress import progress_iter
from clips.errors import UserError, error_reason, unknown_name_error

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SUFFIXES = (".parquet", ".csv")
_SHOWN = 60  # characters of a cell in a message
_PER_CENT = 100.0
_EXACT = 2.0**53  # above, different integers are one float
_ROUNDING = 1e-12
_NOT_RATIOS = 5.0  # the smallest maximum of a judge's points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table.

    Args:
        kind: of its values.
        meaning: for the documentation.
        constant_in: the columns in whose groups all its values are equal.
        of_items: whether published numbers are left out of these groups.
        required: whether each line has a value, and the table the column.
    """

    kind: Literal["text", "number", "integer", "bool"]
    meaning: str
    constant_in: tuple[str, ...] = ()
    of_items: bool = False
    required: bool = False


_RESULT = ("model", "seed", "benchmark")
_METRIC = ("benchmark", "metric", "is_published")
COLUMNS: Mapping[str, Column] = {
    "model": Column(kind="text", meaning="name of the model", required=True),
    "benchmark": Column(kind="text", meaning="name of the benchmark", required=True),
    "metric": Column(kind="text", meaning="name of the metric; its value is the mean over items", required=True),
    "item": Column(kind="text", meaning="name of the question, the same for all models; empty: a published number"),
    "score": Column(kind="number", meaning="the item's score, or the published number as printed", required=True),
    "seed": Column(kind="integer", meaning="of the training; the seeds of a model make one row of the report"),
    "image": Column(
        kind="text",
        meaning="of the item's image (document, subject); items that share it are one cluster; by default the item",
        constant_in=(*_RESULT, "item"),
    ),
    "category": Column(kind="text", meaning="the benchmark's part", constant_in=(*_RESULT, "item")),
    "question": Column(kind="text", meaning="the prompt, for the report's examples"),
    "prediction": Column(kind="text", meaning="the model's answer"),
    "target": Column(
        kind="text", meaning="the expected answer", constant_in=("benchmark", "protocol", "source", "item")
    ),
    "protocol": Column(
        kind="text",
        meaning="how it was measured (harness, version, shots); models of different protocols are not tested",
        constant_in=_RESULT,
    ),
    "chance": Column(
        kind="number",
        meaning="the item's expected score of a random guess",
        constant_in=("benchmark", "metric", "item"),
        of_items=True,
    ),
    "higher_is_better": Column(kind="bool", meaning="by default true", constant_in=_METRIC),
    "scale": Column(
        kind="number",
        meaning="the largest possible score: 1 for ratios, 100 for per cent, 10 for a judge's points; by default 1 if "
        "all scores of the metric are from 0 to 1, else they are points without a maximum",
        constant_in=("benchmark", "metric"),
        of_items=True,
    ),
    "source": Column(
        kind="text", meaning="where the scores are from; a published number needs it", constant_in=_RESULT
    ),
    "ci_low": Column(kind="number", meaning="lower end of a published number's 95 % interval"),
    "ci_high": Column(kind="number", meaning="upper end"),
    "n": Column(kind="integer", meaning="items of a published number"),
}
_NAMES_OF_ITEMS = {"item", "image"}
_OF_PUBLISHED = ("ci_low", "ci_high", "n")


def read_item_tables(files: Sequence[Path]) -> list[Imported]:
    """The results of one or more tables, with their items in memory.

    Raises:
        UserError: an unreadable file, or lines that `results_of` rejects.
    """
    import pandas as pd

    frames = [_typed(_read(file), str(file), "line" if file.suffix == ".csv" else "row") for file in files]
    return _results(_completed(pd.concat(frames, ignore_index=True)), {str(file): file for file in files})


def results_of(frame: pd.DataFrame) -> list[Imported]:
    """The results of a frame, with their items in memory.

    Raises:
        UserError: naming the row and the column: a column is missing, unknown or of another type, an item stands twice,
            or two lines contradict each other.
    """
    return _results(_completed(_typed(frame, "frame", "row")), {"frame": None})


def _read(file: Path) -> pd.DataFrame:
    from pyarrow import csv as arrow_csv

    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: expected a table of items, a .parquet or .csv file")
    try:
        if file.suffix == ".parquet":
            return _read_parquet(file)
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream), [])
        # texts as they are: a model may be called NA, and an item 007
        texts = arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, "string"), strings_can_be_null=False)
        options = arrow_csv.ParseOptions(newlines_in_values=True)
        frame: pd.DataFrame = arrow_csv.read_csv(file, parse_options=options, convert_options=texts).to_pandas()
        return frame
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's, of the encoding, too
        raise UserError(f"{file}: not a readable {file.suffix[1:]} file ({error_reason(error)})") from None


def _read_parquet(file: Path) -> pd.DataFrame:
    """The frame of a file; names that are integers become texts first, as pandas makes floats of them beside a null."""
    import pyarrow as pa
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    for place, field in enumerate(table.schema):
        if field.name in COLUMNS and COLUMNS[field.name].kind == "text" and pa.types.is_integer(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    unnamed = [name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)]  # of pandas
    frame: pd.DataFrame = table.drop_columns(unnamed).to_pandas(ignore_metadata=True)  # which has the former types
    return frame


# Lines: their types, and what they must not contradict


def _typed(frame: pd.DataFrame, where: str, unit: str) -> pd.DataFrame:
    """All columns of `COLUMNS` with values of their types, and where each line is; checked line by line."""
    import pandas as pd

    for place, name in enumerate(frame.columns):
        if name in frame.columns[:place]:
            raise UserError(f"{where}: expected different columns, got '{name:.{_SHOWN}}' twice")
    if missing := [name for name, column in COLUMNS.items() if column.required and name not in frame]:
        raise UserError(f"{where}: expected a column '{missing[0]}' (found {', '.join(map(str, frame.columns))})")
    for name in frame.columns:
        if name not in COLUMNS:
            raise unknown_name_error(str(name), COLUMNS, f"column of {where}")
    if frame.empty:
        raise UserError(f"{where}: expected at least one line, got none")
    first = 2 if unit == "line" else 0
    lines = pd.Series([f"{where} {unit} {number}" for number in range(first, first + len(frame))], dtype=object)
    typed = {name: _values(name, frame[name].reset_index(drop=True), lines) for name in frame.columns}
    empty = {name: _empty(column.kind, len(frame)) for name, column in COLUMNS.items() if name not in typed}
    table = pd.DataFrame({**typed, **empty, "where": lines, "file": where})[[*COLUMNS, "where", "file"]]
    for name, column in COLUMNS.items():
        if column.required and (places := _is_empty(table[name])).any():
            raise UserError(f"{lines[places.argmax()]}: {name}: expected a value, got none")
    table["is_published"] = is_published = _is_empty(table["item"])
    lacks_source = "item: expected a name, or for a published number its source"
    _reject(table, is_published & _is_empty(table["source"]), lacks_source)
    _reject(
        table,
        is_published & (_is_empty(table["ci_low"]) != _is_empty(table["ci_high"])),
        "expected both ends of an interval, ci_low and ci_high, or none",
    )
    for name in _OF_PUBLISHED:
        _reject(table, ~is_published & ~_is_empty(table[name]), f"{name}: expected none, as the line has an item")
    return table


def _values(name: str, column: pd.Series, lines: pd.Series) -> pd.Series:
    """A column with values of its type: texts (empty if missing), or floats (NaN if missing)."""
    import numpy as np
    import pandas as pd

    kind = COLUMNS[name].kind
    expected = {"text": "a text", "bool": "true or false", "integer": "an integer"}.get(kind, "a number")

    def reject(place: int, value: object) -> UserError:
        if kind == "integer" and str(value).strip("-").isdecimal():
            return UserError(f"{lines[place]}: {name}: expected an integer below 2^53, got {str(value)[:_SHOWN]}")
        return UserError(f"{lines[place]}: {name}: expected {expected}, got {str(value)[:_SHOWN]!r}")

    for place, value in enumerate(column) if column.dtype == object else ():
        if not isinstance(value, Hashable):  # a list or a mapping
            raise reject(place, value)
    codes, uniques = pd.factorize(column, use_na_sentinel=True)
    if name in _NAMES_OF_ITEMS and all(isinstance(value, str) and re.fullmatch(r"\d+\.0|", value) for value in uniques):
        uniques = [value.removesuffix(".0") for value in uniques]  # integers beside a missing value, written by pandas
    values: list[Any] = []
    for code, value in enumerate(uniques):
        made = _text(value) if kind == "text" else _number(kind, value)
        if made is None:
            raise reject(int(np.argmax(codes == code)), value)
        values.append(made)
    values.append("" if kind == "text" else math.nan)  # at -1, the code of a missing value
    return pd.Series(np.array(values, dtype=object if kind == "text" else float)[codes])


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():  # of integers beside missing values
        return str(int(value))
    return None if isinstance(value, bytes) else str(value)


def _number(kind: str, value: Any) -> float | None:
    """The number; NaN for an empty text, None for another text or a number that is not finite."""
    if isinstance(value, str):
        text = value.strip()
        if kind == "bool":
            return {"": math.nan, "true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}.get(text.lower().removesuffix(".0"))
        if not text:
            return math.nan
        if "_" in text:  # Python's float takes 8_5.9
            return None
        value = {"true": 1.0, "false": 0.0}.get(text.lower(), text)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    wrong = {"integer": not number.is_integer() or abs(number) >= _EXACT, "bool": number not in {0.0, 1.0}}.get(
        kind, False
    )
    return None if wrong or not math.isfinite(number) else number


def _empty(kind: str, count: int) -> Any:
    import numpy as np

    return np.full(count, "", dtype=object) if kind == "text" else np.full(count, math.nan)


def _is_empty(column: pd.Series) -> np.ndarray:
    return (column.isna() | (column == "")).to_numpy()


def _reject(table: pd.DataFrame, wrong: np.ndarray, message: str) -> None:
    if wrong.any():
        raise UserError(f"{table['where'].iloc[int(wrong.argmax())]}: {message}")


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what a line leaves out and another one of its group states.

    Raises:
        UserError: an item stands twice, or two lines contradict each other.
    """
    for _, line in table[table.duplicated([*_RESULT, "metric", "item"])].head(1).iterrows():
        what = f"item '{line['item']:.{_SHOWN}}'" if line["item"] else "number"
        seed = "" if math.isnan(line["seed"]) else f" of seed {line['seed']:.0f}"
        of = f"{line['model']}{seed} on {line['benchmark']}, {line['metric']}"
        raise UserError(f"{line['where']}: expected one {what} of {of}, got two")
    of_items = (~table["is_published"]).groupby([table[name] for name in (*_RESULT, "metric")], dropna=False)
    mixed = (of_items.transform("any") & table["is_published"]).to_numpy()
    _reject(table, mixed, "item: expected a name, as other lines of the metric have")
    for name, column in COLUMNS.items():
        if column.constant_in and not _is_empty(table[name]).all():
            enters = ~(table["is_published"] & column.of_items)
            stated = table[name].where(~_is_empty(table[name]) & enters)
            first = stated.groupby([table[key] for key in column.constant_in], dropna=False).transform("first")
            within = join_with_and([key for key in column.constant_in if key != "is_published"])
            wrong = (stated.notna() & (stated != first)).to_numpy()
            _reject(table, wrong, f"{name}: expected one value for each {within}, got two")
            first = first.fillna("") if column.kind == "text" else first
            table[name] = first.where(enters, table[name])
    has_seed = table["seed"].notna().groupby(table["model"]).transform("any")
    _reject(table, (has_seed & table["seed"].isna()).to_numpy(), "seed: expected one, as other lines of the model have")
    for kind in ("model", "benchmark"):
        names: dict[str, str] = {}
        for name in table[kind].unique():
            other = names.setdefault(safe_name(name), name)
            if not safe_name(name) or other != name:
                unlike = f" unlike '{other:.{_SHOWN}}'" if other != name else ""
                _reject(
                    table,
                    (table[kind] == name).to_numpy(),
                    f"{kind}: expected a name with letters or digits{unlike}, got '{name:.{_SHOWN}}'",
                )
    _reject_equal_names(table)
    return table


def _reject_equal_names(table: pd.DataFrame) -> None:
    """Reject a model named as another one is with its seed, in a file or in the report."""
    owners: dict[str, str] = {}
    for model, number in table[["model", "seed"]].drop_duplicates().itertuples(index=False):
        seed = None if math.isnan(number) else int(number)
        of_row = f"{model} (seed {seed})" if seed is not None else model  # as `RowRecord.model` reads it
        for name in {safe_name(model), model, safe_name(model) + seed_suffix(seed), of_row}:
            if owners.setdefault(name, model) != model:
                message = f"model: expected a name unlike '{name:.{_SHOWN}}', that of another model and its seed"
                _reject(table, (table["model"] == model).to_numpy(), message)


# Results


def _results(table: pd.DataFrame, files: Mapping[str, Path | None]) -> list[Imported]:
    specs: dict[tuple[str, str], MetricSpec] = {}
    for (benchmark, metric), lines in table[~table["is_published"]].groupby(["benchmark", "metric"], sort=False):
        specs[benchmark, metric] = _spec_of_items(metric, lines)
    # the metrics of all models in one order: the first one is that of the categories and examples
    table = table.assign(place=table.groupby("metric", sort=False).ngroup())
    by_result = list(table.groupby([*_RESULT], dropna=False, sort=False))
    return [
        _result(lines.sort_values("place", kind="stable"), specs, files)
        for _, lines in progress_iter(by_result, "reading", "results")
    ]


def _spec_of_items(metric: str, lines: pd.DataFrame) -> MetricSpec:
    """The metric of all models' items: a ratio, or points.

    Models, or seeds, in different scales would differ significantly: so one whose scores reach at most 1 is rejected
    beside one whose scores reach 5, unless the scale is stated; so are hits of 0 and 1 beside others of 0 and 2.
    """
    scores, is_stated, scale = lines["score"].to_numpy(), lines["scale"].notna().any(), _scale(lines)
    _reject(lines, (lines["scale"] <= 0).to_numpy(), "scale: expected a number above 0")
    outside = (scores < -_ROUNDING * scale) | (scores > scale * (1 + _ROUNDING))
    largest = lines.groupby(["model", "seed"], dropna=False)["score"].transform("max").to_numpy()
    likely_ratios = (largest > 0) & (largest <= 1) & (scores.min() >= 0)
    if is_stated:
        _reject(lines, outside, f"score: expected 0 to {scale:g}, as the scale is {scale:g}")
        if scale == _PER_CENT:
            _reject(lines, likely_ratios, "score: expected per cent, as the scale is 100; this model's are at most 1")
    else:
        _reject_other_hits(lines)
    if not is_stated and largest.max() >= _NOT_RATIOS:
        other = lines["model"].iloc[int(largest.argmax())]
        scales = f"this model's scores are at most 1, those of '{other:.{_SHOWN}}' {largest.max():g}"
        _reject(lines, likely_ratios, f"score: expected one scale, or the column scale: {scales}")
    is_ratio = not outside.any() and scale in {1, _PER_CENT}
    directions = lines["higher_is_better"].dropna()
    return MetricSpec(
        label=metric.replace("_", " "),
        aggregation="mean" if is_ratio else "mean_of_scores",
        columns=(f"score {metric}",),  # unlike any other column of items
        scale=100.0 if is_ratio else 1.0,
        higher_is_better=bool(directions.iloc[0]) if len(directions) else True,
        most=1.0 if is_ratio else scale if is_stated else math.inf,
    )


def _reject_other_hits(lines: pd.DataFrame) -> None:
    """Reject a model that has two scores, of which only the lower or the higher one is another model's, too."""
    by_model = lines.groupby(["model", "seed"], dropna=False)["score"]
    two = lines[(by_model.transform("nunique") == 2).to_numpy()]
    if two.empty:
        return
    ends = two.groupby(["model", "seed"], dropna=False)["score"].transform
    low, high = ends("min"), ends("max")
    other = ((low == low.iloc[0]) != (high == high.iloc[0])).to_numpy()
    if other.any():
        row = int(other.argmax())
        pairs = [f"{low.iloc[place]:g} and {high.iloc[place]:g}" for place in (row, 0)]
        message = f"this model's scores are {pairs[0]}, those of '{two['model'].iloc[0]:.{_SHOWN}}' {pairs[1]}"
        _reject(two, other, f"score: expected one scale, or the column scale: {message}")


def _result(
    lines: pd.DataFrame, specs: Mapping[tuple[str, str], MetricSpec], files: Mapping[str, Path | None]
) -> Imported:
    """One model and seed on one benchmark."""
    model, seed, benchmark = lines["model"].iloc[0], lines["seed"].iloc[0], lines["benchmark"].iloc[0]
    file, with_items = lines["file"].iloc[0], lines[~lines["is_published"]]
    items = _items(with_items, specs) if len(with_items) else None
    metrics: dict[str, Metric] = {}
    for metric, of_metric in lines.groupby("metric", sort=False):
        line = of_metric.iloc[0]
        if not line["item"]:
            metrics[metric] = _published(line, specs.get((benchmark, metric)))
            continue
        spec = specs[benchmark, metric]
        assert items is not None
        known = {}
        if of_metric["chance"].notna().all():
            chance = of_metric.set_index("item")["chance"].reindex(items["item"]).to_numpy() / _divisor(of_metric, spec)
            known = {CHANCE: {spec.columns[0]: chance}}
        metrics[metric] = compute_metric(items, spec, None, known)
    protocol, tool = (lines[name].iloc[0] for name in ("protocol", "source"))  # the same in all lines of a result
    imported = make_imported(
        files[file],
        tool=tool or NOT_STATED,
        model=model,
        seed=None if math.isnan(seed) else int(seed),
        benchmark=benchmark,
        benchmark_type=_benchmark_type(benchmark, metrics),
        metrics=metrics,
        primary=metrics,
        settings={"protocol": protocol} if protocol else {},
        items=items,
    )
    result = imported.result
    path = Path(file, result.model_name, f"{result.benchmark}.json")
    in_memory = dataclasses.replace(result, path=path, items=None if items is None else Path(file).name, frame=items)
    return Imported(in_memory, items)


def _scale(lines: pd.DataFrame) -> float:
    stated = lines["scale"].dropna()
    return float(stated.iloc[0]) if len(stated) else 1.0


def _divisor(lines: pd.DataFrame, spec: MetricSpec) -> float:
    """Of the scores as written: a result has ratios from 0 to 1."""
    return _scale(lines) if spec.most == 1 else 1.0


def _items(lines: pd.DataFrame, specs: Mapping[tuple[str, str], MetricSpec]) -> pd.DataFrame:
    """The items of a result, with a column for each metric."""
    import pandas as pd

    first = lines.drop_duplicates("item").set_index("item", drop=False)
    items = first[["item"]].copy()
    named, alone = first["image"] != "", ""
    while named.any() and not named.all() and first["image"].isin(alone + first["item"]).any():
        alone += "item "  # an item without an image is of none that another item names
    items["image"] = first["image"] if named.all() else first["image"].where(named, alone + first["item"])
    items[IMAGE_HASH] = pd.Series(None, items.index, dtype=object)  # whose images other benchmarks share is not known
    items["direction"] = ""
    for name in ("category", "question", "prediction", "target"):
        items[name] = first[name]
    items["score"] = math.nan
    items["thumbnail"] = None
    for place, (metric, of_metric) in enumerate(lines.groupby("metric", sort=False)):
        spec = specs[of_metric["benchmark"].iloc[0], metric]
        scores = of_metric.set_index("item")["score"].reindex(items.index) / _divisor(of_metric, spec)
        scores = scores if spec.most == math.inf else scores.clip(0.0, spec.most)  # of rounding errors
        items[spec.columns[0]] = scores
        if place == 0:
            items["score"] = scores
    return items.reset_index(drop=True)


# Published numbers


def _published(line: pd.Series, of_items: MetricSpec | None) -> Metric:
    where, spec = line["where"], of_items or _published_spec(line)
    is_stated = not math.isnan(line["scale"])
    if of_items is not None and is_stated and math.isinf(spec.most):
        raise UserError(f"{where}: scale: expected the metric's items to state theirs, too")
    if of_items is not None and line["higher_is_better"] == (not spec.higher_is_better):
        raise UserError(f"{where}: higher_is_better: expected that of the metric's items, {spec.higher_is_better}")
    scale = _unit(spec, float(line["scale"]), line) if is_stated else spec.scale
    value, n = line["score"] / scale, 0 if math.isnan(line["n"]) else int(line["n"])
    if of_items is None or math.isfinite(spec.most):  # points of the table's own items have no known range
        check_scale(spec, value, f"{where}: score", scale=scale, stated=is_stated, hint=": state the scale, 1 or 100")
    metric = measured_metric(spec, value, n=n)
    if math.isnan(line["ci_low"]):
        return metric
    if not line["ci_low"] <= line["score"] <= line["ci_high"]:
        raise UserError(
            f"{where}: score: expected it in its interval, {line['ci_low']:g} to {line['ci_high']:g}, "
            f"got {line['score']:g}"
        )
    return dataclasses.replace(
        metric, ci_low=line["ci_low"] / scale, ci_high=line["ci_high"] / scale, ci_method="stated"
    )


def _unit(spec: MetricSpec, largest: float, line: pd.Series) -> float:
    """What a printed number is divided by to be a metric's value, if the largest possible number is stated."""

    def reject(expected: str) -> UserError:
        return UserError(f"{line['where']}: scale: expected {expected} for {line['metric']:.{_SHOWN}}, got {largest:g}")

    if largest <= 0:
        raise reject("a number above 0")
    if spec.aggregation is None or is_bounded(spec) or (spec.aggregation == "mean_of_scores" and spec.scale == 1):
        return largest / spec.most
    if spec.aggregation == "mean_of_scores":  # CIDEr, of which 10 is the largest
        if largest not in {1.0, _PER_CENT}:
            raise reject("1 or 100")
        return largest
    if largest in {1.0, _PER_CENT} or line["score"] > largest:
        raise reject("none, or the largest number of points")
    return 1.0


def _published_spec(line: pd.Series) -> MetricSpec:
    """This suite's metric of a benchmark, by name, else the one that the line describes."""
    from benchmarks.tasks.encoders import classification, retrieval
    from benchmarks.tasks.mllm.task_metrics import TASK_METRICS

    task = TASK_METRICS.get(line["benchmark"])
    known = {**retrieval.METRICS, **classification.METRICS, **({**task.metrics, **task.extra} if task else {})}
    if line["metric"] in known:
        return known[line["metric"]]
    if math.isnan(line["scale"]) or math.isnan(line["higher_is_better"]):
        raise UserError(
            f"{line['where']}: metric: '{line['metric']:.{_SHOWN}}' is no metric of this suite: expected its scale and "
            "higher_is_better"
        )
    return MetricSpec(
        label=line["metric"].replace("_", " "),
        aggregation=None,
        scale=_PER_CENT if line["scale"] == 1 else float(line["scale"]),
        higher_is_better=bool(line["higher_is_better"]),
    )


def _benchmark_type(benchmark: str, metrics: Mapping[str, Metric]) -> str:
    """The type of a benchmark; by its metrics of a dataset, which is no benchmark's name (coco)."""
    from benchmarks.tasks.encoders import classification, retrieval

    if (known := all_benchmarks().get(benchmark)) is not None:
        return known.benchmark_type
    of_encoders = {"retrieval": retrieval.METRICS, "classification": classification.METRICS}
    return next((kind for kind, names in of_encoders.items() if names.keys() >= {*metrics}), "mllm")


def document_columns() -> Iterator[tuple[str, str]]:
    """Name and meaning of each column, for docs/item-tables.md."""
    return ((f"`{name}`" + " *" * column.required, column.meaning) for name, column in COLUMNS.items())
