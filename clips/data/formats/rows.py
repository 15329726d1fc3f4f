"""The rows of Hugging Face datasets, CSV, TSV, JSON lines and parquet, to which ``datasets`` gives random access."""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from clips.core.artifact import atomic_output_path
from clips.core.identity import cache_directory, digest, file_stamp
from clips.data.formats.dataset_format import ALL, WHOLE, WHOLE_REQUESTS, Location
from clips.data.remote_files import expand_brace_ranges, is_remote
from clips.data.tar_index import is_clutter
from clips.errors import UserError, error_reason, unknown_name_error
from clips.text_files import read_json_lines

_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLIT_COLUMN = "split"
"""Name of the column with each row's split."""
_CSV_VERSION = 2  # of `_csv_rows`; raise it with a change of the result, because datasets caches it
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
_QUOTED_CELL = re.compile(r'"((?:[^"]|"")*)"')


def is_saved(path: str | Path) -> bool:
    """Whether ``save_to_disk`` wrote a directory."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def has_splits(directory: Path) -> bool:
    """Whether a dataset has splits: ``save_to_disk`` also writes a single table."""
    return (directory / "dataset_dict.json").is_file() or not (directory / "state.json").is_file()


def is_datasets(location: Location) -> bool:
    """Parquet files, or a dataset of ``save_to_disk``."""
    return is_saved(location.path) or next(location.path.rglob("*.parquet"), None) is not None


def open_rows(path: str, subset: str | None, split: str) -> Any:
    """A ``datasets.Dataset`` from the Hub, a directory in the Hub's structure, or ``save_to_disk``.

    Images stay bytes or paths: this suite's decoder is safer, and may downscale while decoding.

    Raises:
        UserError: the dataset is missing, malformed or empty, or has no such split.
    """
    import datasets

    with one_line_errors(path):
        if is_saved(path):
            rows = datasets.load_from_disk(path)
            if not isinstance(rows, datasets.Dataset):
                if split not in rows:
                    raise unknown_name_error(split, rows, f"split of {path}")
                rows = rows[split]
        else:
            files = list(itertools.chain(*files_of_splits(path, subset).values())) if Path(path).is_dir() else []
            _check_parquet(files)
            rows = datasets.load_dataset(path, subset, split=split, cache_dir=_cache_of(files))
    return _undecoded(rows)


def _undecoded(rows: Any) -> Any:
    import datasets

    raw = datasets.Image(decode=False)
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, raw)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            rows = rows.cast_column(name, datasets.List(raw))
    return rows


def files_of_splits(path: str, subset: str | None = None) -> Mapping[str, Sequence[str]]:
    """Split → its files, as ``datasets`` resolves a directory or a Hub dataset."""
    import datasets

    return datasets.load_dataset_builder(path, subset).config.data_files or {}


def _check_parquet(files: Sequence[str]) -> None:
    """Raise UserError for a local parquet file that is not whole, which ``datasets`` does not name."""
    import pyarrow.parquet

    for file in files:
        if file.endswith(".parquet") and not is_remote(file):
            try:
                pyarrow.parquet.read_metadata(file)
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{file}: not a whole parquet file ({error_reason(error)})") from None


@contextlib.contextmanager
def one_line_errors(path: str) -> Iterator[None]:
    """Turn any error of ``datasets`` and its readers into a UserError; hide their progress bars and log lines."""
    import datasets

    bars_enabled, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # of a DatasetGenerationError
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{path}: cannot be read as a dataset ({error_reason(cause)})") from None
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars_enabled:
            datasets.enable_progress_bars()


def table_files(path: str) -> list[str]:
    """The table files of a path: of a directory, of a ``{000..127}`` range, or the one file. They may be remote.

    Raises:
        UserError: there is none, or they have several file types or another one than a table's.
    """
    files = expand_brace_ranges(path)
    if not is_remote(path) and Path(path).is_dir():
        tables = [file for file in Path(path).iterdir() if file.suffix.lower() in _TABLE_SUFFIXES]
        files = sorted(str(file) for file in tables if not is_clutter(file.name))
        if not files:
            raise UserError(f"{path}: expected files that end in {', '.join(_TABLE_SUFFIXES)} there, found none")
    for file in files:
        if not is_remote(file) and not Path(file).is_file():
            raise UserError(f"{file}: no such file or directory")
        if Path(file).suffix.lower() not in _TABLE_SUFFIXES:
            raise UserError(f"{file}: expected a file that ends in {', '.join(_TABLE_SUFFIXES)}")
        if Path(file).suffix.lower() != Path(files[0]).suffix.lower():
            raise UserError(f"{path}: expected tables of one file type, found {files[0]} and {file}")
    return files


def _open_table(path: str, files: Sequence[str]) -> Any:
    """The rows of `table_files` as a ``datasets.Dataset``.

    Every cell of a CSV file is text: the CSV reader of ``datasets`` replaces captions such as "NA" and "null" by None,
    converts columns of numbers, and accepts rows with too few cells.

    Raises:
        UserError: a file cannot be read, its columns differ from the first file's, or two of them have one name.
    """
    import datasets

    suffix = Path(files[0]).suffix.lower()
    with one_line_errors(path):
        if suffix in _DELIMITERS:
            local = datasets.DownloadManager().download(list(files))
            columns = _csv_columns(files[0], local[0], _DELIMITERS[suffix])
            return datasets.Dataset.from_generator(
                _csv_rows,
                features=datasets.Features(dict.fromkeys(columns, datasets.Value("string"))),
                gen_kwargs={  # tuples: lists would be taken for shards
                    "files": tuple(zip(files, local, strict=True)),
                    "columns": columns,
                    "delimiter": _DELIMITERS[suffix],
                },
                fingerprint=digest(
                    [_CSV_VERSION, suffix, *(_version(*pair) for pair in zip(files, local, strict=True))]
                )[:32],
            )
        if suffix == ".parquet":
            _check_parquet(files)
            rows = datasets.load_dataset("parquet", data_files=list(files), split="train", cache_dir=_cache_of(files))
            return _undecoded(rows)
        return _json_rows(files)


def _json_rows(files: Sequence[str]) -> Any:
    """The rows of JSON lines, with dates as the text in the file: the reader converts them to times."""
    import datasets

    for file in files:
        if not is_remote(file):
            with Path(file).open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if line.lstrip().startswith(b"null"):  # pyarrow's reader would end the process (SIGSEGV)
                        raise UserError(f"{file} line {number}: expected a JSON object, got null")
    load = functools.partial(
        datasets.load_dataset, "json", data_files=list(files), split="train", cache_dir=_cache_of(files)
    )
    try:
        rows = load()
    except datasets.exceptions.DatasetGenerationError as error:
        if "surrogate" not in str(error.__cause__):
            raise
        local = datasets.DownloadManager().download(list(files))
        load = functools.partial(load, data_files=list(map(_without_surrogates, files, local)))
        rows = load()
    times = [name for name, kind in rows.features.items() if str(getattr(kind, "dtype", "")).startswith("timestamp")]
    if not times:
        return _undecoded(rows)
    # Read again as JSON values. Versions of datasets without these can only convert the times back to a text.
    as_text = datasets.Json() if hasattr(datasets, "Json") else datasets.Value("string")
    return _undecoded(load(features=datasets.Features({**rows.features, **dict.fromkeys(times, as_text)})))


def _cache_of(files: Iterable[str]) -> str | None:
    import datasets

    # for this version of local files, which ``datasets`` knows by their time alone
    versions = [[file, *file_stamp(file)] for file in files if not is_remote(file)]
    return str(Path(datasets.config.HF_DATASETS_CACHE, "files", digest(versions)[:32])) if versions else None


def _without_surrogates(name: str, path: str) -> str:
    """A copy of a JSON lines file in the cache, in which `safe_json_loads` has replaced the lone surrogates."""
    copy = cache_directory("rows") / f"{digest(_version(name, path))[:32]}.jsonl"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output_path(copy) as partial, partial.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for _, row in read_json_lines(Path(path)))
    return str(copy)


def _version(name: str, path: str) -> list[Any]:
    # what changes when a file does; the local copy of a remote file is named by the hash of its URL and ETag
    file = Path(path).resolve()
    return [name, file.name] if is_remote(name) else [str(file), *file_stamp(file)]


def _csv_columns(name: str, path: str, delimiter: str) -> tuple[str, ...]:
    with contextlib.closing(_csv_cells(name, path, delimiter, is_plain=False)) as lines:
        columns = tuple(next(lines, (0, []))[1])
    if len(columns) == 1 and (found := next((mark for mark in _DELIMITER_NAMES if mark in columns[0]), None)):
        hint = "; a file with tabs is called .tsv" if found == "\t" else ""
        raise UserError(
            f"{name}: expected cells separated by {_DELIMITER_NAMES[delimiter]}, "
            f"found {_DELIMITER_NAMES[found]} in the first line{hint}"
        )
    if duplicates := [column for column in columns if columns.count(column) > 1]:
        raise UserError(f"{name}: several columns are called '{duplicates[0]}'")
    return columns


def _csv_rows(
    files: Sequence[tuple[str, str]], columns: tuple[str, ...], delimiter: str
) -> Iterator[Mapping[str, str]]:
    num_rows = 0
    for name, path in files:
        # A TSV file has no quoted line breaks if each line has the same number of cells. By its standard, TSV has no
        # quoting; pandas and csv quote nevertheless. Read with quoting, a plain file loses the lines between a caption
        # that begins with a quotation mark and one that ends with it.
        is_plain = delimiter == "\t"
        if is_plain:
            with Path(path).open(encoding="utf-8-sig", errors="replace", newline="") as stream:
                is_plain = len({line.count("\t") for line in stream if line.strip("\r\n")}) == 1
        lines = _csv_cells(name, path, delimiter, is_plain=is_plain)
        if (found := tuple(next(lines, (0, []))[1])) != columns:
            raise UserError(f"{name}: expected the columns {', '.join(columns)}, found {', '.join(found)}")
        for line, cells in lines:
            if len(cells) != len(columns):
                expected = f"expected {len(columns)} cells, as in the header"
                raise UserError(f"{name} line {line}: {expected}, got {len(cells)}")
            num_rows += 1
            yield dict(zip(columns, cells, strict=True))
    if not num_rows:
        raise UserError(f"{files[0][0]}: no rows")


def _csv_cells(name: str, path: str, delimiter: str, *, is_plain: bool) -> Generator[tuple[int, list[str]]]:
    """(line number, cells) of the lines of a file, beginning with the header; without blank lines.

    In a plain file, quotation marks are part of the text, but around a cell that csv would have quoted.
    """
    csv.field_size_limit(1 << 26)  # characters; its own limit is 131,072
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL
    line = 0
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True, quoting=quoting)
            while (cells := next(reader, None)) is not None:
                line = reader.line_num
                if is_plain:
                    cells = [match[1].replace('""', '"') if (match := _QUOTED_CELL.fullmatch(cell)) else cell
                             for cell in cells]  # fmt: skip
                if cells:
                    yield line, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{name} line {line + 1}: cannot be read ({error_reason(error)})") from None


def check_column(name: str, columns: Sequence[str], setting: str, path: str) -> None:
    """Raise UserError for the name of a column that a table does not have."""
    if name not in columns:
        error = unknown_name_error(name, columns, f"column for {setting} in {path}")
        raise UserError(f"{error}; synthetic_caption: null if there is none") if "synthetic" in setting else error


def table_rows_of_split(location: Location) -> tuple[Any, str]:
    """The rows of `_open_table`, of those with a column ``split`` the requested ones; the split's name in protocols."""
    path, split = location.spec.path, location.spec.split
    rows = _open_table(path, table_files(path))
    if SPLIT_COLUMN in rows.column_names:
        return _rows_of_split(rows, split, path), split
    if split not in WHOLE_REQUESTS:
        raise UserError(f"split: {path}: expected a column '{SPLIT_COLUMN}' for '{split}', found none")
    return rows, WHOLE


def rows_of_split(location: Location) -> tuple[Any, str]:
    """The rows of `open_rows`, those whose column ``split`` says so, and the split's name in protocols.

    On the Hub, Flickr30K is one split ``test`` with a column that says train, val or test.
    """
    path, subset, split = location.spec.path, location.spec.subset, location.spec.split
    try:
        rows = open_rows(path, subset, split)
    except UserError:  # no such split, but the column may have it
        files = files_of_splits(path, subset) if location.path.is_dir() and not is_saved(path) else {}
        rows = open_rows(path, subset, *files) if len(files) == 1 else None
        if rows is None or SPLIT_COLUMN not in rows.column_names:
            raise
    has_column = SPLIT_COLUMN in rows.column_names
    # the rows of a split "validation" may all say "val"
    if has_column and (len(set(read_column(path, rows, SPLIT_COLUMN))) > 1 or not has_splits(location.path)):
        rows = _rows_of_split(rows, split, path)
    return rows, split if has_column or has_splits(location.path) else WHOLE


def _rows_of_split(rows: Any, split: str, path: str) -> Any:
    if split == ALL:
        return rows
    splits, wanted = [str(each) for each in read_column(path, rows, SPLIT_COLUMN)], split.split("+")
    if missing := next((each for each in wanted if each not in splits), None):
        raise unknown_name_error(missing, {*splits, ALL}, f"split in the column of {path}")
    return rows.select([number for number, each in enumerate(splits) if each in wanted])


def utf8_rows(path: str, rows: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a table of ``datasets``.

    Raises:
        UserError: text that is not UTF-8, which writers of parquet do not check; the message names row and column.
    """
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except UnicodeDecodeError as error:
        for name in rows.column_names:
            try:
                rows.select_columns([name])[number]
            except UnicodeDecodeError:
                where = f"{path} row {number}: {name}"
                break
        else:
            where = f"{path} row {number}: {', '.join(rows.column_names)}"
        raise UserError(f"{where}: expected UTF-8 text ({error_reason(error)})") from None


def read_column(path: str, rows: Any, name: str) -> list[Any]:
    """The values of a column without images; UserError as `utf8_rows`."""
    try:
        found: list[Any] = rows[name][:]
    except UnicodeDecodeError:
        found = [row[name] for row in utf8_rows(path, rows.select_columns([name]))]
    return found
