"""Tables with images or their names: datasets of the Hugging Face hub, of ``save_to_disk``, CSV, TSV and parquet files.

``datasets`` reads those with the images in them, by random access; files that name images are read once.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clips.data.formats.dataset_format import WHOLE, Captioned, Dataset, Location, captioned
from clips.data.lazy_images import ImageColumn, TableImage
from clips.data.parquet_limits import check_decompressed_size, iter_record_batches
from clips.errors import UserError, error_reason, unknown_name_error
from clips.model.loading import library_errors_as_user_errors

_CAPTIONS = ("captions", "caption", "sentences", "texts", "text", "raw")
_NUMBERED = re.compile(r"captions?_?\d+")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SAVED = ("state.json", "dataset_dict.json")


def is_saved(path: str | Path) -> bool:
    """Whether ``save_to_disk`` wrote a directory."""
    return any((Path(path) / name).is_file() for name in _SAVED)


def has_splits(directory: Path) -> bool:
    """Whether it has splits: ``save_to_disk`` also writes a single table."""
    return (directory / "dataset_dict.json").is_file() or not (directory / "state.json").is_file()


def holds_rows(directory: Path) -> bool:
    """Whether a directory holds parquet files, or a dataset of ``save_to_disk``."""
    return is_saved(directory) or (directory.is_dir() and next(directory.rglob("*.parquet"), None) is not None)


def is_datasets(found: Location) -> bool:
    """Parquet files, or a dataset of ``save_to_disk``."""
    return holds_rows(found.path)


def open_rows(path: str, subset: str | None, split: str) -> Any:
    """A ``datasets.Dataset``: of the Hub, of a directory in the Hub's structure, or of ``save_to_disk``.

    Images stay bytes or paths: this suite's decoder is safer, and may downscale while decoding.

    Raises:
        UserError: it is missing, broken or empty, or has no such split.
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
    """Split → its files, as ``datasets`` reads a directory or a dataset of the Hub."""
    import datasets

    return datasets.load_dataset_builder(path, subset).config.data_files or {}


def _parquet_of_split(path: str, subset: str | None, split: str) -> list[str]:
    """The parquet files of a directory that ``datasets`` would read of a split; all of them for ``train[:9]+test``."""
    if not Path(path).is_dir():
        return []
    files = files_of_splits(path, subset)
    named = files[split] if split in files else [file for each in files.values() for file in each]
    return [file for file in named if file.endswith(".parquet")]


@contextlib.contextmanager
def one_line_errors(path: str) -> Iterator[None]:
    """Whatever datasets and its readers raise on a missing, broken or empty file, in one line; no progress bars."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a dataset ({error_reason(error)})") from None
    finally:
        if shown:
            datasets.enable_progress_bars()


def read_datasets(found: Location) -> Dataset[Captioned]:
    """Each row is an image of its own; its captions are a list in one column, or are in several."""
    asked = found.asked
    data = open_rows(asked.path, asked.subset, asked.split)
    columns = _caption_columns(found, data.column_names)
    images = ImageColumn(data.select_columns([asked.image_column]), asked.image_column, asked.path, found.path)
    records = (Captioned([TableImage(images, number)], texts) for number, texts in enumerate(_texts(data, columns)))
    return Dataset(records=records, split=asked.split if has_splits(found.path) else WHOLE)


def _texts(data: Any, columns: Sequence[str]) -> Iterator[list[Any]]:
    for row in data.select_columns(columns):
        cells = [cell for name in columns for cell in _as_list(row[name])]
        yield [cell.get("raw") if isinstance(cell, dict) else cell for cell in cells]


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _caption_columns(found: Location, columns: Sequence[str]) -> list[str]:
    """The requested columns, else those with usual names of caption columns. Raises UserError if there are none."""
    asked = found.asked
    for field, names in (("image_column", (asked.image_column,)), ("caption_columns", asked.caption_columns)):
        for name in names:
            if name not in columns:
                raise unknown_name_error(name, columns, f"column for {field} in {asked.path}")
    if asked.caption_columns:
        return list(asked.caption_columns)
    numbered = [name for name in columns if _NUMBERED.fullmatch(name)]
    known = next(([name] for name in _CAPTIONS if name in columns), numbered)
    if not known:
        raise UserError(
            f"caption_columns: expected those of the captions in {asked.path} (it has: {', '.join(columns)})"
        )
    return known


def is_table(found: Location) -> bool:
    """``.csv``, ``.tsv``, or one ``.parquet`` file."""
    return found.path.suffix in {*_DELIMITERS, ".parquet"} and found.path.is_file()


def read_table(found: Location) -> Dataset[Captioned]:
    """Each row names an image; its captions are in one column, or in several, of which some may be empty.

    Raises:
        UserError: no such columns, or several of one name, a row without a caption, or an unreadable file.
    """
    columns, rows = _opened(found.path)
    image = found.asked.image_column
    captions = _caption_columns(found, columns)
    if twice := [name for name in (image, *captions) if columns.count(name) > 1]:
        raise UserError(f"{found.path}: several columns are called '{twice[0]}'")
    return Dataset(records=_named(found, rows([image, *captions]), captions, found.folder("images")))


def _named(
    found: Location, rows: Iterator[Mapping[str, Any]], captions: Sequence[str], root: Path
) -> Iterator[Captioned]:
    image = found.asked.image_column
    for number, row in enumerate(rows, 1):
        if not (isinstance(row[image], str) and row[image]):
            raise UserError(
                f"{found.path} row {number}: {image}: expected the name of an image file, got {row[image]!r:.40} "
                "(of parquet files that hold the images themselves, give the directory)"
            )
        texts = [cell for name in captions for cell in _as_list(row[name]) if cell is not None and cell != ""]
        if not texts:
            raise UserError(f"{found.path} row {number}: {', '.join(captions)}: expected a caption, got none")
        yield captioned(root, row[image], texts)


def _opened(path: Path) -> tuple[list[str], Callable[[Sequence[str]], Iterator[Mapping[str, Any]]]]:
    """The columns of a table, and a function that yields rows of some of them."""
    with library_errors_as_user_errors(f"{path}: cannot be read as a table"):
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(path).names, partial(_of_parquet, path)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            columns = next(csv.reader(stream, delimiter=_DELIMITERS[path.suffix], strict=True), [])
    return columns, lambda _: _of_text(path, columns)


def _of_parquet(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with library_errors_as_user_errors(f"{path}: cannot be read as a table"):
        for batch in iter_record_batches(str(path), path, columns=columns):
            yield from batch.to_pylist()


def _of_text(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=_DELIMITERS[path.suffix], strict=True)
        try:
            for row in reader:
                if row.keys() != set(columns) or None in row.values():
                    raise UserError(f"{path} line {reader.line_num}: expected {len(columns)} cells, as the head has")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} line {reader.reader.line_num}: cannot be read ({error_reason(error)})") from None
