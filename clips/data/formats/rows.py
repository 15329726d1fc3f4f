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
from typing import Any, Literal, NamedTuple

from clips.core.durable import atomic_output_path
from clips.core.identity import cache_directory, digest, file_stamp
from clips.data.formats.dataset_format import ALL, WHOLE, WHOLE_REQUESTS, Location
from clips.data.images import is_image_name
from clips.data.remote_files import expand_brace_ranges, file_name, is_remote
from clips.data.tar_index import is_clutter
from clips.errors import UserError, error_reason, unknown_name_error
from clips.safe_text import log_info
from clips.text_files import encoding_of_file, read_json_lines, unquote

_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLIT_COLUMN = "split"
"""Name of the column with each row's split."""
_CSV_VERSION = 4  # of `_csv_rows`; raise it with a change of the result, because datasets caches it
_FIRST_ROWS = 20
_DELIMITERS = {".csv": ",;|\t", ".tsv": "\t,;|"}  # the usual one first


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
                wanted = list(rows) if split == ALL else split.split("+")
                if missing := next((each for each in wanted if each not in rows), None):
                    raise unknown_name_error(missing, {*rows, ALL}, f"split of {path}")
                rows = datasets.concatenate_datasets([rows[each] for each in wanted])
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
    for file in files:
        if file.endswith(".parquet") and not is_remote(file):
            _footer(file, file)


def _footer(name: str, file: str) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a whole parquet file ({error_reason(error)})") from None


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
        if _suffix(file) not in _TABLE_SUFFIXES:
            raise UserError(f"{file}: expected a file that ends in {', '.join(_TABLE_SUFFIXES)}")
        if _suffix(file) != _suffix(files[0]):
            raise UserError(f"{path}: expected tables of one file type, found {files[0]} and {file}")
    return files


def _suffix(file: str) -> str:
    return Path(file_name(file)).suffix.lower()


def _open_table(path: str, files: Sequence[str]) -> Any:
    """The rows of `table_files` as a ``datasets.Dataset``.

    Every cell of a CSV file is text: the CSV reader of ``datasets`` replaces captions such as "NA" and "null" by None,
    converts columns of numbers, and accepts rows with too few cells.

    Raises:
        UserError: a file cannot be read, its columns differ from the first file's, or two of them have one name.
    """
    import datasets

    suffix = _suffix(files[0])
    with one_line_errors(path):
        local = _local_copies(files)
        if suffix in _DELIMITERS:
            layout = _csv_layout(local, _DELIMITERS[suffix])
            return datasets.Dataset.from_generator(
                _csv_rows,
                features=datasets.Features(dict.fromkeys(layout.columns, datasets.Value("string"))),
                gen_kwargs={"files": local, "layout": layout},  # tuples: lists would be taken for shards
                fingerprint=digest([_CSV_VERSION, suffix, *(_version(*pair) for pair in local)])[:32],
            )
        return _undecoded(_parquet_rows(path, local) if suffix == ".parquet" else _json_rows(local))


def _local_copies(files: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each table file with its local path; ``datasets`` copies remote files into its cache.

    Raises:
        UserError: a remote file is a web page, empty or a cut parquet file, and does not stay in the cache.
    """
    import datasets

    pairs = tuple(zip(files, datasets.DownloadManager().download(list(files)), strict=True))
    for name, path in pairs:
        if not is_remote(name):
            continue
        with Path(path).open("rb") as stream:
            start = stream.read(1000).lstrip().lower()
        try:
            if not start or start.startswith((b"<!doctype html", b"<html")):
                raise UserError(f"{name}: expected a table, got {'a web page' if start else 'no content'}")
            if _suffix(name) == ".parquet":
                _footer(name, path)
        except UserError:
            # without an ETag of the server it would be found there for good
            for copy in (path, f"{path}.json"):
                Path(copy).unlink(missing_ok=True)
            raise
    return pairs


def _parquet_rows(path: str, files: Sequence[tuple[str, str]]) -> Any:
    """The rows of parquet files, of which some may have no rows, other columns, or another type of one."""
    import datasets
    import pyarrow as pa

    groups, batch_size, names = list[tuple[Any, list[str]]](), None, dict[str, None]()
    for name, file in files:
        footer = _footer(name, file)
        if not footer.num_rows:
            continue
        schema = footer.schema.to_arrow_schema()
        columns = dict(zip(schema.names, schema.types, strict=True))
        names |= dict.fromkeys(columns)
        if not footer.row_group(0).num_rows:  # by whose size ``datasets`` would read
            batch_size = 1000
        if groups and groups[-1][0] == columns:
            groups[-1][1].append(file)
        else:
            groups.append((columns, [file]))
    options = {"batch_size": batch_size} if batch_size else {}
    parts = [
        datasets.load_dataset("parquet", data_files=group, split="train", cache_dir=_cache_of(group), **options)
        for _, group in groups or [(None, [files[0][1]])]
    ]
    if len(parts) == 1:
        return parts[0]
    kinds = dict[str, Any]()
    for name in names:
        features = [part.features[name] for part in parts if name in part.features]
        if all(kind == features[0] for kind in features):
            kinds[name] = features[0]
            continue
        types = list(
            dict.fromkeys(part.features.arrow_schema.field(name).type for part in parts if name in part.features)
        )
        try:
            if any(map(pa.types.is_binary, types)) and not all(map(pa.types.is_binary, types)):
                raise pa.ArrowTypeError("letters of a path, or of a caption, would be bytes of an image")
            (field,) = pa.unify_schemas([pa.schema({name: each}) for each in types], promote_options="permissive")
            kinds[name] = datasets.Features.from_arrow_schema(pa.schema([field]))[name]
        except pa.ArrowException:
            log_info(f"{path}: column '{name}' is not read: its parts have the types {', '.join(map(str, types))}")
    aligned = []
    for part in parts:
        part = part.select_columns([name for name in kinds if name in part.features])
        own = datasets.Features({name: kinds[name] for name in part.column_names})
        part = part if part.features == own else part.cast(own)
        for name in kinds.keys() - own.keys():
            part = part.add_column(name, [None] * len(part), feature=kinds[name])
        aligned.append(part.select_columns(list(kinds)))
    return datasets.concatenate_datasets(aligned)


def _json_rows(files: Sequence[tuple[str, str]]) -> Any:
    """The rows of JSON lines with the values that the file has.

    The reader of ``datasets`` converts dates to times, and of a column with several types the text "null" to None and
    "1.5" to a number. Such columns are read again from a copy in which each of their values is a text of JSON.
    """
    import datasets

    paths, num_lines = [path for _, path in files], 0
    for name, path in files:
        with Path(path).open("rb") as stream:
            for number, line in enumerate(stream, 1):
                num_lines += bool(line.strip(b"\xef\xbb\xbf \t\r\n"))
                if line.lstrip().startswith(b"null"):  # pyarrow's reader would end the process (SIGSEGV)
                    raise UserError(f"{name} line {number}: expected a JSON object, got null")
    load = functools.partial(datasets.load_dataset, "json", data_files=paths, split="train", cache_dir=_cache_of(paths))

    def load_copies(encoded: Sequence[str] = (), **options: Any) -> Any:
        copies = [_copy_of_json(*pair, encoded) for pair in files]
        return load(data_files=copies, **options)

    try:
        is_utf16 = any(encoding_of_file(Path(path)) == "utf-16" for path in paths)
        rows = load_copies() if is_utf16 else load()
        if not is_utf16 and len(rows) != num_lines:  # pandas reads a file of one line, and takes its lists for columns
            rows = load_copies()
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        # a lone surrogate; or an empty line or a byte order mark in a file of several types
        if not any(sign in f"{error} {error.__cause__}" for sign in ("surrogate", "Expected object or value")):
            raise
        rows = load_copies()
    if not is_utf16 and len(rows) != num_lines:
        raise UserError(f"{files[0][0]}: expected {num_lines:,} rows, one in each line, got {len(rows):,}")
    changed = [name for name, kind in rows.features.items() if re.search(r"Json|timestamp|date|time\d", repr(kind))]
    if not changed:
        return rows
    texts = datasets.Features({**rows.features, **dict.fromkeys(changed, datasets.Value("string"))})
    rows = load_copies(changed, features=texts)
    if hasattr(datasets, "Json"):
        return rows.cast(datasets.Features({**texts, **dict.fromkeys(changed, datasets.Json())}))
    return rows.map(_decode_json, fn_kwargs={"names": changed})


def _decode_json(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] and json.loads(row[name]) for name in names}


def _cache_of(files: Iterable[str]) -> str | None:
    import datasets

    # for this version of local files, which ``datasets`` knows by their time alone
    versions = [[file, *file_stamp(file)] for file in files if not is_remote(file)]
    return str(Path(datasets.config.HF_DATASETS_CACHE, "files", digest(versions)[:32])) if versions else None


def _copy_of_json(name: str, path: str, encoded: Sequence[str]) -> str:
    """A copy of a JSON lines file in the cache, in which `safe_json_loads` has replaced the lone surrogates.

    The values of the columns ``encoded`` are texts of JSON, but for null.
    """
    copy = cache_directory("rows") / f"{digest([*_version(name, path), *encoded])[:32]}.jsonl"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output_path(copy) as partial, partial.open("w", encoding="utf-8") as stream:
            for _, row in read_json_lines(Path(path)):
                texts = {key: json.dumps(row[key]) for key in encoded if row.get(key) is not None}
                stream.write(json.dumps(row | texts) + "\n")
    return str(copy)


def _version(name: str, path: str) -> list[Any]:
    file = Path(path).resolve()
    return [name if is_remote(name) else str(file), *file_stamp(file)]


class _Layout(NamedTuple):
    """How the files of a table separate their cells, and the names of these."""

    delimiter: str
    columns: tuple[str, ...]
    has_header: bool


def _csv_layout(files: Sequence[tuple[str, str]], delimiters: str) -> _Layout:
    """The layout of the first of the files, (name, local path), that has a line.

    The first line is data if it has a URL or the name of an image file, else the header.
    """
    name, tried, error = files[0][0], list[tuple[str, list[str]]](), None
    for name, path in files:
        for delimiter in delimiters:
            try:
                with contextlib.closing(_csv_cells(name, path, delimiter, is_plain=False)) as lines:
                    tried.append((delimiter, next(lines, (0, []))[1]))
            except UserError as each:  # quotation marks next to another delimiter
                error = error or each
        if any(cells for _, cells in tried):
            break
    several = [each for each in tried if len(each[1]) > 1]
    if error is not None and not several:
        raise error
    usual = (several or tried)[0]
    with_image = [each for each in several if any(map(_is_image, each[1]))]
    # "a dog, wet|0.jpg" ends like the name of an image for a comma, too
    sure = [each for each in with_image if any(_is_image(cell) and _is_alone(cell) for cell in each[1])]
    delimiter, cells = (sure or with_image or [usual])[0]
    if any(map(_is_image, cells)):
        with contextlib.closing(_csv_cells(name, path, delimiter, is_plain=False)) as lines:
            first_rows = [row for _, row in itertools.islice(lines, _FIRST_ROWS) if len(row) == len(cells)]
        # a caption may have a URL, or end like the name of an image, too
        scores = [[_is_image(cell) * (1 + _is_alone(cell)) for cell in row] for row in first_rows]
        place = max(range(len(cells)), key=lambda column: sum(row[column] for row in scores))
        names = [str(number) for number in range(1, len(cells) + 1)]
        if len(cells) == 2:
            names[1 - place] = "caption"
        names[place] = "image"
        log_info(f"{name}: has no header, its first line is data; its columns are called {', '.join(names)}")
        return _Layout(delimiter, tuple(names), has_header=False)
    columns = tuple(cell.strip() for cell in cells)
    if duplicates := [column for column in columns if columns.count(column) > 1]:
        raise UserError(f"{name}: several columns are called '{duplicates[0]}'")
    if any(len(column.split()) > 3 or column.isdecimal() for column in columns):
        log_info(f"{name}: its first line is taken as the header, not as data: {', '.join(columns):.120}")
    return _Layout(delimiter, columns, has_header=True)


def _is_image(cell: str) -> bool:
    return "://" in cell or is_image_name(cell.strip())


def _is_alone(cell: str) -> bool:
    return not re.search(r"[,;|\s]", cell.strip())


def _csv_rows(files: Sequence[tuple[str, str]], layout: _Layout) -> Iterator[Mapping[str, str]]:
    num_rows, (delimiter, columns, has_header) = 0, layout
    for name, path in files:
        # A file with tabs has no quoted line breaks if each line has the same number of cells. By its standard, TSV has
        # no quoting; pandas and csv quote nevertheless. Read with quoting, a plain file loses the lines between a
        # caption that begins with a quotation mark and one that ends with it. Flickr30k's file with | is of this kind.
        is_plain = delimiter in "\t|"
        if is_plain:
            with Path(path).open(encoding=encoding_of_file(Path(path)), errors="replace", newline="") as stream:
                counts = {(line.count(delimiter), line.count('"') % 2) for line in stream if line.strip("\r\n")}
            is_plain = len({count for count, _ in counts}) == 1
            if is_plain and any(odd for _, odd in counts):  # a mark of one line may close the mark of another
                is_plain = _share_of_images(name, path, layout, False) <= _share_of_images(name, path, layout, True)
        lines = _csv_cells(name, path, delimiter, is_plain=is_plain)
        if has_header:
            header = tuple(cell.strip() for cell in next(lines, (0, columns))[1])  # a part may be empty
            if header != columns:
                raise UserError(f"{name}: expected the columns {', '.join(columns)}, found {', '.join(header)}")
        for line, cells in lines:
            if len(cells) != len(columns):
                expected = f"expected {len(columns)} cells, as in the {'header' if has_header else 'first line'}"
                raise UserError(f"{name} line {line}: {expected}, got {len(cells)}")
            num_rows += 1
            yield dict(zip(columns, cells, strict=True))
    if not num_rows:
        raise UserError(f"{files[0][0]}: no rows")


def _share_of_images(name: str, path: str, layout: _Layout, is_plain: bool) -> float:
    """Of the rows, with or without quoting, those with an image in the column of images; 0 if rows differ in length."""
    counts, num_rows = [0] * len(layout.columns), 0
    try:
        for _, cells in _csv_cells(name, path, layout.delimiter, is_plain=is_plain):
            if len(cells) != len(counts):
                return 0.0
            counts = [count + _is_image(cell) for count, cell in zip(counts, cells, strict=True)]
            num_rows += 1
    except UserError:
        return 0.0
    return max(counts) / max(num_rows - layout.has_header, 1)


def _csv_cells(name: str, path: str, delimiter: str, *, is_plain: bool) -> Generator[tuple[int, list[str]]]:
    """(line number, cells) of the lines of a file, beginning with the header; without blank lines.

    In a plain file, quotation marks are part of the text, but around a cell that csv would have quoted. Blanks around
    ``|`` separate.
    """
    csv.field_size_limit(1 << 26)  # characters; its own limit is 131,072
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL
    line = 0
    try:
        with Path(path).open(encoding=encoding_of_file(Path(path)), newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True, quoting=quoting)
            while (cells := next(reader, None)) is not None:
                line = reader.line_num
                if delimiter == "|":
                    cells = [cell.strip() for cell in cells]
                if is_plain:
                    cells = [unquote(cell) for cell in cells]
                if cells:
                    yield line, cells
    except (csv.Error, UnicodeError) as error:
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
        values: list[Any] = rows[name][:]
    except UnicodeDecodeError:
        values = [row[name] for row in utf8_rows(path, rows.select_columns([name]))]
    return values
