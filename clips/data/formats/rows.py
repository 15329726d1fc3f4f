"""Tables with images or their names: datasets of the Hugging Face Hub, of ``save_to_disk``, CSV, TSV and parquet files.

``datasets`` gives random access to tables that contain the images; tables of image names are read once.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.data.formats.dataset_format import WHOLE, Captioned, Dataset, Location, captioned
from clips.data.lazy_images import ImageColumn, TableImage
from clips.data.parquet_limits import check_decompressed_size, iter_record_batches
from clips.errors import UserError, error_reason, unknown_name_error
from clips.model.loading import library_errors_as_user_errors

_CAPTION_COLUMNS = ("captions", "caption", "sentences", "texts", "text", "raw")
_NUMBERED_COLUMN = re.compile(r"captions?_?\d+")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_saved(path: str | Path) -> bool:
    """Whether ``save_to_disk`` wrote a directory."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def has_splits(directory: Path) -> bool:
    """Whether a dataset has splits: ``save_to_disk`` also writes a single table."""
    return (directory / "dataset_dict.json").is_file() or not (directory / "state.json").is_file()


def holds_rows(directory: Path) -> bool:
    """Whether a directory contains parquet files, or a dataset of ``save_to_disk``."""
    return is_saved(directory) or (directory.is_dir() and next(directory.rglob("*.parquet"), None) is not None)


def is_datasets(location: Location) -> bool:
    """Parquet files, or a dataset of ``save_to_disk``."""
    return holds_rows(location.path)


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
            check_decompressed_size(_parquet_of_split(path, subset, split))
            rows = datasets.load_dataset(path, subset, split=split)
    return undecoded(rows)


def undecoded(rows: Any) -> Any:
    """The same ``datasets.Dataset`` with images as bytes or paths."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def files_of_splits(path: str, subset: str | None = None) -> Mapping[str, Sequence[str]]:
    """Split → its files, as ``datasets`` resolves a directory or a Hub dataset."""
    import datasets

    return datasets.load_dataset_builder(path, subset).config.data_files or {}


def _parquet_of_split(path: str, subset: str | None, split: str) -> list[str]:
    """The parquet files that ``datasets`` would read for a split; all of them for ``train[:9]+test``."""
    if not Path(path).is_dir():
        return []
    files = files_of_splits(path, subset)
    selected = files[split] if split in files else itertools.chain(*files.values())
    return [file for file in selected if file.endswith(".parquet")]


@contextlib.contextmanager
def one_line_errors(path: str) -> Iterator[None]:
    """Turn any error of ``datasets`` and its readers into a UserError; hide their progress bars."""
    import datasets

    bars_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a dataset ({error_reason(error)})") from None
    finally:
        if bars_enabled:
            datasets.enable_progress_bars()


def read_datasets(location: Location) -> Dataset[Captioned]:
    """One image per row; its captions are a list in one column, or are in several columns."""
    spec = location.spec
    data = open_rows(spec.path, spec.subset, spec.split)
    columns = _caption_columns(location, data.column_names)
    images = ImageColumn(data.select_columns([spec.image_column]), spec.image_column, spec.path, location.path)
    records = (Captioned([TableImage(images, row)], texts) for row, texts in enumerate(_texts(data, columns)))
    return Dataset(records=records, split=spec.split if has_splits(location.path) else WHOLE)


def _texts(data: Any, columns: Sequence[str]) -> Iterator[list[Any]]:
    for row in data.select_columns(columns):
        cells = [cell for name in columns for cell in _as_list(row[name])]
        yield [cell.get("raw") if isinstance(cell, dict) else cell for cell in cells]


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _caption_columns(location: Location, columns: Sequence[str]) -> list[str]:
    """The requested columns, else those with usual names of caption columns. Raises UserError if there are none."""
    spec = location.spec
    for field, names in (("image_column", (spec.image_column,)), ("caption_columns", spec.caption_columns)):
        for name in names:
            if name not in columns:
                raise unknown_name_error(name, columns, f"column for {field} in {spec.path}")
    if spec.caption_columns:
        return list(spec.caption_columns)
    numbered = [name for name in columns if _NUMBERED_COLUMN.fullmatch(name)]
    known = next(([name] for name in _CAPTION_COLUMNS if name in columns), numbered)
    if not known:
        raise UserError(f"caption_columns: expected columns of captions in {spec.path} (it has: {', '.join(columns)})")
    return known


def is_table(location: Location) -> bool:
    """``.csv``, ``.tsv``, or one ``.parquet`` file."""
    return location.path.suffix in {*_DELIMITERS, ".parquet"} and location.path.is_file()


def read_table(location: Location) -> Dataset[Captioned]:
    """Each row names an image; its captions are in one column, or in several, some of which may be empty.

    Raises:
        UserError: no such columns, several columns of one name, a row without a caption, or an unreadable file.
    """
    path, image = location.path, location.spec.image_column
    columns = _columns(path)
    captions = _caption_columns(location, columns)
    if duplicates := [name for name in (image, *captions) if columns.count(name) > 1]:
        raise UserError(f"{path}: several columns are called '{duplicates[0]}'")
    return Dataset(records=_table_records(path, image, captions, columns, location.image_root("images")))


def _table_records(
    path: Path, image: str, captions: Sequence[str], columns: Sequence[str], root: Path
) -> Iterator[Captioned]:
    rows = _parquet_rows(path, [image, *captions]) if path.suffix == ".parquet" else _csv_rows(path, columns)
    for number, row in enumerate(rows, 1):
        if not (isinstance(row[image], str) and row[image]):
            raise UserError(
                f"{path} row {number}: {image}: expected the name of an image file, got {row[image]!r:.40} "
                "(for parquet files that contain the images, give the directory)"
            )
        texts = [cell for name in captions for cell in _as_list(row[name]) if cell is not None and cell != ""]
        if not texts:
            raise UserError(f"{path} row {number}: {', '.join(captions)}: expected a caption, got none")
        yield captioned(root, row[image], texts)


def _columns(path: Path) -> list[str]:
    with library_errors_as_user_errors(f"{path}: cannot be read as a table"):
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(path).names
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream, delimiter=_DELIMITERS[path.suffix], strict=True), [])


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with library_errors_as_user_errors(f"{path}: cannot be read as a table"):
        for batch in iter_record_batches(str(path), path, columns=columns):
            yield from batch.to_pylist()


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=_DELIMITERS[path.suffix], strict=True)
        try:
            for row in reader:
                if row.keys() != set(columns) or None in row.values():
                    raise UserError(f"{path} line {reader.line_num}: expected {len(columns)} cells, as in the header")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} line {reader.reader.line_num}: cannot be read ({error_reason(error)})") from None
